"""A Dexed proxy in minutes: hn_oh on transport640, 16,384 presets.

    python -m launch.train --config configs/quickstart.py
    python -m launch.evaluate --run runs/quickstart
    python -m launch.reproduce --config configs/quickstart.py

The last does all that the paper does, in small: its five encoders and one
that knows modules, three estimators that learn through a proxy, tables, and a
page to listen. `configs/quickstart.py:65536` takes so many presets, and no more
steps than whole epochs need.

Synthetic presets are drawn as people make them, from a prior that was fitted
to DX7 voices and comes with the project. Uniform ones, as in the paper
(`--config.prior.fitted=0 --config.prior.uniform=1`, with a `--config.data` of
their own), say little about presets made by hand unless they are millions.

Hardware: two CPU cores, four to eight minutes from nothing to the table.
Expected: see the table in proxy/README.md.
"""

from typing import Any

from configs import common, dexed, paper

# The number of training presets when none stands behind a colon.
_PRESETS = "16384"


def _epochs(epochs: int, presets: int) -> int:
    """As many steps as so many epochs of `_PRESETS`, or to a whole epoch."""
    return -(-epochs * int(_PRESETS) // presets)


def get_config(presets=_PRESETS):
    if not presets.isdecimal() or int(presets) < 1_024:
        raise ValueError(
            f"configs/quickstart.py:{presets}: give a number of training "
            "presets, at least 1024"
        )
    config = common.proxy_config("dexed", "hn_oh")
    config.name = "quickstart"
    if presets != _PRESETS:
        config.name += f"_{presets}"

    config.audio_model = "transport640"
    config.data = f"data/{config.name}"
    config.num_train = int(presets)
    config.validation = (64, 64)
    config.num_test = 4_096
    config.shard_size = 1_024
    config.prior.update({"uniform": 0.0, "fitted": 1.0})

    common.few_presets(config, 64)
    config.epochs = _epochs(config.epochs, config.num_train)
    # Few presets for 6 million weights: without decay, they are memorised.
    config.optimizer.weight_decay = 0.3
    config.optimizer.learning_rate = 3e-3
    config.average = 0.99
    config.log_every = 32

    config.evaluation.subset = 4_096
    return config


# Encoders that take many minutes at the paper's size, in small, and one that
# is not in the paper.
SMALL = {
    "modules": {
        "epochs": 10,
        "optimizer": {
            "learning_rate": 1e-3,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.05,
            "clip_norm": 1.0,
        },
    },
    "hn_pt": {
        "sizes": {"hidden": 512, "blocks": 6, "token": 16},
        "epochs": 10,
    },
    "hn_ptgru": {
        "sizes": {"hidden": 256, "blocks": 2, "token": 32},
        "epochs": 5,
    },
    # In the others' 64 steps an epoch, with their decay, it stays at chance.
    "tfm": {
        "sizes": {
            "hidden": 64,
            "blocks": 2,
            "heads": 4,
            "factor": 2.0,
        },
        "epochs": 5,
        "batch": 32,
        "optimizer": {
            "learning_rate": 2e-3,
            "warmup_steps": 256,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
        },
    },
}


def _small(encoder: str, presets: str) -> Any:
    config = get_config(presets)
    config.name += f"_{encoder}"
    config.encoder, config.average = encoder, 0.0
    config.update(SMALL[encoder])
    config.epochs = _epochs(config.epochs, config.num_train)
    steps = config.num_train // config.batch * config.epochs
    config.optimizer.cosine_steps = steps - config.optimizer.warmup_steps
    return config


def get_plan(presets: str = _PRESETS) -> dict[str, Any]:
    """Everything in small, see `configs.paper.get_plan`."""
    hn, mlp = get_config(presets), get_config(presets)
    name = hn.name
    mlp.name, mlp.encoder = f"{name}_mlp", "mlp_oh"
    tuned = get_config(presets)
    tuned.name, tuned.init = f"{name}_finetuned", hn.run
    tuned.source = "handcrafted"
    tuned.epochs, tuned.batch = 4, 64
    tuned.optimizer.learning_rate = 1e-3
    tuned.optimizer.cosine_steps = 4 * 220 - 64
    matches = []
    for schedule in paper.SCHEDULES:
        config = dexed.get_config("match_small")
        config.audio_model, config.data = hn.audio_model, hn.data
        config.prior = hn.prior
        config.proxy, config.num_train = tuned.run, 512
        config.stand_in.update({"train": 512, "validation": 64, "test": 64})
        config.epochs, config.batch = 8, 32
        config.optimizer.learning_rate = 2e-3
        config.optimizer.warmup_steps = 16
        config.validate_every, config.validation_rows = 4, 64
        config.log_every = 16
        config.name = f"{name}_{schedule}"
        matches.append(paper.estimator(config, schedule, 0))
    return {
        "name": name,
        "proxies": [hn, mlp, *(_small(kind, presets) for kind in SMALL)],
        "tuned": [tuned],
        "matches": matches,
    }
