"""Sounds as they would be at the note and with the hold that a run knows.

A proxy and an estimator were trained on one note, held for one time. A
recording of another note, held longer, is brought there before it is embedded:

    sound = shorten(sound, sample_rate, hold=3.0, wanted=2.0)
    sound = transpose(sound, 60 - note)
"""

import numpy as np
from jaxtyping import Float

# Samples of a window, and from one to the next: 64 and 16 ms at 32 kHz. With
# half of it, low notes lose their pitch.
_WINDOW, _HOP = 2048, 512
# Seconds that a cut fades over.
_FADE = 0.02


def shorten(
    sound: Float[np.ndarray, " samples"],
    sample_rate: int,
    hold: float,
    wanted: float,
) -> Float[np.ndarray, " samples"]:
    """Takes the end of a held note away, so that it is released earlier.

    Args:
      sound: a mono sound that starts with its note.
      sample_rate: sample rate, in Hz.
      hold: seconds that the note is held.
      wanted: seconds that it should be held; from `hold` on, or beyond the
        end of the sound, it stays as it is.

    Returns:
      As many samples, float32, followed by silence.
    """
    sound = np.asarray(sound, np.float32)
    start, stop = (round(t * sample_rate) for t in (wanted, hold))
    stop = min(stop, len(sound))
    if not 0 < start < stop:
        return sound
    count = min(round(_FADE * sample_rate), start)
    coming = np.linspace(0, 1, count, dtype=np.float32)
    faded = (1 - coming) * sound[start - count : start]
    faded += coming * sound[stop - count : stop]
    silence = np.zeros(stop - start, np.float32)
    return np.concatenate(
        [sound[: start - count], faded, sound[stop:], silence]
    )


def transpose(
    sound: Float[np.ndarray, " samples"], semitones: float | int
) -> Float[np.ndarray, " samples"]:
    """Multiplies all frequencies by 2 ** (semitones / 12).

    A phase vocoder stretches the sound, keeping the steps of its phases
    (Flanagan and Golden, "Phase vocoder", Bell System Technical Journal 45,
    1966); then it is read faster or slower. What would lie above half the
    sample rate is left out.

    Args:
      sound: a mono sound, of any length.
      semitones: by how much it becomes higher; 0 gives the sound itself.

    Returns:
      As many samples, float32.
    """
    sound = np.asarray(sound, np.float32)
    if not semitones:
        return sound
    length = len(sound)
    # The spectrum of the whole goes round: its end leaks into its beginning.
    sound = np.pad(sound, (0, _WINDOW))
    ratio, samples = 2 ** (semitones / 12), len(sound)
    stretched = round(samples * ratio)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    # Each frame of the result, and the one a hop before, where they are heard.
    count = stretched // _HOP + 2
    starts = np.minimum(np.rint(np.arange(count) * _HOP / ratio), samples)
    places = starts.astype(int)[:, None] + np.arange(_WINDOW)
    half = _WINDOW // 2
    padded = np.pad(sound, (half + _HOP, half + _HOP))
    before, now = (
        np.fft.rfft(padded[places + shift] * window) for shift in (0, _HOP)
    )
    phases = np.cumsum(np.angle(now) - np.angle(before), axis=0)
    # As they are in the loudest frame: those of the first tell of its edge.
    loudest = np.square(np.abs(now)).sum(1).argmax()
    phases += np.angle(now[loudest]) - phases[loudest]
    frames = np.fft.irfft(np.abs(now) * np.exp(1j * phases)) * window
    overlaps = _WINDOW // _HOP
    result = np.zeros((count + overlaps - 1, _HOP))
    for part in range(overlaps):
        piece = frames[:, part * _HOP : (part + 1) * _HOP]
        result[part : part + count] += piece
    # Squares of the window, over all frames that overlap, are 3/8 each.
    result = result.ravel()[half : half + stretched] / (0.375 * overlaps)
    spectrum = np.fft.rfft(result)
    kept = np.zeros(samples // 2 + 1, complex)
    size = min(len(kept), len(spectrum))
    kept[:size] = spectrum[:size]
    read = np.fft.irfft(kept, samples) * (samples / stretched)
    return read[:length].astype(np.float32)
