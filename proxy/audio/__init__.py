"""Frozen audio models, by name.

`mel128`, `mfcc40`, `mstft`: averaged spectral features at 44.1 kHz, without
weights. `transport640`: cumulative distributions of a mel spectrogram at
32 kHz, without weights, made so that distances grow with every attribute.

`mn01` to `mn40`: EfficientAT at 32 kHz as the paper embeds with it (averages
over windows of 160 ms); `_mel` puts 128 mel averages first; `_scene` and
`_scene_mel` are the cheaper embeddings of the whole clip at once, which are
spaces of their own.

The other models of the paper's study: `openl3_{linear,mel128,mel256}_{music,
env}_{512,6144}` at 48 kHz; `passt_s` and `passt_l` at 32 kHz, and their cheaper
`_scene` forms; `audiomae` at 44.1 kHz, as the study has it, and
`audiomae_16k`. `clap`, `dac`, `dac_latents`, `m2l` and `m2l_features` run
outside JAX, in a PyTorch library that the user installs: they make data sets,
but no gradient comes through them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from proxy import unknown
from proxy.audio import (
    audiomae,
    averages,
    efficientat,
    openl3,
    passt,
    transport,
)

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class AudioModel:
    """A frozen map from clips to embeddings.

    Attributes:
      name: name of the model in the registry.
      sample_rate: rate of the clips it takes, in Hz.
      dimension: length of an embedding.
      embed: pure, jittable: `(variables, [batch, samples])` to
        `[batch, dimension]`. Samples are in [-1, 1].
      weights: name of the published weights whose variables `embed` takes;
        None for a model without weights, which takes `{}`.
      init: a function from a key to random variables of the right shapes,
        for timings and tests; None for a model without weights or outside JAX.
      host: name of the library that computes it, for a model outside JAX:
        `datasets.weights.hosts` runs it, and `embed` raises a ValueError.
    """

    name: str
    sample_rate: int
    dimension: int
    embed: Callable[
        [Variables, Float[Array, "batch samples"]],
        Float[Array, "batch embedding"],
    ]
    weights: str | None = None
    init: Callable[[PRNGKeyArray], Variables] | None = None
    host: str | None = None

    @property
    def differentiable(self) -> bool:
        """Whether gradients pass, and `embed` may be compiled."""
        return self.host is None


def _baseline(
    name: str,
    dimension: int,
    function: Callable,
    sample_rate: int = averages.SAMPLE_RATE,
) -> AudioModel:
    def embed(
        variables: Variables, audio: Float[Array, "batch samples"]
    ) -> Float[Array, "batch embedding"]:
        del variables
        return function(audio)

    return AudioModel(name, sample_rate, dimension, embed)


def _efficientat(weights: str, *, scene: bool, mel: bool) -> AudioModel:
    embed = efficientat.embed_scene if scene else efficientat.embed
    return AudioModel(
        weights + ("_scene" if scene else "") + ("_mel" if mel else ""),
        efficientat.SAMPLE_RATE,
        efficientat.dimension(efficientat.WIDTHS[weights], mel=mel),
        functools.partial(embed, mel=mel),
        weights,
        functools.partial(efficientat.init, width=efficientat.WIDTHS[weights]),
    )


def _openl3(spectrum: openl3.Spectrum, content: str, size: int) -> AudioModel:
    weights = f"openl3_{spectrum}_{content}"
    return AudioModel(
        f"{weights}_{size}",
        openl3.SAMPLE_RATE,
        size,
        functools.partial(openl3.embed, spectrum=spectrum, size=size),
        weights,
        openl3.init,
    )


def _passt(weights: str, *, scene: bool) -> AudioModel:
    return AudioModel(
        weights + ("_scene" if scene else ""),
        passt.SAMPLE_RATE,
        passt.WIDTH if scene else passt.DIMENSION,
        passt.embed_scene if scene else passt.embed,
        weights,
        functools.partial(passt.init, depth=passt.DEPTHS[weights]),
    )


def _audiomae(name: str, sample_rate: int) -> AudioModel:
    return AudioModel(
        name,
        sample_rate,
        audiomae.WIDTH,
        functools.partial(audiomae.embed, sample_rate=sample_rate),
        "audiomae",
        audiomae.init,
    )


def _host(
    name: str, host: str, sample_rate: int, dimension: int, weights: str
) -> AudioModel:
    """A model that `datasets.weights.hosts` runs."""

    def embed(
        variables: Variables, audio: Float[Array, "batch samples"]
    ) -> Float[Array, "batch embedding"]:
        del variables, audio
        raise ValueError(
            f"Audio model {name!r} runs in {host}, outside JAX, and is not "
            "differentiable: it can make data sets, and nothing else."
        )

    return AudioModel(name, sample_rate, dimension, embed, weights, host=host)


_MODELS = {
    model.name: model
    for model in (
        _baseline("mel128", 128, averages.mel128),
        _baseline("mfcc40", 40, averages.mfcc40),
        _baseline("mstft", 1795, averages.mstft),
        _baseline(
            "transport640",
            transport.DIMENSION,
            transport.transport640,
            transport.SAMPLE_RATE,
        ),
        *(
            _efficientat(weights, scene=scene, mel=mel)
            for weights in efficientat.WIDTHS
            for scene in (False, True)
            for mel in (False, True)
        ),
        *(
            _openl3(spectrum, content, size)
            for spectrum in openl3.SPECTRA
            for content in openl3.CONTENTS
            for size in openl3.SIZES
        ),
        *(
            _passt(weights, scene=scene)
            for weights in passt.DEPTHS
            for scene in (False, True)
        ),
        _audiomae("audiomae", audiomae.STUDY_RATE),
        _audiomae("audiomae_16k", audiomae.TRAINED_RATE),
        _host("clap", "transformers", 48_000, 512, "laion/larger_clap_music"),
        _host("dac", "transformers", 44_100, 1024, "descript/dac_44khz"),
        _host("dac_latents", "transformers", 44_100, 72, "descript/dac_44khz"),
        _host("m2l", "music2latent", 44_100, 64, "music2latent"),
        _host("m2l_features", "music2latent", 44_100, 8192, "music2latent"),
    )
}


def names() -> tuple[str, ...]:
    """Names of all audio models."""
    return tuple(_MODELS)


def get(name: str) -> AudioModel:
    """The audio model of that name.

    Raises:
      ValueError: for an unknown name; lists near and known names.
    """
    if name in _MODELS:
        return _MODELS[name]
    raise ValueError(unknown("audio model", name, _MODELS))
