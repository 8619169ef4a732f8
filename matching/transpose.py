"""Sounds moved to another note, as long as before.

A proxy and an estimator know sounds of one note. A recording of another one is
moved there first: what `embed(transpose(sound, 60 - note))` says can be
compared with what was rendered at note 60.
"""

import numpy as np
from jaxtyping import Float

# Samples of a window, and from one to the next: 64 and 16 ms at 32 kHz. With
# half of it, low notes lose their pitch.
_WINDOW, _HOP = 2048, 512


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
