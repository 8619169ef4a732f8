"""Frozen audio models, by name.

`mel128`, `mfcc40`, `mstft`: averaged spectral features at 44.1 kHz, without
weights. `mn01` to `mn40`: EfficientAT at 32 kHz as the paper embeds with it
(averages over windows of 160 ms); `_mel` puts 128 mel averages first;
`_scene` and `_scene_mel` are the cheaper embeddings of the whole clip at once,
which are spaces of their own.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float

from proxy.audio import baselines, efficientat

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


def _efficientat(weights: str, *, scene: bool, mel: bool) -> AudioModel:
    embed = efficientat.embed_scene if scene else efficientat.embed
    return AudioModel(
        weights + ("_scene" if scene else "") + ("_mel" if mel else ""),
        efficientat.SAMPLE_RATE,
        efficientat.dimension(efficientat.WIDTHS[weights], mel=mel),
        functools.partial(embed, mel=mel),
        weights,
    )


_MODELS = {
    model.name: model
    for model in (
        _baseline("mel128", 128, baselines.mel128),
        _baseline("mfcc40", 40, baselines.mfcc40),
        _baseline("mstft", 1795, baselines.mstft),
        *(
            _efficientat(weights, scene=scene, mel=mel)
            for weights in efficientat.WIDTHS
            for scene in (False, True)
            for mel in (False, True)
        ),
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
