r"""Dexed: every experiment, a row each.

    python -m launch.train --config configs/dexed.py:tfm
    python -m launch.train --config configs/dexed.py:tfm_finetuned \
        --config.presets=PATH
    python -m launch.train --config configs/dexed.py:match_small \
        --config.schedule=mix --config.presets=PATH

Encoders: mlp_oh, hn_oh (when no row is named), hn_pt, hn_ptgru, tfm on mn04
embeddings, 10.24 M presets, 30 epochs; the last number of a row is the
published validation MRR. NAME_finetuned goes on with runs/dexed_NAME on
hand-crafted presets: 8 % of them are held out for validation, 18 % for the
test. Published L1 of tfm: .0433. Retrieval of real voices: configs/voices.py.

Sound matching: match_proxy (tfm on mn20_mel), then match_proxy_finetuned, then
match, the estimator that learns through it; proxy_small (hn_oh on mn04_mel),
proxy_small_finetuned and match_small are the same for two CPU cores.
match_embedding reads embeddings, learns through the proxy that comes with the
project, and shares the data of configs/voices.py (`--config.data`,
`--config.synthetic.num_train`).
`--config.schedule` is ploss (the parameter loss alone), mix, switch,
reversed_mix, reversed_switch or perceptual. `--config.decoding` says how
presets reach the proxy: hard (the paper's), relaxed, straight_through or
gumbel. Published: match_proxy L1 .0217, fine-tuned .0201 on hand-crafted
validation presets; validation a_mean of ploss 1.765, mix 1.625, switch 1.636.

Hardware: one GPU or more to train; CPU cores to render, on as many machines as
there are (`launch.precompute --task`). The small ones: two CPU cores, a quarter
of an hour for 77,824 presets, minutes for the training.
"""

from configs import common, matching, voices

ENCODERS = {
    "mlp_oh": common.Published(1.2e-2, 0.78, 0.998, 8e-6, 0.4685),
    "hn_oh": common.Published(4e-3, 0.93, 0.987, 2e-7, 0.8065),
    "hn_pt": common.Published(7e-3, 0.78, 0.97, 3e-7, 0.7542),
    "hn_ptgru": common.Published(1.5e-3, 0.775, 0.978, 3e-7, 0.8899),
    "tfm": common.Published(1e-3, 0.91, 0.987, 2e-8, 0.9537),
}
_TUNING = {
    "epochs": 250,
    "presets": matching.PAPER_PRESETS["dexed"],
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_steps": 3_450,
}
ROWS = {
    **common.paper_rows("dexed", ENCODERS, **_TUNING),
    **matching.rows(
        "dexed",
        ENCODERS["tfm"],
        epochs=60,
        tuning=_TUNING,
        small_tuning={
            "epochs": 30,
            "presets": 15_000,
            "learning_rate": 1e-3,
            "weight_decay": 0.5,
            "warmup_steps": 400,
        },
        estimator={
            "learning_rate": 7e-3,
            "b1": 0.86,
            "b2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "warmup_epochs": 6,
        },
        label_smoothing=0.02,
    ),
    "match_embedding": lambda: matching.embedding_config(voices.get_config()),
}


def get_config(name="hn_oh"):
    return common.choose("configs/dexed.py", ROWS, name)
