"""A weight-free audio model whose L1 distances grow with how far a sound moved.

Averages of log-mel bands tell *that* an LFO became faster or a partial moved,
not *how far*: once two peaks no longer overlap, their distance saturates.
`transport640` joins four descriptions of the same mel spectrogram, each made
so that L1 distances keep growing, and scaled to weigh about the same:

1. **Spectrum**, 128: the mel bands of the mean power, in dB. Level and
   colour. Averaging power before the logarithm, not after, makes it
   independent of how long the silence around a sound is, but for a constant.
2. **Distribution over frequency**, 128: the cumulative sum of the loudness of
   the same bands, divided by its total. Loudness is power to the 0.3 (S. S.
   Stevens, "The measurement of loudness", JASA 27, 1955). The L1 distance of
   two cumulative distributions is the least work that turns one into the other
   (Wasserstein's distance in one dimension: S. S. Vallender, "Calculation of
   the Wasserstein distance between probability distributions on the line",
   Theory of Probability and Its Applications 18, 1974), so it is proportional
   to a shift of pitch, of a formant or of a cutoff frequency.
3. **Growth over time**, 16 x 16: for 16 groups of bands, compressed power
   summed from the start up to 16 equally spaced moments. The exponent is half
   of Stevens's, for the tails of decays to count. Not divided by its total: an
   envelope's time and depth both count. Shifts in time give proportional
   distances, as above.
4. **Flux**, 128: the mean change of a band's loudness (power to the 0.3)
   from a frame to the next, 16 ms on, then its square root. It is the
   structure function of A. N. Kolmogorov (1941) at one short lag, or the total
   variation per second: over a slow modulation it grows with depth times rate,
   so an LFO's rate, its depth, and the beats of a detuning move it steadily,
   where a spectrum of modulations would be filled by the note's own envelope.

Only the second part is independent of level. Which parts there are, their
exponents and their scales were chosen on the sweeps of `launch.rank` on Dexed,
with an eye on those of a small subtractive synthesizer.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from proxy.audio import spectral

SAMPLE_RATE = 32_000
DIMENSION = 640

_FFT, _HOP, _MELS = 1024, 512, 128
_GROUPS, _MOMENTS = 16, 16
# A full-scale sine has a power of about 170 in its band: this is 92 dB below,
# lower than what is heard of the quietest clip of a data set.
_FLOOR = 1e-7
_LOUDNESS, _COMPRESSED = 0.3, 0.15
# An offset, then a factor: over synthesizer sounds each part is about zero on
# average and varies by about one, and none dominates the L1 distance between
# the ends of a sweep. Chosen on the sweeps of `launch.rank` on Dexed.
_SPECTRUM = 45.0, 1 / 12
_FREQUENCY = -0.7, 8.0
_TIME = -0.15, 4.0
_FLUX = -0.05, 18.0


def _until(frames: int) -> np.ndarray:
    """Weights that average frames from the start to each moment.

    Returns:
      `[frames, moments]`; column k sums to (k + 1) / moments, and takes its
      share of the frame that the moment falls into.
    """
    ends = np.arange(1, _MOMENTS + 1) / _MOMENTS * frames
    shares = np.clip(ends - np.arange(frames)[:, None], 0, 1)
    return (shares / frames).astype(np.float32)


def _power(
    power: Float[Array, "*shape"], exponent: float
) -> Float[Array, "*shape"]:
    return jnp.exp(exponent * jnp.log(jnp.maximum(power, _FLOOR)))


def _scaled(
    part: Float[Array, "batch *shape"], constants: tuple[float, float]
) -> Float[Array, "batch features"]:
    offset, scale = constants
    return scale * (part.reshape(part.shape[0], -1) + offset)


def transport640(
    audio: Float[Array, "batch samples"], *, at_once: int | None = None
) -> Float[Array, "batch embedding"]:
    """Spectrum, its distribution, growth over time and flux; see the module.

    Periodic Hann window of 1,024 samples, hop 512, centred and reflect
    padded; STFT divided by the window's L2 norm; power; 128 HTK triangles from
    20 to 16,000 Hz, of height 1.

    Args:
      audio: clips at 32 kHz, more than 512 samples.
      at_once: clips worked on together, see `spectral.by_clip`.

    Returns:
      `[batch, 640]`: 128 spectrum, 128 distribution, 256 growth (the 16
      moments of the lowest group first), 128 flux.
    """
    window = spectral.hann(_FFT)
    window = window / np.linalg.norm(window)
    bank = spectral.mel_bank(
        _MELS, sample_rate=SAMPLE_RATE, fft_size=_FFT, low=20.0, high=16_000.0
    )

    def embed(clips):
        spectrum = spectral.stft(clips, window, fft_size=_FFT, hop=_HOP)
        # The default precision of accelerators is less than float32.
        bands = jnp.dot(spectral.power(spectrum), bank, precision="highest")
        batch, frames, _ = bands.shape

        mean = bands.mean(axis=1)
        decibels = spectral.decibels(mean, 1e-6)

        # The floor makes silence a straight line.
        weight = jnp.exp(_LOUDNESS * jnp.log(mean + 1e-8))
        total = jnp.cumsum(weight, axis=-1)
        distribution = total / total[:, -1:]

        groups = bands.reshape(batch, frames, _GROUPS, -1).sum(axis=-1)
        compressed = _power(groups, _COMPRESSED)
        growth = jnp.einsum(
            "bfg,fm->bgm", compressed, _until(frames), precision="highest"
        )

        loudness = _power(bands, _LOUDNESS)
        change = jnp.abs(loudness[:, 1:] - loudness[:, :-1]).mean(axis=1)
        # The floor keeps the gradient of a constant band finite.
        flux = jnp.sqrt(change + 1e-6)
        return jnp.concatenate(
            [
                _scaled(decibels, _SPECTRUM),
                _scaled(distribution, _FREQUENCY),
                _scaled(growth, _TIME),
                _scaled(flux, _FLUX),
            ],
            axis=-1,
        )

    return spectral.by_clip(embed, audio, at_once)
