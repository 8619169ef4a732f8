"""Dexed, highway network on a bidirectional GRU over tokens, hn_ptgru.

    python -m launch.train --config configs/dexed_hnptgru.py

Hardware: one GPU or more for training; rendering takes CPU cores, so make the
data on as many machines as there are (`launch.precompute --task`).
Time: not measured at this size here; see `python -m launch.benchmark train`.
Figure to beat: validation MRR .8899 (256 rankings of
512), as published, with 10.24 M presets and 30 epochs.
"""

from configs import common


def get_config():
    config = common.proxy_config("dexed", "hn_ptgru")
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.b1 = 0.775
    config.optimizer.b2 = 0.978
    config.optimizer.eps = 3e-7
    return config
