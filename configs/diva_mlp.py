"""Diva, multilayer perceptron on one-hot presets (mlp_oh), mn04 embeddings.

    python -m launch.train --config configs/diva_mlp.py

Hardware: as for Dexed, and the VST3 plug-in Diva: set DIVA_VST3 or
--config.plugin to it, or take data made elsewhere with --config.data=DIR.
Time: not measured at this size here; see `python -m launch.benchmark train`.
Figure to beat: validation MRR .5633 (256 rankings of
512), as published, with 10.24 M presets and 30 epochs.
"""

from configs import common


def get_config():
    config = common.proxy_config("diva", "mlp_oh")
    config.optimizer.learning_rate = 1.4e-2
    config.optimizer.b1 = 0.78
    config.optimizer.b2 = 0.998
    config.optimizer.eps = 2e-8
    return config
