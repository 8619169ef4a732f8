"""Diva: highway network on a bidirectional GRU, hn_ptgru.

    python -m launch.train --config configs/diva_hnptgru.py

Hardware: as for Dexed, and the VST3 plug-in Diva: set DIVA_VST3 or
--config.plugin to it, or take data made elsewhere with --config.data=DIR.
Time: not measured at this size here; see `python -m launch.benchmark train`.
Figure to beat: validation MRR .8406 (256 rankings of
512), as published, with 10.24 M presets and 30 epochs.
"""

from configs import common


def get_config():
    config = common.proxy_config("diva", "hn_ptgru")
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.b1 = 0.775
    config.optimizer.b2 = 0.978
    config.optimizer.eps = 2e-8
    return config
