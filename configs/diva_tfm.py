"""Diva, transformer over tokens (tfm), mn04 embeddings.

    python -m launch.train --config configs/diva_tfm.py

Hardware: as for Dexed, and the VST3 plug-in Diva: set DIVA_VST3 or
--config.plugin to it, or take data made elsewhere with --config.data=DIR.
Time: not measured at this size here; see `python -m launch.benchmark train`.
Figure to beat: validation MRR .9171, L1 .0432 (256 rankings of
512), as published, with 10.24 M presets and 30 epochs.
"""

from configs import common


def get_config():
    config = common.proxy_config("diva", "tfm")
    config.batch = 256
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.89
    config.optimizer.b2 = 0.987
    config.optimizer.eps = 5e-10
    config.optimizer.cosine_steps = 392_500
    config.optimizer.restart_steps = 800_000
    return config
