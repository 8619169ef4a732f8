"""TAL-NoiseMaker: highway network on one-hot presets (hn_oh), mn04.

    python -m launch.train --config configs/talnm_hn.py

Hardware: as for Dexed, and the VST3 plug-in TAL-NoiseMaker: set TALNM_VST3 or
--config.plugin to it, or take data made elsewhere with --config.data=DIR.
Time: not measured at this size here; see `python -m launch.benchmark train`.
Figure to beat: validation MRR .9824 (256 rankings of
512), as published, with 10.24 M presets and 30 epochs.
"""

from configs import common


def get_config():
    config = common.proxy_config("talnm", "hn_oh")
    config.optimizer.learning_rate = 1e-2
    config.optimizer.b1 = 0.8
    config.optimizer.b2 = 0.948
    config.optimizer.eps = 2e-7
    return config
