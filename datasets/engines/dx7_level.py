"""How loud a DX7 voice can get, told from its envelopes without rendering.

Most randomly drawn DX7 voices are silent: output level and envelope levels
count in steps of 0.75 dB, and a voice is heard only when some carrier has
both high. An operator is a sine of amplitude 2^(level - 15), whatever
modulates its phase, and its level follows the envelope alone. So the sum of
the carriers' amplitudes bounds the voice, at a hundredth of the price of
rendering it.

The envelope laws are those of the msfa engine inside Dexed (Apache-2.0,
https://github.com/google/music-synthesizer-for-android, env.cc), in octaves
of amplitude rather than fixed point.
"""

import numpy as np
from jaxtyping import Bool, Float, Shaped

# Output levels below 20 fall off faster than 0.75 dB a step.
_LEVELS = np.concatenate(
    [
        [0, 5, 9, 13, 17, 20, 23, 25, 27, 29],
        [31, 33, 35, 37, 39, 41, 42, 43, 45, 46],
        np.arange(20, 100) + 28,
    ]
)
# The engine moves envelopes once per 64 samples at 44,100 Hz.
_BLOCK_SECONDS = 64 / 44_100
_STEP_SECONDS = 0.025


def rms_bound(
    voices: Shaped[np.ndarray, "batch bytes"],
    carriers: Bool[np.ndarray, "algorithms operators"],
    *,
    hold: float,
    duration: float,
) -> Float[np.ndarray, "batch"]:
    """Bounds the root mean square of voices from above.

    Keyboard scaling, velocity sensitivity and amplitude modulation are left
    out: the first two must be zero, the last only makes a voice quieter.
    The bound is that of carriers in phase, each a sine.

    Args:
      voices: VCED bytes [batch, 155 or 156].
      carriers: which operators (columns, from the first to the sixth) each
        algorithm (rows) sends to the output.
      hold: seconds from note-on to note-off.
      duration: seconds of audio, from note-on.

    Returns:
      The bound, at an engine gain where one operator peaks at 1.
    """
    voices = np.asarray(voices)
    batch = len(voices)
    operators = voices[:, :126].reshape(batch, 6, 21)[:, ::-1].astype(int)
    rates, levels = operators[..., 0:4], operators[..., 4:8]
    # Log2 amplitude, 15 being full scale.
    output = 32 * _LEVELS[operators[..., 16], None]
    targets = np.maximum(_LEVELS[levels] // 2 * 64 + output - 4256, 16) / 256
    quick = np.minimum(rates * 41 // 64, 63)
    steps = int(np.ceil(duration / _STEP_SECONDS))
    step = duration / steps
    speeds = (4 + quick % 4) * 2.0 ** (quick // 4 - 16) * step / _BLOCK_SECONDS
    # A segment that ends where it starts still takes its time; the engine
    # has a table of it, which this exponential follows.
    pauses = np.where(
        rates < 77, 40 * np.exp(-0.1091 * rates), (99 - rates) / 2205
    )
    from_zero = levels[..., 0] == 0
    pauses[..., 0] /= np.where(from_zero & (rates[..., 0] < 77), 20, 1)
    heard = carriers[voices[:, 134]]

    level = np.zeros((batch, 6))
    pause = np.zeros((batch, 6))
    stage = np.zeros((batch, 6), np.int64)
    entered = np.full((batch, 6), -1)
    power = np.zeros(batch)
    released = False
    for time in np.arange(steps) * step:
        if not released and time >= hold:
            released = True
            stage = np.full((batch, 6), 3)
        # Stage 4 is the end of the release; it stays at the last level.
        now = np.minimum(stage, 3)[..., None]
        target = np.take_along_axis(targets, now, 2)[..., 0]
        speed = np.take_along_axis(speeds, now, 2)[..., 0]
        still = (target == level) | ((stage == 0) & from_zero)
        wait = np.take_along_axis(pauses, now, 2)[..., 0] * still
        pause = np.where(stage != entered, wait, pause - step)
        entered = stage
        moving = (pause <= 0) & ((stage < 3) | released)
        # Attacks start at a floor and slow down towards level 17.
        floor = np.maximum(level, 1716 / 256)
        rise = np.minimum(floor - (17 - floor) * np.expm1(-speed), target)
        fall = np.maximum(level - speed, target)
        moved = np.where(target > level, rise, fall)
        level = np.where(moving, moved, level)
        stage = stage + (moving & (level == target) & (stage < 4))
        power += np.sum(np.exp2(level - 15) * heard, axis=1) ** 2
    return np.sqrt(power / (2 * steps))
