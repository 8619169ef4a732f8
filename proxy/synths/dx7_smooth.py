"""The gradient of the DX7 engine: a smooth twin of its sound.

    def loss(change):
        sound = dx7_smooth.render(voices, change, note=60, velocity=100, ...)
        return distance(sound)

    gradient = jax.grad(loss)(jnp.zeros(voices.shape))  # of every byte

The engine counts in integers, which have no derivative. Here what is exact
stays so (envelopes, phases and what feedback loops play are computed by the
engine), and beside it goes what a small change of a voice's bytes would do to
it, to first order (straight through: Y. Bengio and others, "Estimating or
Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432). Sines and
exponentials are smooth ones. The sound differs from the engine's by some
thousandths of its level.

How a change travels:

- **Levels.** A level that has been reached moves with its target. A straight
  fall from a higher start lies higher; a rise forgets where it began. An
  envelope that reaches its target later starts its next segment later. Each
  is linear along the engine's own course, block by block.
- **Rates.** The speed of a segment doubles with about six steps.
- **Feedback.** Doubles with each step. What an operator played before is the
  engine's; its change is followed back `_PASSES` samples. Followed without
  end it would grow without end where strong feedback turns into noise.

Ratios, detuning, the LFO and the pitch envelope get no gradient. A change of
pitch grows along the sound into a shift of phase; its derivative is that of
the next thousandth of a hertz, and says nothing of the next ratio
(`proxy/README.md` has the figures).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from proxy.synths import dx7, dx7_control
from proxy.synths import dx7_tables as tables
from proxy.synths.dx7_control import Note, lookup
from proxy.synths.dx7_tables import BLOCK, OPERATORS

# Times that the change of a feedback loop's output goes around it.
_PASSES = 2
_OCTAVE = 1 << 24
# Octaves, of levels' bytes: 1/8 for a step of the table.
_LEVEL = (np.gradient(tables.LEVELS) / 8).astype(np.float32)
# Of the logarithm of an envelope's step, of its rate.
_RATE = np.float32(np.log(2) / 4 * 41 / 64)
# Of the logarithm of a pause, about, of its rate.
_PAUSE = np.float32(-0.1091)
# A rise starts from here at least, in octaves, and slows down towards the top.
_FLOOR, _TOP = 1716 / 256, 17
# Cycles that an operator's output of 1 modulates.
_CYCLES = 2.0**-11


class Changed(NamedTuple):
    """What a change of bytes does to envelopes, all linear in it.

    Attributes:
      targets: of the envelopes' segments, in octaves of amplitude.
      steps: of the segments, in octaves a block; rising ones for each octave
        that is left.
      pauses: of segments that stay where they are, in blocks.
    """

    targets: Float[Array, "4 operators batch"]
    steps: Float[Array, "4 operators batch"]
    pauses: Float[Array, "4 operators batch"]


def changed(
    voices: UInt8[Array, "batch bytes"],
    change: Float[Array, "batch bytes"],
    note: Note,
) -> Changed:
    """Reads what a change of bytes does to envelopes.

    Args:
      voices: VCED bytes.
      change: what is added to them.
      note: what the voices come to.

    Returns:
      The changes of targets, steps and pauses.
    """

    def operators(x: Array) -> Array:
        x = x.T[: 21 * OPERATORS].reshape(OPERATORS, 21, -1)
        return x.swapaxes(0, 1)

    voice, change = operators(voices), operators(change)
    targets = lookup(_LEVEL, voice[4:8]) * change[4:8]
    targets = targets + lookup(_LEVEL, voice[16]) * change[16]
    # The lowest target is clipped.
    targets = jnp.where(note.targets > 16 << 16, targets, 0)
    faster = change[:4]
    return Changed(
        targets=targets,
        steps=note.increments / _OCTAVE * _RATE * faster,
        pauses=note.pauses / BLOCK * _PAUSE * faster,
    )


def envelopes(
    note: Note, change: Changed, blocks: int
) -> tuple[
    Int[Array, "blocks operators batch"], Float[Array, "blocks operators batch"]
]:
    """Follows envelopes, and beside them what a change does to them.

    Args:
      note: what the voices come to.
      change: what is changed.
      blocks: number of blocks.

    Returns:
      The engine's levels after each block, 2^24 an octave, and their changes
      in octaves.
    """
    of_segment = dx7_control.of_segment

    def step(carry: tuple, block: Array):
        level, segment, pause, moved, late = carry
        held, released = block < note.release, block == note.release
        after = dx7_control.envelope_step(
            note, level, segment, pause, held, released
        )
        # The segment of this block, and how much later than without a change
        # it began, in blocks.
        late = jnp.where(released, 0, late)
        over = ~released & (pause > 0) & (pause <= BLOCK)
        late = late + jnp.where(over, of_segment(change.pauses, segment), 0)
        now = jnp.where(released, 3, segment + over)
        reached = after[1] > now
        moves = reached | (after[0] != level)

        size = of_segment(note.increments, now) / _OCTAVE
        changed_size = of_segment(change.steps, now)
        left = _TOP - jnp.maximum(level / _OCTAVE, _FLOOR)
        rising = of_segment(note.targets, now) > level
        speed = jnp.where(rising, left * size, -size)
        start = moved - speed * late
        kept = jnp.where(level > _FLOOR * _OCTAVE, 1 - size, 0)
        end = jnp.where(
            rising,
            start * kept + left * changed_size,
            start - changed_size,
        )
        target = of_segment(change.targets, now)
        moved = jnp.where(moves, jnp.where(reached, target, end), moved)
        until = jnp.where(reached, (target - end) / speed, 0)
        late = jnp.where(moves, until, late)
        return (*after, moved, late), (after[0], moved)

    none = jnp.zeros_like(note.pitch)
    still = jnp.zeros(none.shape)
    first = (none, none, note.first_pause, still, still)
    return jax.lax.scan(step, first, jnp.arange(blocks))[1]


class _Voice(NamedTuple):
    """What the operators of one voice are told; see `dx7_control.Control`."""

    phase: Int[Array, "blocks operators"]
    increment: Int[Array, "blocks operators"]
    gain: Int[Array, "blocks operators"]
    ramp: Int[Array, "blocks operators"]
    active: Bool[Array, "blocks operators"]
    moved: Float[Array, "blocks operators"]
    looped: Int[Array, "blocks samples"]
    on: Bool[Array, " blocks"]
    feedback: Float[Array, ""]
    modulators: Bool[Array, "targets sources"]
    carriers: Bool[Array, " operators"]
    output: Int[Array, ""]
    long: Bool[Array, ""]


def _operator(
    phase: Float[Array, "*shape"],
    modulation: Float[Array, "..."],
    octaves: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Output of an operator; phases in cycles, full scale 8,192."""
    cycles = phase + modulation
    return 8192 * jnp.exp2(octaves) * jnp.sin(2 * np.pi * cycles)


def _looped(
    voice: _Voice,
    phase: Float[Array, "operators samples"],
    octaves: Sequence[Float[Array, " samples"]],
) -> Float[Array, " samples"]:
    """What a feedback loop plays: the engine's output, and its change."""
    exact = voice.looped.ravel().astype(jnp.float32)
    first = jnp.where(voice.long, 0, voice.output)
    start = jnp.stack(octaves)[first]
    output = exact
    for _ in range(_PASSES):
        before = jnp.pad(output, (2, 0))
        fed = voice.feedback * (before[:-2] + before[1:-1])
        smooth = _operator(phase[first], fed, start)
        for k in (1, 2):
            further = _operator(phase[k], smooth * _CYCLES, octaves[k])
            inside = voice.long & (k <= voice.output)
            smooth = jnp.where(inside, further, smooth)
        output = exact + smooth - jax.lax.stop_gradient(smooth)
    return output


@jax.checkpoint
def _play(voice: _Voice) -> Float[Array, " samples"]:
    """Plays one voice; its gradient does so again, which saves memory."""

    def samples(first: Array, step: Array, n: np.ndarray) -> Array:
        values = first.T[..., None] + n * step.T[..., None]
        return values.reshape(OPERATORS, -1)

    n = np.arange(BLOCK)
    phase = samples(voice.phase, voice.increment, n) & (_OCTAVE - 1)
    # The engine's sines are those in the middle of 4,096 steps.
    phase = (phase + 2048) / _OCTAVE
    gain = samples(voice.gain, voice.ramp, n + 1)
    last = jnp.concatenate([voice.moved[:1], voice.moved[:-1]])
    # Products, though they are ramps, and of each operator alone: so are their
    # gradients, where a CPU would compute all of them again for each block.
    ends = jnp.stack([last.T, voice.moved.T], -1)
    ramp = np.stack([BLOCK - 1 - n, n + 1]).astype(np.float32) / BLOCK
    octaves = [
        jnp.matmul(ends[k], ramp, precision="highest").ravel() - gain[k] / 1024
        for k in range(OPERATORS)
    ]

    looped = _looped(voice, phase, octaves)
    outputs: list[Array] = []
    for k in range(OPERATORS):
        modulation = jnp.zeros(())
        for j, output in enumerate(outputs):
            modulation += voice.modulators[k, j] * output
        played = _operator(phase[k], modulation * _CYCLES, octaves[k])
        active = jnp.repeat(voice.active[:, k], BLOCK)
        end = (voice.output == k) & jnp.repeat(voice.on, BLOCK)
        played = jnp.where(active, played, 0)
        outputs.append(jnp.where(end, looped, played))
    heard = voice.carriers.astype(jnp.float32) @ jnp.stack(outputs)
    return heard * np.float32(2**-12)


@functools.partial(jax.jit, static_argnames=("duration", "sample_rate"))
def render(
    voices: UInt8[Array, "batch bytes"],
    change: Float[Array, "batch bytes"],
    *,
    note: Num[Array, "*batch"] | int,
    velocity: Num[Array, "*batch"] | int,
    hold: Float[Array, "*batch"] | float | int,
    duration: float,
    sample_rate: int,
) -> Float[Array, "batch samples"]:
    """Renders as `dx7.render` does, within some thousandths, with a gradient.

    Values are not checked: see `dx7.check`.

    Args:
      voices: VCED bytes [batch, 156].
      change: what is added to the bytes, to first order: zero, and what the
        sound is differentiated by. Output levels, the levels and rates of the
        operators' envelopes, and feedback above zero get a gradient; for other
        bytes it is zero.
      note: MIDI note, 0 to 127, of all voices or of each.
      velocity: MIDI velocity, 1 to 127, of all voices or of each.
      hold: seconds from note-on to note-off, of all voices or of each.
      duration: seconds of sound, from note-on; rounded to whole samples.
      sample_rate: in Hz, a whole number.

    Returns:
      The sound, in which one operator peaks at 2; all of it is in memory at
      once, and of one voice that of its operators.
    """
    batch, samples = len(voices), round(duration * sample_rate)
    blocks = -(-samples // BLOCK)
    route = dx7.routing(voices)
    note, velocity, hold = (
        jnp.broadcast_to(x, (batch,)) for x in (note, velocity, hold)
    )
    told = dx7_control.note_on(voices, note, velocity, hold, sample_rate)
    start = dx7_control.start(told)
    _, control = dx7_control.control(told, start, blocks, sample_rate)
    none = jnp.zeros(batch, jnp.int32)
    room = jnp.zeros((blocks, dx7.slots(batch), BLOCK), jnp.int16)
    _, looped, slot, on = dx7.loops(control, route, (none, none), room)

    level, moved = envelopes(told, changed(voices, change, told), blocks)
    # Amplitude modulation scales levels.
    scale = (16384 - control.last_gain) / jnp.maximum(level >> 14, 1)
    # The loop's two last outputs, in cycles; it doubles with each step.
    feedback = jnp.exp2(change[:, 135] - route.shift) * _CYCLES
    voice = _Voice(
        *(x.transpose(2, 0, 1) for x in (*control[:4], control.active)),
        moved=(moved * scale).transpose(2, 0, 1),
        looped=looped[:, slot].swapaxes(0, 1),
        on=on.T,
        feedback=jnp.where(route.fed, feedback, 0),
        modulators=route.modulators,
        carriers=route.carriers.T,
        output=route.output,
        long=route.length > 1,
    )
    return jax.lax.map(_play, voice)[:, :samples]
