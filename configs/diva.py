r"""Diva: every experiment, a row each; the names are those of Dexed's.

    python -m launch.train --config configs/diva.py:tfm
    python -m launch.train --config configs/diva.py:match \
        --config.schedule=switch --config.presets=PATH

The last number of an encoder's row is the published validation MRR; published
L1 of tfm: .0432. Published for matching: match_proxy L1 .0329, fine-tuned .0379
on hand-crafted validation presets; validation a_mean of ploss 2.096, mix 1.808,
switch 1.717.

Hardware: as for Dexed, and the VST3 plug-in Diva: set DIVA_VST3 or
--config.plugin to it, or take data made elsewhere with --config.data=DIR.
"""

from configs import common, matching

ENCODERS = {
    "mlp_oh": common.Published(1.4e-2, 0.78, 0.998, 2e-8, 0.5633),
    "hn_oh": common.Published(4e-3, 0.93, 0.987, 2e-7, 0.8159),
    "hn_pt": common.Published(4e-3, 0.93, 0.987, 2e-7, 0.7817),
    "hn_ptgru": common.Published(1.5e-3, 0.775, 0.978, 2e-8, 0.8406),
    "tfm": common.Published(1e-3, 0.89, 0.987, 5e-10, 0.9171),
}
_TUNING = {
    "epochs": 250,
    "presets": matching.PAPER_PRESETS["diva"],
    "learning_rate": 5e-5,
    "b1": 0.86,
    "weight_decay": 0.08,
    "warmup_steps": 600,
}
ROWS = {
    **common.paper_rows("diva", ENCODERS, **_TUNING),
    **matching.rows(
        "diva",
        ENCODERS["tfm"],
        epochs=50,
        tuning=_TUNING,
        small_tuning={
            "epochs": 60,
            "presets": matching.PAPER_PRESETS["diva"],
            "learning_rate": 1e-3,
            "weight_decay": 0.5,
            "warmup_steps": 400,
        },
        estimator={
            "learning_rate": 3e-4,
            "b1": 0.91,
            "b2": 0.98,
            "eps": 1e-7,
            "weight_decay": 0.3,
            "warmup_epochs": 9,
        },
        label_smoothing=0.01,
        schedule="switch",
    ),
}


def get_config(name="hn_oh"):
    return common.choose("configs/diva.py", ROWS, name)
