"""TAL-NoiseMaker: the paper's encoders, a row each.

    python -m launch.train --config configs/talnm.py:tfm

The last number of a row is the published validation MRR; published L1 of tfm:
.0359. The paper matches no sounds with it.

Hardware: as for Dexed, and the VST3 plug-in TAL-NoiseMaker: set TALNM_VST3 or
--config.plugin to it, or take data made elsewhere with --config.data=DIR.
"""

from configs import common

ENCODERS = {
    "mlp_oh": common.Published(1.4e-2, 0.91, 0.98, 2e-8, 0.8875),
    "hn_oh": common.Published(1e-2, 0.80, 0.948, 2e-7, 0.9824),
    "hn_pt": common.Published(1e-2, 0.80, 0.948, 2e-7, 0.9808),
    "hn_ptgru": common.Published(1.5e-3, 0.93, 0.987, 2e-8, 0.9935),
    "tfm": common.Published(1e-3, 0.89, 0.987, 5e-10, 1.0),
}
ROWS = common.paper_rows("talnm", ENCODERS)


def get_config(name="hn_oh"):
    return common.choose("configs/talnm.py", ROWS, name)
