"""Dexed, multilayer perceptron on one-hot presets (mlp_oh), mn04 embeddings.

    python -m launch.train --config configs/dexed_mlp.py

Hardware: one GPU or more for training; rendering takes CPU cores, so make the
data on as many machines as there are (`launch.precompute --task`).
Time: not measured at this size here; see `python -m launch.benchmark train`.
Figure to beat: validation MRR .4685 (256 rankings of
512), as published, with 10.24 M presets and 30 epochs.
"""

from configs import common


def get_config():
    config = common.proxy_config("dexed", "mlp_oh")
    config.optimizer.learning_rate = 1.2e-2
    config.optimizer.b1 = 0.78
    config.optimizer.b2 = 0.998
    config.optimizer.eps = 8e-6
    return config
