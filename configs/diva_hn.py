"""Diva, highway network on one-hot presets (hn_oh), mn04 embeddings.

    python -m launch.train --config configs/diva_hn.py

Hardware: as for Dexed, and the VST3 plug-in Diva: set DIVA_VST3 or
--config.plugin to it, or take data made elsewhere with --config.data=DIR.
Time: not measured at this size here; see `python -m launch.benchmark train`.
Figure to beat: validation MRR .8159 (256 rankings of
512), as published, with 10.24 M presets and 30 epochs.
"""

from configs import common


def get_config():
    config = common.proxy_config("diva", "hn_oh")
    config.optimizer.learning_rate = 4e-3
    config.optimizer.b1 = 0.93
    config.optimizer.b2 = 0.987
    config.optimizer.eps = 2e-7
    return config
