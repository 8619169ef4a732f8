r"""Retrieval of real DX7 voices: an encoder that knows modules.

    python -m launch.train --config configs/voices.py --config.presets=BANK
    python -m launch.evaluate --run runs/voices_modules
    python -m launch.reproduce --config configs/voices.py:people --presets=BANK

`--config configs/voices.py:hn_oh`, or another encoder, for comparison;
`--config.num_train` and `--config.epochs` for more presets or less time, and a
`--config.data` of its own for each number of presets or prior.

Trains on the voices of the bank's training part, on variations of them and on
presets drawn from the fitted prior that comes with the project, each in other
forms that sound the same; validates on the bank's validation part, and is
tested among 3,144 voices of its test part. No part sees another.

The last command compares encoders and numbers of presets, in about as many
steps: a table, and a curve. `people` is one of the plans; `uniform` learns from
uniform presets, `longer` in five times as many steps, `tokens` with a
transformer over modules, `paper` and `tfm` with the paper's other encoders.

Hardware: two CPU cores, an hour from nothing without the comparison, or one
GPU.
Expected: see proxy/README.md.
"""

from typing import Any

from configs import common

# Voices of the bank that are trained on, for the length of the cosine.
_VOICES = 14_088

# What presets are drawn from, by name.
_DRAWN = {
    "people": {
        "source": "both",
        "prior": {"uniform": 0.0, "fitted": 0.3, "variations": 0.7},
    },
    "uniform": {
        "source": "synthetic",
        "prior": {"uniform": 1.0, "fitted": 0.0, "variations": 0.0},
    },
}
# What is compared, by name of the plan: what is learned from, steps (whole
# epochs, in about as many), encoders, numbers of presets.
_PLANS = {
    "people": (
        "people",
        1_079,
        ("modules", "hn_oh"),
        (16_384, 65_536, 262_144),
    ),
    "uniform": ("uniform", 1_079, ("modules", "hn_oh"), (16_384, 65_536)),
    # Six times as much work a step.
    "tokens": ("people", 1_079, ("modules_tfm",), (16_384, 65_536)),
    "longer": ("people", 5_400, ("modules", "hn_oh"), (16_384, 65_536)),
    "paper": ("people", 1_079, ("mlp_oh", "hn_pt", "hn_ptgru"), (16_384,)),
    # A step is 67 times the work of one of hn_oh.
    "tfm": ("people", 119, ("tfm",), (16_384,)),
}


def get_config(encoder="modules"):
    config = common.proxy_config("dexed", encoder)
    config.name = f"voices_{encoder}"

    config.audio_model = "transport640"
    config.data = "data/voices"
    config.validation = (128, 64)
    config.num_test = 4_096
    config.shard_size = 2_048
    config.update(_DRAWN["people"])
    config.num_train = 131_072

    config.equivalent = True
    config.contrastive.update({"weight": 0.1, "temperature": 0.04})
    # Averages in decibels are far from zero.
    config.center = True
    config.average = 0.999
    config.batch = 256
    config.epochs = 24
    config.optimizer.update(
        {
            "learning_rate": 1e-3,
            "minimum": 1e-5,
            "warmup_steps": 500,
            "warmup_factor": 0.1,
            "restart_steps": 0,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
        }
    )
    # To the end, whatever the command line says of these.
    presets = config.get_ref("train_rows") + _VOICES
    steps = presets // config.get_ref("batch") * config.get_ref("epochs")
    config.optimizer.cosine_steps = steps - 500

    config.evaluation.update({"subset": 3_144, "repeats": 10})
    return config


def _compared(plan: str, encoder: str, presets: int) -> Any:
    drawn, steps, _, sizes = _PLANS[plan]
    config = get_config(encoder)
    config.name = f"voices_{plan}_{encoder}_{presets}"
    config.update(_DRAWN[drawn])
    # One folder for most plans.
    config.num_train = max(65_536, *sizes)
    config.data = f"data/voices_{drawn}_{config.num_train}"
    config.train_rows = presets
    if config.source == "both":
        presets += _VOICES
    epoch = presets // config.batch
    config.epochs = max(round(steps / epoch), 1)
    config.average = 0.99
    config.optimizer.warmup_steps = 100
    config.optimizer.cosine_steps = config.epochs * epoch - 100
    config.evaluation.repeats = 1
    return config


def get_plan(name: str = "people") -> dict[str, Any]:
    """A comparison, see `configs.paper.get_plan`.

    Args:
      name: "people", "uniform", "tokens", "longer", "paper" or "tfm".

    Raises:
      ValueError: for another name.
    """
    if name not in _PLANS:
        raise ValueError(f"no plan {name!r}; there are {', '.join(_PLANS)}")
    _, _, encoders, sizes = _PLANS[name]
    return {
        "name": f"voices_{name}",
        "proxies": [
            _compared(name, encoder, presets)
            for encoder in encoders
            for presets in sizes
        ],
        "tuned": [],
        "matches": [],
    }
