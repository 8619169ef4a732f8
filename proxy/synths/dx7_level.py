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

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from proxy.synths import dx7_tables as tables
from proxy.synths.dx7_control import lookup

# The engine moves envelopes once per 64 samples at 44,100 Hz.
_BLOCK_SECONDS = tables.BLOCK / 44_100
_STEP_SECONDS = 0.025
# Of an operator: what makes its level depend on the note and its velocity.
_SCALING = np.array([9, 10, 13, 15])
_SWITCHES = 155


def constant(
    voices: UInt8[Array, "batch bytes"],
) -> Bool[Array, " batch"]:
    """Voices whose level neither note nor velocity nor a switch changes."""
    operators = voices[:, : 21 * tables.OPERATORS].reshape(len(voices), -1, 21)
    scaled = (operators[..., _SCALING] > 0).any((1, 2))
    return ~scaled & (voices[:, _SWITCHES] == tables.LARGEST[_SWITCHES])


@functools.partial(jax.jit, static_argnames=("duration",))
def rms_bound(
    voices: UInt8[Array, "batch bytes"],
    *,
    hold: Float[Array, ""] | float,
    duration: float,
) -> Float[Array, " batch"]:
    """Bounds the root mean square of voices from above.

    Amplitude modulation is left out: it only makes a voice quieter. The bound
    is that of carriers in phase, each a sine.

    Args:
      voices: VCED bytes [batch, 156].
      hold: seconds from note-on to note-off.
      duration: seconds of audio, from note-on.

    Returns:
      The bound, at an engine gain where one operator peaks at 1; infinite for
      a voice that is not `constant`.
    """
    batch = len(voices)
    operators = voices[:, : 21 * tables.OPERATORS]
    # [operators, batch, ...], so that a batch fills a CPU's vectors.
    operators = operators.reshape(batch, -1, 21).transpose(1, 0, 2)
    rates = operators[..., 0:4].astype(jnp.int32)
    levels = operators[..., 4:8]
    # Log2 amplitude, 15 being full scale.
    output = 32 * lookup(tables.LEVELS, operators[..., 16])[..., None]
    targets = lookup(tables.LEVELS, levels) // 2 * 64 + output - 4256
    targets = jnp.maximum(targets, 16) / 256
    quick = jnp.minimum(rates * 41 // 64, 63)
    steps = int(np.ceil(duration / _STEP_SECONDS))
    step = duration / steps
    speeds = (4 + quick % 4) * jnp.exp2(quick // 4 - 16.0)
    speeds *= step / _BLOCK_SECONDS
    # A segment that ends where it starts still takes its time; the engine
    # has a table of it, which this exponential follows.
    pauses = jnp.where(
        rates < 77, 40 * jnp.exp(-0.1091 * rates), (99 - rates) / 2205
    )
    from_zero = levels[..., 0] == 0
    short = jnp.where(from_zero & (rates[..., 0] < 77), 20, 1)
    pauses = pauses.at[..., 0].divide(short)
    heard = lookup(tables.CARRIERS, voices[:, 134]).T

    def choose(segments: Array, stage: Array) -> Array:
        # Segment 4 is the end of the release; it stays at the last level.
        chosen = segments[..., 3]
        for i in (2, 1, 0):
            chosen = jnp.where(stage == i, segments[..., i], chosen)
        return chosen

    def move(i: Array, carry: tuple) -> tuple:
        level, pause, stage, entered, power = carry
        released = i * step >= hold
        first = released & ((i - 1) * step < hold)
        stage = jnp.where(first, 3, stage)
        target, speed = choose(targets, stage), choose(speeds, stage)
        still = (target == level) | ((stage == 0) & from_zero)
        wait = choose(pauses, stage) * still
        pause = jnp.where(stage != entered, wait, pause - step)
        moving = (pause <= 0) & ((stage < 3) | released)
        # Attacks start at a floor and slow down towards level 17.
        floor = jnp.maximum(level, 1716 / 256)
        rise = jnp.minimum(floor - (17 - floor) * jnp.expm1(-speed), target)
        fall = jnp.maximum(level - speed, target)
        moved = jnp.where(target > level, rise, fall)
        level = jnp.where(moving, moved, level)
        after = stage + (moving & (level == target) & (stage < 4))
        peak = jnp.where(heard, jnp.exp2(level - 15), 0).sum(0)
        return level, pause, after, stage, power + peak**2

    shape = (tables.OPERATORS, batch)
    none = jnp.zeros(shape)
    stage = jnp.zeros(shape, jnp.int32)
    carry = (none, none, stage, stage - 1, jnp.zeros(batch))
    power = jax.lax.fori_loop(0, steps, move, carry)[-1]
    return jnp.where(constant(voices), jnp.sqrt(power / (2 * steps)), jnp.inf)
