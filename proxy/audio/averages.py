"""Weight-free audio models: time averages of classic spectral features.

All take clips at 44.1 kHz, any length above half the longest transform.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from proxy.audio import spectral

SAMPLE_RATE = 44_100

# Mean and spread in dB that bring mel bands of ordinary audio to about zero
# mean and unit variance; the constants of the paper's mel features.
_OFFSET, _SCALE = 4.2677393, 4.5689974
_FFT, _HOP, _MELS = 2048, 1024, 128
_MSTFT = (512, 1024, 2048)


def _log_power(
    audio: Float[Array, "batch samples"],
    size: int,
    bank: np.ndarray | None = None,
) -> Float[Array, "batch frames bands"]:
    """Normalised dB of a half-overlapping Hann STFT, or of its mel bands."""
    window = spectral.hann(size)
    # Dividing the window is dividing the STFT by the window's L2 norm.
    window = window / np.linalg.norm(window)
    spectrum = spectral.stft(audio, window, fft_size=size, hop=size // 2)
    power = spectral.power(spectrum)
    if bank is not None:
        # The default of accelerators is less than float32.
        power = jnp.dot(power, bank, precision="highest")
    return (spectral.decibels(power) + _OFFSET) / _SCALE


def mel128(
    audio: Float[Array, "batch samples"], *, at_once: int | None = None
) -> Float[Array, "batch mels"]:
    """Time average of a 128-band log mel spectrogram.

    Periodic Hann window of 2,048 samples, hop 1,024, centred and reflect
    padded; STFT divided by the window's L2 norm; power; 128 HTK triangles from
    20 to 16,000 Hz, of height 1; 10 log10(max(., 1e-8)); then
    (dB + 4.2677393) / 4.5689974; mean over frames.

    Args:
      audio: clips at 44.1 kHz, more than 1,024 samples.
      at_once: clips worked on together, see `spectral.by_clip`.

    Returns:
      `[batch, 128]`.
    """
    bank = spectral.mel_bank(
        _MELS, sample_rate=SAMPLE_RATE, fft_size=_FFT, low=20.0, high=16_000.0
    )

    def embed(clips):
        return _log_power(clips, _FFT, bank).mean(axis=-2)

    return spectral.by_clip(embed, audio, at_once)


def mfcc40(
    audio: Float[Array, "batch samples"], *, at_once: int | None = None
) -> Float[Array, "batch coefficients"]:
    """Time average of 40 MFCC: orthonormal DCT-II of the bands of `mel128`.

    Args:
      audio: clips at 44.1 kHz, more than 1,024 samples.
      at_once: clips worked on together, see `spectral.by_clip`.

    Returns:
      `[batch, 40]`.
    """
    # The transform is linear: averaging first gives the same and costs less.
    bands = mel128(audio, at_once=at_once)
    return jnp.dot(bands, spectral.dct(_MELS, 40), precision="highest")


def mstft(
    audio: Float[Array, "batch samples"], *, at_once: int | None = None
) -> Float[Array, "batch bins"]:
    """Time average of a multi-resolution log spectrogram.

    Our definition: for windows of 512, 1,024 and 2,048 samples, in this
    order, the log power in all bins of a periodic-Hann STFT with a hop of half
    a window, treated exactly as the power before the mel bands of `mel128`
    (centred, reflect padded, divided by the window's L2 norm, 10 log10(max(.,
    1e-8)), (dB + 4.2677393) / 4.5689974), averaged over frames, concatenated.

    Args:
      audio: clips at 44.1 kHz, more than 1,024 samples.
      at_once: clips worked on together, see `spectral.by_clip`.

    Returns:
      `[batch, 257 + 513 + 1025]`.
    """

    def embed(clips):
        means = [_log_power(clips, size).mean(axis=-2) for size in _MSTFT]
        return jnp.concatenate(means, axis=-1)

    return spectral.by_clip(embed, audio, at_once)
