"""OpenL3: an audio-visual correspondence network's audio half, frozen.

Network after Cramer, Wu, Salamon and Bello, "Look, Listen, and Learn More:
Design Choices for Deep Audio Embeddings" (ICASSP 2019,
https://github.com/marl/openl3): eight 3x3 convolutions on the spectrogram of
one second at 48 kHz, and a maximum over a grid of 4 x 3 places (6,144 numbers)
or over everything (512).

The front end is the one that the published weights were trained with, kapre
0.1.4's, which the study's port keeps, too; the current OpenL3 package uses
kapre 0.3, whose mel bands are others (Slaney's scale, on magnitudes).

The variables are a tree `{"params": ..., "batch_stats": ...}`, made by `init`
or, from published weights, by `proxy.published.openl3`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from proxy.audio import spectral

SAMPLE_RATE = 48_000
WINDOW = 48_000
HOP = 242
CHANNELS = (1, 64, 64, 128, 128, 256, 256, 512, 512)
SIZES = (512, 6144)
CONTENTS = ("music", "env")

_FLOOR, _RANGE = 1e-10, 80.0

Variables = Mapping[str, Any]
Spectrum = Literal["linear", "mel128", "mel256"]


@dataclasses.dataclass(frozen=True)
class _FrontEnd:
    """A spectrogram of one second and the last map it becomes."""

    fft_size: int
    mels: int | None
    last: tuple[int, int]


_FRONT_ENDS: dict[Spectrum, _FrontEnd] = {
    "linear": _FrontEnd(512, None, (32, 24)),
    "mel128": _FrontEnd(2048, 128, (16, 24)),
    "mel256": _FrontEnd(2048, 256, (32, 24)),
}
SPECTRA = tuple(_FRONT_ENDS)


def shapes() -> dict[str, Any]:
    """The variable tree with shapes in place of arrays.

    It is the same for every kind of spectrogram and both sizes. Layer n
    normalises its input, rectifies it (all but the first) and convolves it:
    `norm_n`, then `conv_n` with `[height, width, inputs, outputs]`.
    """
    params: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    for number in range(1, len(CHANNELS)):
        inputs, outputs = CHANNELS[number - 1 : number + 1]
        vector = (inputs,)
        params[f"norm_{number}"] = {"scale": vector, "bias": vector}
        statistics[f"norm_{number}"] = {"mean": vector, "var": vector}
        params[f"conv_{number}"] = {
            "kernel": (3, 3, inputs, outputs),
            "bias": (outputs,),
        }
    return {"params": params, "batch_stats": statistics}


def init(key: PRNGKeyArray) -> dict[str, Any]:
    """Random variables: He-normal kernels, normalisation as the identity."""
    variables = jax.tree.map(
        jnp.zeros, shapes(), is_leaf=lambda node: isinstance(node, tuple)
    )
    keys = jax.random.split(key, len(CHANNELS) - 1)
    for number, one in enumerate(keys, 1):
        norm, conv = f"norm_{number}", f"conv_{number}"
        params = variables["params"]
        params[norm]["scale"] += 1
        variables["batch_stats"][norm]["var"] += 1
        shape = params[conv]["kernel"].shape
        noise = jax.random.normal(one, shape)
        params[conv]["kernel"] = noise * (2 / (9 * shape[2])) ** 0.5
    return variables


def front_end(
    audio: Float[Array, "batch samples"], spectrum: Spectrum
) -> Float[Array, "batch bins frames"]:
    """Spectrograms of windows of one second, in dB below their maximum.

    `linear`: magnitudes of 257 bins, periodic Hann window of 512 samples, no
    padding. `mel128` and `mel256`: periodic Hann window of 2,048 samples,
    zeros before (982) and after, so that there are 199 frames; power; HTK mel
    triangles of equal area from 0 to 24 kHz; square root. Both: hop 242,
    10 log10(max(x, 1e-10)) of these amplitudes, minus the window's maximum,
    at least -80.

    Args:
      audio: clips of one second each, at 48 kHz.
      spectrum: kind of the spectrogram.

    Returns:
      `[batch, 257, 197]`, `[batch, 128, 199]` or `[batch, 256, 199]`.
    """
    end = _FRONT_ENDS[spectrum]
    size = end.fft_size
    if end.mels is not None:
        # Keras pads for a stride as if every step counted in full.
        spare = size - audio.shape[-1] % HOP
        audio = jnp.pad(audio, ((0, 0), (spare // 2, spare - spare // 2)))
    frames = spectral.frames(audio, size, HOP) * spectral.hann(size)
    power = spectral.power(jnp.fft.rfft(frames))
    if end.mels is not None:
        bank = spectral.mel_bank(
            end.mels,
            sample_rate=SAMPLE_RATE,
            fft_size=size,
            low=0.0,
            high=SAMPLE_RATE / 2,
            area_norm=True,
        )
        power = jnp.dot(power, bank, precision="highest")
    # Half the logarithm of the power is the logarithm of its root, and has a
    # gradient on silence.
    level = spectral.decibels(power, _FLOOR**2) / 2
    level = level - level.max(axis=(1, 2), keepdims=True)
    return jnp.swapaxes(jnp.maximum(level, -_RANGE), 1, 2)


def features(
    variables: Variables,
    spectrogram: Float[Array, "batch bins frames"],
    *,
    dtype: Any = jnp.float32,
) -> Float[Array, "batch rows columns channels"]:
    """The last map, an eighth of the spectrogram in height and width."""
    x = spectrogram[..., None]
    for number in range(1, len(CHANNELS)):
        norm = variables["params"][f"norm_{number}"]
        statistics = variables["batch_stats"][f"norm_{number}"]
        scale = norm["scale"] * lax.rsqrt(statistics["var"] + 1e-3)
        x = (x - statistics["mean"]) * scale + norm["bias"]
        if number > 1:
            x = jax.nn.relu(x)
        if number in (3, 5, 7):
            x = lax.reduce_window(
                x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
        layer = variables["params"][f"conv_{number}"]
        x = lax.conv_general_dilated(
            x.astype(dtype),
            layer["kernel"].astype(dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        # Everything between the convolutions is in float32.
        x = x.astype(jnp.float32) + layer["bias"]
    return x


def windows(samples: int) -> int:
    """Number of windows of a clip: 5 for 5 s."""
    return max(1, -(-samples // WINDOW))


def embed(
    variables: Variables,
    audio: Float[Array, "batch samples"],
    *,
    spectrum: Spectrum = "mel256",
    size: int = 512,
    dtype: Any = jnp.float32,
    at_once: int | None = None,
) -> Float[Array, "batch embedding"]:
    """The embedding of the study: the mean over windows of one second.

    The windows do not overlap, the first one starts with the clip and the
    last one is filled up with zeros (hop 1 s, not centred, in OpenL3's terms).

    Args:
      variables: variables of the network for that spectrum.
      audio: clips at 48 kHz, in [-1, 1].
      spectrum: kind of spectrogram that the weights belong to.
      size: 512 or 6,144.
      dtype: what the convolutions compute in; the result is float32.
      at_once: clips worked on together, see `spectral.by_clip`. By default
        one on a CPU and 16 elsewhere.

    Returns:
      `[batch, size]`; 6,144 numbers are 4 x 3 places (frequency, time) of 512
      channels.

    Raises:
      ValueError: for another size.
    """
    if size not in SIZES:
        raise ValueError(f"OpenL3 embeddings have 512 or 6144 numbers: {size}.")
    rows, columns = _FRONT_ENDS[spectrum].last
    if size == max(SIZES):
        rows, columns = rows // 4, columns // 3

    def embed_clips(clips):
        batch, samples = clips.shape
        missing = windows(samples) * WINDOW - samples
        seconds = jnp.pad(clips, ((0, 0), (0, missing))).reshape(-1, WINDOW)
        maps = features(variables, front_end(seconds, spectrum), dtype=dtype)
        pool = (1, rows, columns, 1)
        pooled = lax.reduce_window(maps, -jnp.inf, lax.max, pool, pool, "VALID")
        return pooled.reshape(batch, -1, size).mean(axis=1)

    return spectral.by_clip(embed_clips, audio, at_once, elsewhere=16)
