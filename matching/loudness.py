"""How loud sounds are heard, so that they can be compared fairly.

ITU-R BS.1770-5, annex 1: the integrated loudness of one channel. Its two
filters, there given for 48 kHz, are taken as the analogue ones that they come
from, so that any sample rate will do.
"""

import numpy as np
from jaxtyping import Float

# The shelf: corner in Hz, quality, gain in dB, exponent of the gain in the
# middle; the high-pass: corner and quality (they give the standard's numbers).
_SHELF = (1681.974450955533, 0.7071752369554196, 3.999843853973347)
_MIDDLE = 0.4996667741545416
_HIGH_PASS = (38.13547087602444, 0.5003270373238773)
# Loudness of a mean square of 1; below `SILENCE` nothing counts; blocks this
# much below the loudness of all are pauses.
_OFFSET, SILENCE, _PAUSE = -0.691, -70.0, 10.0


def _weights(hertz: np.ndarray) -> np.ndarray:
    """Amplitude of what passes the two filters."""
    corner, quality, decibels = _SHELF
    s = 1j * hertz / corner
    gain = 10 ** (decibels / 20)
    shelf = gain * s**2 + gain**_MIDDLE * s / quality + 1
    shelf = shelf / (s**2 + s / quality + 1)
    corner, quality = _HIGH_PASS
    s = 1j * hertz / corner
    return np.abs(shelf * s**2 / (s**2 + s / quality + 1))


def loudness(audio: Float[np.ndarray, " samples"], sample_rate: int) -> float:
    """The integrated loudness of a mono sound.

    Args:
      audio: the sound, full scale 1. Shorter than 0.4 s, it counts as if it
        were followed by silence up to that.
      sample_rate: sample rate, in Hz.

    Returns:
      Loudness in LUFS: -3.0 for a sine of 997 Hz at full scale; -70 for
      silence and what is nearly that.
    """
    block, hop = round(0.4 * sample_rate), round(0.1 * sample_rate)
    audio = np.pad(audio, (0, max(block - len(audio), 0)))
    # As much silence behind it, as the filters ring.
    size = 1 << (len(audio) + block - 1).bit_length()
    spectrum = np.fft.rfft(np.asarray(audio, np.float64), size)
    spectrum *= _weights(np.fft.rfftfreq(size, 1 / sample_rate))
    weighted = np.fft.irfft(spectrum, size)[: len(audio)]
    blocks = np.lib.stride_tricks.sliding_window_view(weighted, block)[::hop]
    power = np.square(blocks).mean(1)
    heard = power[_decibels(power) > SILENCE]
    if not len(heard):
        return SILENCE
    heard = heard[_decibels(heard) > _decibels(heard.mean()) - _PAUSE]
    return float(_decibels(heard.mean()))


def _decibels(power: np.ndarray | np.floating) -> np.ndarray | np.floating:
    return _OFFSET + 10 * np.log10(np.maximum(power, 1e-12))


def gain(
    audio: Float[np.ndarray, " samples"],
    reference: Float[np.ndarray, " samples"],
    sample_rate: int,
    *,
    peak: float = 0.5,
) -> float:
    """The factor at which a sound is as loud as another one.

    Args:
      audio: the sound.
      reference: the other one, of which so much is played that it peaks at
        `peak`; its own factor is `gain(reference, reference, ...)`.
      sample_rate: sample rate of both, in Hz.
      peak: leaves room for sounds with higher peaks, full scale 1.

    Returns:
      The factor; less where the sound would exceed full scale, and 1 for a
      sound that is silent.
    """
    highest = float(np.abs(audio).max(initial=0))
    own = loudness(audio, sample_rate)
    if own <= SILENCE:
        return 1.0
    wanted = loudness(reference, sample_rate)
    factor = peak / max(float(np.abs(reference).max(initial=0)), 1e-6)
    return min(factor * 10 ** ((wanted - own) / 20), 1 / highest)
