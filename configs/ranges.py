"""What the fields of an experiment may be: one table, checked at once.

A range is an interval: `[0, 1)` holds 0 and not 1. Names of encoders, audio
models and the like are checked where they are looked up.
"""

import re
import reprlib
from collections.abc import Mapping
from typing import Any

_TEXT = "a name or path"
_STEPS = "whole [0, 1e12]"
_ROWS = "whole [1, 4e9]"  # numbered in 32 bits
_SEED = "whole [0, 9e18]"
_SECONDS = "(0, 600]"

FIELDS: dict[str, str | tuple[str, ...]] = {
    "kind": ("proxy", "estimator"),
    "name": _TEXT,
    "run": _TEXT,
    "seed": _SEED,
    # Data.
    "synth": _TEXT,
    "audio_model": _TEXT,
    "data": _TEXT,
    "num_train": "whole [0, 4e9]",  # 0: all, of an estimator
    "train_rows": _ROWS,
    "validation": "two whole [1, 1e9]",
    "num_test": _ROWS,
    "synthetic.num_train": _ROWS,
    "synthetic.validation": "two whole [1, 1e9]",
    "synthetic.num_test": _ROWS,
    "stand_in.train": _ROWS,
    "stand_in.validation": _ROWS,
    "stand_in.test": _ROWS,
    "shard_size": "whole [1, 1e7]",
    "embed_batch": "whole [1, 1e5]",
    "data_seed": _SEED,
    "sampling.at_default": "[0, 1)",
    "sampling.at_end": "[0, 1)",
    "render.note": "whole [0, 127]",
    "render.velocity": "whole [1, 127]",
    "render.hold": _SECONDS,
    "render.duration": _SECONDS,
    "render.fade_out": "[0, 600]",
    "render.note_on": "[0, 600]",
    "render.min_rms": "[0, 1e3]",
    "render.max_rms": "[0, 1e3]",
    "engine": ("auto", "jax", "dexed-py"),
    "prior.uniform": "[0, 1e6]",
    "prior.fitted": "[0, 1e6]",
    "prior.variations": "[0, 1e6]",
    "host.isolation": ("", "reset", "flush", "process"),
    "host.warm_up": "[0, 3600] or None",
    "host.timeout": "(0, 1e5] or None",
    "host.dead": "[0, 1] or None",
    "workers": "whole [0, 1e4]",
    # Encoder and estimator.
    "hears": ("spectrogram", "embedding"),
    "network.hidden": "whole [1, 1e5]",
    "network.blocks": "whole [0, 1e3]",
    "network.token": "whole [1, 1e5]",
    "network.noise": "[0, 1e3]",
    "encoder": _TEXT,
    "proxy": _TEXT,
    "sizes.hidden": "whole [1, 1e5] or None",
    "sizes.blocks": "whole [1, 1e3] or None",
    "sizes.layers": "whole [1, 1e3] or None",
    "sizes.token": "whole [1, 1e5] or None",
    "sizes.heads": "whole [1, 1e3] or None",
    "sizes.factor": "(0, 1e3] or None",
    "dtype": ("float32", "bfloat16", "float16"),
    "dropout": "[0, 1)",
    # Loss.
    "start": "[0, 1]",
    "length": "[0, 1]",
    "temperature.first": "(0, 1e6]",
    "temperature.last": "(0, 1e6]",
    "temperature.share": "[0, 1]",
    "label_smoothing": "[0, 1)",
    "contrastive.weight": "[0, 1e6]",
    "contrastive.temperature": "(0, 1e6]",
    # Optimisation.
    "source": ("synthetic", "handcrafted", "both"),
    "epochs": "whole [1, 1e6]",
    "batch": "whole [1, 1e7]",
    "accumulate": "whole [1, 1e6]",
    "devices": "whole [0, 1e5]",
    "average": "[0, 1)",
    "optimizer.learning_rate": "[0, 3e38]",
    "optimizer.minimum": "[0, 3e38]",
    "optimizer.warmup_steps": _STEPS,
    "optimizer.warmup_factor": "[0, 1e6]",
    "optimizer.cosine_steps": _STEPS,
    "optimizer.restart_steps": _STEPS,
    "optimizer.restart_factor": "[0, 1e6]",
    "optimizer.b1": "[0, 1)",
    "optimizer.b2": "[0, 1)",
    "optimizer.eps": "(0, 1]",
    "optimizer.weight_decay": "[0, 1e6]",
    "optimizer.clip_norm": "[0, 3e38]",
    "plateau.factor": "(0, 1)",
    "plateau.patience": "whole [0, 1e6]",
    # Records, validation and test.
    "log_every": "whole [1, 1e12]",
    "checkpoint_minutes": "[0, 1e9]",
    "validate_every": "whole [1, 1e6]",
    "validation_rows": "whole [0, 4e9]",
    "evaluation.subset": "whole [1, 4e9]",
    "evaluation.repeats": "whole [1, 1e6]",
    "evaluation.resamples": "whole [1, 1e8]",
    "evaluation.seed": _SEED,
}

# Fields that a saved config may lack: what reads them knows what that means.
_LATER = {"checkpoints", "data_seed", "host.dead", "hears", "train_rows"}

_INTERVAL = re.compile(r"(two )?(whole )?([\[(])(\S+), (\S+)([\])])( or None)?")


def fits(value: Any, allowed: str | tuple[str, ...]) -> bool:
    """Whether a value is what an entry of the table allows."""
    if isinstance(allowed, tuple):
        return value in allowed
    if allowed == _TEXT:
        return isinstance(value, str) and bool(value.strip())
    match = _INTERVAL.fullmatch(allowed)
    assert match, allowed
    two, whole, left, low, high, right, none = match.groups()
    if two:
        if not isinstance(value, list | tuple) or len(value) != 2:
            return False
        return all(fits(part, allowed.removeprefix(two)) for part in value)
    if value is None:
        return none is not None
    kinds = int if whole else int | float
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    # In this form, what is not a number lies outside.
    above = float(low) < value or (left == "[" and value == float(low))
    below = value < float(high) or (right == "]" and value == float(high))
    return above and below


def _words(allowed: str | tuple[str, ...]) -> str:
    if isinstance(allowed, str):
        return allowed
    return " or ".join(map(repr, allowed))


def unlike(
    content: Mapping[str, Any], usual: Mapping[str, Any], inside: str = ""
) -> list[str]:
    """How the fields of a saved config differ in kind from those of a new one.

    Args:
      content: the saved one.
      usual: a new one, of the same kind of experiment.
      inside: the section that both are, with a dot behind it.

    Returns:
      In words, every field that is missing or of another type; those of the
      table are held against it by `outside`.
    """
    wrong = []
    for name, value in usual.items():
        field = inside + name
        if name not in content:
            if field not in _LATER:
                wrong.append(f"{field} is missing (a new run has {value!r})")
            continue
        found = content[name]
        if isinstance(value, Mapping):
            if isinstance(found, Mapping):
                wrong += unlike(found, value, f"{field}.")
            else:
                wrong.append(
                    f"{field}={reprlib.repr(found)}, need fields in braces"
                )
        elif field not in FIELDS and not isinstance(found, type(value)):
            if value is None and isinstance(found, str):
                continue
            need = "a text" if value is None else f"the like of {value!r}"
            wrong.append(f"{field}={reprlib.repr(found)}, need {need}")
    return wrong


def outside(content: Mapping[str, Any]) -> list[str]:
    """Fields of the table that are out of range, in words.

    Args:
      content: of an experiment; fields that it has not are not missed.
    """
    wrong = []
    for field, allowed in FIELDS.items():
        value: Any = content
        for part in field.split("."):
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
        else:
            if not fits(value, allowed):
                wrong.append(
                    f"{field}={reprlib.repr(value)}, need {_words(allowed)}"
                )
    return wrong


def check(config: Any, kind: str | None = None) -> None:
    """Checks the fields of a config that are in the table.

    Args:
      config: an experiment; fields that it has not are not missed.
      kind: "proxy" or "estimator", where only one of them will do.

    Raises:
      ValueError: listing every field that is out of range, and its range; or
        the config is of another kind.
    """
    content = config.to_dict()
    if kind not in (None, content.get("kind")):
        raise ValueError(
            f"config.kind={content.get('kind')!r}: this needs the experiment "
            f"of {'a proxy' if kind == 'proxy' else 'an estimator'}, see "
            "configs/"
        )
    wrong = [f"config.{field}" for field in outside(content)]
    if wrong:
        raise ValueError(f"out of range: {'; '.join(wrong)}")
