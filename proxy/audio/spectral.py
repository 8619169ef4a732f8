"""Spectra of audio: framing, STFT, mel bands and MFCC as pure functions.

Everything here takes `[*batch, samples]` and is differentiable. Constant
tables (windows, filter banks, cosine transforms) are NumPy arrays computed in
float64 and rounded once, so that under `jit` they are compile-time constants.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

MelScale = Literal["htk", "slaney", "kaldi"]


def hann(size: int, *, periodic: bool = True) -> np.ndarray:
    """Hann window, float32.

    Args:
      size: number of samples, at least 2.
      periodic: one period of the raised cosine without its repeated end point
        (the usual choice for an STFT); otherwise symmetric, both ends zero.

    Returns:
      The window, `[size]`.
    """
    if size < 2:
        raise ValueError(f"A Hann window needs 2 samples or more, not {size}.")
    last = size if periodic else size - 1
    phase = 2 * np.pi * np.arange(size) / last
    return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


def pre_emphasis(
    audio: Float[Array, "*batch samples"], coefficient: float = 0.97
) -> Float[Array, "*batch shorter"]:
    """First-order high-pass y[n] = x[n + 1] - coefficient x[n].

    No padding: the result is one sample shorter.
    """
    return audio[..., 1:] - coefficient * audio[..., :-1]


def frames(
    audio: Float[Array, "*batch samples"], size: int, hop: int
) -> Float[Array, "*batch frames size"]:
    """Overlapping frames; samples after the last whole frame are dropped.

    Args:
      audio: clips of at least `size` samples.
      size: samples per frame.
      hop: samples between the starts of two frames.

    Returns:
      `1 + (samples - size) // hop` frames.

    Raises:
      ValueError: when the audio is shorter than one frame.
    """
    samples = audio.shape[-1]
    if samples < size:
        raise ValueError(
            f"Audio of {samples} samples is shorter than one frame of {size}."
        )
    count = 1 + (samples - size) // hop
    # A frame is ceil(size / hop) consecutive rows of `hop` samples. Slices of
    # one reshaped array are plain copies, where an index array would be a
    # gather, which XLA runs sample by sample on the CPU.
    per_frame = -(-size // hop)
    rows = count + per_frame - 1
    missing = rows * hop - samples
    if missing > 0:
        padding = [(0, 0)] * (audio.ndim - 1) + [(0, missing)]
        audio = jnp.pad(audio, padding)
    table = audio[..., : rows * hop].reshape(*audio.shape[:-1], rows, hop)
    parts = [table[..., i : i + count, :] for i in range(per_frame)]
    parts[-1] = parts[-1][..., : size - (per_frame - 1) * hop]
    return jnp.concatenate(parts, axis=-1)


def stft(
    audio: Float[Array, "*batch samples"],
    window: np.ndarray,
    *,
    fft_size: int,
    hop: int,
) -> Complex[Array, "*batch frames bins"]:
    """Short-time Fourier transform of centred, reflect-padded frames.

    Frame i is centred on sample `i * hop`; the audio is reflected (without
    repeating its end samples) by half an FFT on both sides. A window shorter
    than the FFT is centred in it.

    Args:
      audio: clips of more than `fft_size / 2` samples.
      window: `[window_size]`, `window_size <= fft_size`.
      fft_size: even number of points of the transform.
      hop: samples between two frames.

    Returns:
      `1 + samples // hop` frames of `fft_size / 2 + 1` bins.

    Raises:
      ValueError: when the audio is too short to be reflected, or the window
        is longer than the transform.
    """
    half = fft_size // 2
    if audio.shape[-1] <= half:
        raise ValueError(
            f"Audio of {audio.shape[-1]} samples is too short for a centred "
            f"transform of {fft_size} points: give more than {half} samples."
        )
    spare = fft_size - len(window)
    if spare < 0:
        raise ValueError(
            f"A window of {len(window)} samples does not fit into a transform "
            f"of {fft_size} points."
        )
    window = np.pad(window, (spare // 2, spare - spare // 2))
    padding = [(0, 0)] * (audio.ndim - 1) + [(half, half)]
    padded = jnp.pad(audio, padding, mode="reflect")
    return jnp.fft.rfft(frames(padded, fft_size, hop) * window)


def power(spectrum: Complex[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Squared magnitude; its gradient is finite (zero) on silence."""
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def decibels(
    power: Float[Array, "*shape"], floor: float = 1e-8
) -> Float[Array, "*shape"]:
    """10 log10(max(power, floor)) in dB."""
    return (10 / np.log(10)) * jnp.log(jnp.maximum(power, floor))


def hz_to_mel(hz: np.ndarray | float, scale: MelScale = "htk") -> np.ndarray:
    """Frequency in Hz to mel.

    `htk`: 2595 log10(1 + f/700). `kaldi`: 1127 ln(1 + f/700), as in Kaldi's
    `mel-computations.h`. `slaney`: linear (3 mel per 200 Hz) up to 1 kHz, then
    27 mel per factor 6.4 (Auditory Toolbox, Slaney 1998).
    """
    hz = np.asarray(hz, np.float64)
    if scale == "htk":
        return np.asarray(2595 * np.log10(1 + hz / 700))
    if scale == "kaldi":
        return np.asarray(1127 * np.log(1 + hz / 700))
    if scale == "slaney":
        above = 15 + 27 / np.log(6.4) * np.log(np.maximum(hz, 1000) / 1000)
        return np.where(hz < 1000, hz * 3 / 200, above)
    raise ValueError(f"Unknown mel scale {scale!r}: use htk, slaney or kaldi.")


def mel_to_hz(mel: np.ndarray | float, scale: MelScale = "htk") -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    if scale == "htk":
        return np.asarray(700 * (10 ** (mel / 2595) - 1))
    if scale == "kaldi":
        return np.asarray(700 * (np.exp(mel / 1127) - 1))
    if scale == "slaney":
        above = 1000 * np.exp(np.log(6.4) / 27 * (np.maximum(mel, 15) - 15))
        return np.where(mel < 15, mel * 200 / 3, above)
    raise ValueError(f"Unknown mel scale {scale!r}: use htk, slaney or kaldi.")


def mel_bank(
    mels: int,
    *,
    sample_rate: int,
    fft_size: int,
    low: float,
    high: float,
    scale: MelScale = "htk",
    area_norm: bool = False,
) -> np.ndarray:
    """Triangular mel filters, float32.

    The corner frequencies lie at equal distances on the mel scale. With
    `htk` and `slaney` the flanks are straight in Hz; with `kaldi` they are
    straight in mel, and the Nyquist bin belongs to no filter.

    Args:
      mels: number of filters.
      sample_rate: sample rate, in Hz.
      fft_size: points of the transform the filters apply to.
      low: lower corner of the first filter in Hz.
      high: upper corner of the last filter in Hz.
      scale: the mel scale.
      area_norm: whether to divide each triangle by its area in Hz (Slaney's
        norm) instead of giving it height 1.

    Returns:
      `[bins, mels]` with `fft_size / 2 + 1` bins.
    """
    corners = np.linspace(
        hz_to_mel(low, scale), hz_to_mel(high, scale), mels + 2
    )
    hz = sample_rate / fft_size * np.arange(fft_size // 2 + 1)
    hertz_corners = mel_to_hz(corners, scale)
    if scale == "kaldi":
        bins = hz_to_mel(hz, scale)
    else:
        corners, bins = hertz_corners, hz
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    bank = np.maximum(0, np.minimum(rising, falling))
    if scale == "kaldi":
        bank[-1] = 0
    if area_norm:
        bank = bank * 2 / (hertz_corners[2:] - hertz_corners[:-2])
    return bank.astype(np.float32)


def dct(size: int, coefficients: int) -> np.ndarray:
    """Orthonormal DCT-II as a matrix, `[size, coefficients]`, float32."""
    if coefficients > size:
        raise ValueError(
            f"{size} bands have {size} cosine coefficients, not {coefficients}."
        )
    position = (np.arange(size)[:, None] + 0.5) / size
    matrix = np.cos(np.pi * position * np.arange(coefficients))
    matrix *= np.sqrt(2 / size)
    matrix[:, 0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def by_clip(
    function: Callable[
        [Float[Array, "batch samples"]], Float[Array, "batch *embedding"]
    ],
    audio: Float[Array, "batch samples"],
    at_once: int | None = None,
    *,
    on_cpu: int = 1,
    elsewhere: int = 0,
) -> Float[Array, "batch *embedding"]:
    """Applies a batched function a few clips at a time.

    On a CPU an embedding is bound by memory unless the intermediate arrays of
    the clips in work stay in the cache; an accelerator wants them all at once.

    Args:
      function: maps clips to embeddings (or several each), row by row.
      audio: the clips.
      at_once: clips per call; 0 for the whole batch, None for the default.
      on_cpu: the default on a CPU, which `jax.default_backend()` says it is.
      elsewhere: the default on an accelerator.

    Returns:
      The same as `function(audio)`.
    """
    if at_once is None:
        at_once = on_cpu if jax.default_backend() == "cpu" else elsewhere
    batch = audio.shape[0]
    if at_once == 0 or at_once >= batch:
        return function(audio)
    steps = -(-batch // at_once)
    # The last step is filled up: a smaller one would be compiled again.
    audio = jnp.pad(audio, ((0, steps * at_once - batch), (0, 0)))
    chunks = audio.reshape(steps, at_once, -1)
    done = jax.lax.map(function, chunks)
    return done.reshape(steps * at_once, *done.shape[2:])[:batch]
