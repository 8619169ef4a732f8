"""Frozen audio models, by name."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float

from proxy.audio import baselines

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class AudioModel:
    """A frozen map from clips to embeddings.

    Attributes:
      name: Its name in the registry.
      sample_rate: Rate of the clips it takes, in Hz.
      dimension: Length of an embedding.
      embed: Pure, jittable: `(variables, [batch, samples])` to
        `[batch, dimension]`. Samples are in [-1, 1].
      weights: Name of the published weights whose variables `embed` takes;
        None for a model without weights, which takes `{}`.
    """

    name: str
    sample_rate: int
    dimension: int
    embed: Callable[
        [Variables, Float[Array, "batch samples"]],
        Float[Array, "batch embedding"],
    ]
    weights: str | None = None


def _baseline(name: str, dimension: int, function: Callable) -> AudioModel:
    def embed(
        variables: Variables, audio: Float[Array, "batch samples"]
    ) -> Float[Array, "batch embedding"]:
        del variables
        return function(audio)

    return AudioModel(name, baselines.SAMPLE_RATE, dimension, embed)


_MODELS = {
    model.name: model
    for model in (
        _baseline("mel128", 128, baselines.mel128),
        _baseline("mfcc40", 40, baselines.mfcc40),
        _baseline("mstft", 1795, baselines.mstft),
    )
}


def names() -> tuple[str, ...]:
    """Names of all audio models."""
    return tuple(_MODELS)


def get(name: str) -> AudioModel:
    """The audio model of that name.

    Raises:
      ValueError: For an unknown name; lists near and known names.
    """
    if name in _MODELS:
        return _MODELS[name]
    near = difflib.get_close_matches(name, _MODELS, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"Unknown audio model {name!r}.{hint} Known: {', '.join(_MODELS)}."
    )
