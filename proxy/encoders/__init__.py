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
from typing import Any

import flax.linen as nn

from proxy import unknown
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

# What the tokens of a few presets leave behind stays in a CPU's cache.
_AT_ONCE: dict[type[nn.Module], int] = {transformer.Transformer: 4}


def names() -> tuple[str, ...]:
    """Names of all encoders."""
    return tuple(_ENCODERS)


def get(name: str) -> type[nn.Module]:
    """The module class of an encoder.

    Returns:
      The class; its attributes are its sizes.

    Raises:
      ValueError: for an unknown name; lists the known ones.
    """
    if name not in _ENCODERS:
        raise ValueError(unknown("encoder", name, _ENCODERS))
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
    for size in set(sizes) - known:
        raise ValueError(unknown(f"size of {name}", size, sorted(known)))
    return encoder(space=space, dimension=dimension, **sizes)


def presets_at_once(encoder: nn.Module) -> int:
    """How many presets go through an encoder together on a CPU, for speed.

    Returns:
      The number for a pass forward and back; 0 for the whole batch, which is
      what dense encoders, and accelerators, want.
    """
    return _AT_ONCE.get(type(encoder), 0)
