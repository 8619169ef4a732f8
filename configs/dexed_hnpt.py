"""Dexed, highway network on flattened tokens (hn_pt), mn04 embeddings.

    python -m launch.train --config configs/dexed_hnpt.py

Hardware: one GPU or more for training; rendering takes CPU cores, so make the
data on as many machines as there are (`launch.precompute --task`).
Time: not measured at this size here; see `python -m launch.benchmark train`.
Figure to beat: validation MRR .7542 (256 rankings of
512), as published, with 10.24 M presets and 30 epochs.
"""

from configs import common


def get_config():
    config = common.proxy_config("dexed", "hn_pt")
    config.optimizer.learning_rate = 7e-3
    config.optimizer.b1 = 0.78
    config.optimizer.b2 = 0.97
    config.optimizer.eps = 3e-7
    return config
