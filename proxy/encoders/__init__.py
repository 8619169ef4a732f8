"""Preset encoders by name: relaxed preset → predicted audio embedding.

Every encoder is a Linen module with the same face:

    encoder = build("hn_oh", space, dimension=192)
    variables = encoder.init(key, relaxed)
    embedding, new = encoder.apply(
        variables, relaxed, train=True, mutable=["batch_stats"]
    )

The names and default sizes are the paper's, but for `modules` and
`modules_tfm`, which are not in it.
"""

import dataclasses
import difflib
from typing import Any

import flax.linen as nn

from proxy.encoders import gru, mlp, modules, transformer
from proxy.space import ParameterSpace

_ENCODERS: dict[str, type[nn.Module]] = {
    "mlp_raw": mlp.RawMLP,
    "mlp_oh": mlp.MLP,
    "rn_oh": mlp.Residual,
    "hn_oh": mlp.Highway,
    "hn_pt": mlp.TokenHighway,
    "hn_ptgru": gru.TokenGRUHighway,
    "gru_oh": gru.GRU,
    "tfm": transformer.Transformer,
    "modules": modules.Modules,
    "modules_tfm": modules.ModuleTransformer,
}


def names() -> tuple[str, ...]:
    """Names of all encoders."""
    return tuple(_ENCODERS)


def get(name: str) -> type[nn.Module]:
    """The module class of an encoder.

    Args:
      name: one of `names()`.

    Returns:
      The class; its attributes are its sizes.

    Raises:
      ValueError: for an unknown name; lists the known ones.
    """
    if name not in _ENCODERS:
        near = difflib.get_close_matches(name, _ENCODERS, n=1)
        raise ValueError(
            f"unknown encoder {name!r}"
            + (f", did you mean {near[0]!r}?" if near else "")
            + f" Known: {', '.join(_ENCODERS)}"
        )
    return _ENCODERS[name]


def build(
    name: str, space: ParameterSpace, dimension: int, **sizes: Any
) -> nn.Module:
    """Makes an encoder.

    Args:
      name: one of `names()`.
      space: the parameter space it reads.
      dimension: size of the audio embedding.
      **sizes: attributes of the class that differ from the paper's, among
        them `axis_name` (mapped axis to share batch statistics over) and
        `dtype` (compute type; parameters stay float32).

    Returns:
      The module.

    Raises:
      ValueError: for an unknown name or size; lists the known ones.
    """
    encoder = get(name)
    known = {f.name for f in dataclasses.fields(encoder)} - {
        "space",
        "dimension",
        "parent",
        "name",
    }
    unknown = sorted(set(sizes) - known)
    if unknown:
        raise ValueError(
            f"encoder {name} has no size {', '.join(unknown)}; it has "
            + ", ".join(sorted(known))
        )
    return encoder(space=space, dimension=dimension, **sizes)
