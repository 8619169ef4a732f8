"""Dexed, transformer over tokens (tfm), mn04 embeddings.

    python -m launch.train --config configs/dexed_tfm.py

Hardware: one GPU or more for training; rendering takes CPU cores, so make the
data on as many machines as there are (`launch.precompute --task`).
Time: not measured at this size here; see `python -m launch.benchmark train`.
Figure to beat: validation MRR .9537, L1 .0433 (256 rankings of
512), as published, with 10.24 M presets and 30 epochs.
"""

from configs import common


def get_config():
    config = common.proxy_config("dexed", "tfm")
    config.batch = 256
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.91
    config.optimizer.b2 = 0.987
    config.optimizer.eps = 2e-8
    config.optimizer.cosine_steps = 392_500
    config.optimizer.restart_steps = 800_000
    return config
