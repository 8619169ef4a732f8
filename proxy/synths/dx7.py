"""Dexed, the Yamaha DX7, in batches: voices in, sound out, bit for bit.

    dx7.check(voices, note=60, velocity=100, hold=2.0, duration=5.0, ...)
    sound = dx7.render(voices, note=60, velocity=100, hold=2.0, duration=5.0,
                       sample_rate=32_000)
    sound = output.dc_block(sound * dx7.GAIN, sample_rate=32_000)

The DX7 is six sine oscillators ("operators"), each with an envelope, that
modulate each other's phase (J. Chowning, "The Synthesis of Complex Audio
Spectra by Means of Frequency Modulation", JAES 21(7), 1973; US patent
4,018,121, which Yamaha licensed). Which modulates which is told by one of 32
algorithms; one operator may modulate itself, or in two algorithms the one that
modulates it. An LFO and an envelope bend the pitch of all of them, and the LFO
their levels.

What is computed here is Dexed's engine "Mark I", its default, sample for
sample as dexed-py 0.3.0 plays it: the control of msfa (R. Levien, "Music
synthesizer for Android",
https://github.com/google/music-synthesizer-for-android, and its wiki, for the
laws of envelopes, LFO and scaling) in blocks of 64 samples, and the arithmetic
of the chips (OPS, YM21280), which do not multiply: they add the logarithm of a
sine to that of a level, and look up the exponential (M. Gambrell and O.
Niemitalo, "OPLx decapsulated", 2008, for the same two tables in a later chip;
K. Shirriff, "Reverse-engineering the Yamaha DX7 synthesizer's sound chip from
die photos", 2021). All of it is integers of 32 bits that wrap; where the
engine takes 64, they are made of two.

What is parallel and what is not: the LFO, the envelopes and the pitch are a
scan over blocks (`dx7_control`), phases are sums; an operator without feedback
depends on its modulators' same sample only. Feedback alone is sequential: one
operator, or a chain of two or three, goes through the samples one by one,
while voices go side by side (`dx7_operators.feedback`, on NVIDIA cards
`feedback_kernel`, which no card has run yet). On a CPU the other operators are
played voice by voice, and those that are silent, or heard by none, not at all;
elsewhere the whole batch is one array. A voice's samples do not depend on the
others in its batch.

Time is cut into chunks of some hundred blocks: what is needed beside the sound
itself is bounded by `_ROWS`.

Dimensions: batch bytes samples as everywhere; operators, from the sixth to the
first; blocks of 64 samples; loop, the operators of a feedback loop; slots,
where loops' outputs lie.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, Shaped, UInt8

from proxy.synths import dx7_control, dx7_operators
from proxy.synths import dx7_tables as tables
from proxy.synths.dx7_control import Control, lookup
from proxy.synths.dx7_operators import Loop, Memory, Part
from proxy.synths.dx7_tables import BLOCK, OPERATORS

# The plug-in's output is this much quieter.
GAIN = 1 / 8
# Blocks of all voices that are followed at once, and of one voice: what is
# spent around the samples shrinks with them, and memory grows.
_ROWS = 2**19
_CHUNK = 256
# Voices whose feedback a CPU plays side by side: with one operator in the
# loop, with more.
_LANES = 256, 16
# In Hz. Below, the engine's own integers overflow.
LOWEST_RATE = 16_000


class Routing(NamedTuple):
    """How the operators of voices are connected.

    Attributes:
      modulators: which operators modulate which.
      carriers: which operators are heard.
      fed: voices with feedback.
      output: the last operator of the feedback loop.
      length: operators in the loop.
      shift: how far down the loop's last two outputs are shifted together.
    """

    modulators: Bool[Array, "batch targets sources"]
    carriers: Bool[Array, "operators batch"]
    fed: Bool[Array, " batch"]
    output: Int[Array, " batch"]
    length: Int[Array, " batch"]
    shift: Int[Array, " batch"]


def routing(voices: UInt8[Array, "batch bytes"]) -> Routing:
    """Reads algorithms and feedback of voices."""
    algorithm, amount = voices[:, 134], voices[:, 135].astype(jnp.int32)
    weaker = lookup(np.where(tables.WEAK_FEEDBACK, 2, 0), algorithm)
    return Routing(
        modulators=lookup(tables.MODULATORS, algorithm),
        carriers=lookup(tables.CARRIERS, algorithm).T,
        fed=amount > 0,
        output=lookup(tables.FEEDBACK.astype(np.int32), algorithm),
        length=lookup(tables.LOOP.astype(np.int32), algorithm),
        shift=jnp.minimum(8 - amount + weaker, 16) + 1,
    )


def _lanes(batch: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Loops that are played side by side, short and long: on CPUs, on GPUs."""
    narrow = min(batch, _LANES[0]), min(batch, _LANES[1])
    return narrow, (batch, -(-batch // 8))


def slots(batch: int) -> int:
    """Room for the outputs of feedback loops, in groups of those lanes."""
    return max(sum(-(-batch // n) * n for n in n) for n in _lanes(batch))


def _first(which: Bool[Array, " batch"]) -> tuple[Array, Array]:
    """The voices in question before the others, and their number."""
    return jnp.argsort(~which, stable=True), which.sum()


def _group(
    control: Control,
    route: Routing,
    on: Bool[Array, "blocks batch"],
    around: Int[Array, "loop batch"],
    order: Int[Array, " padded"],
    kept: Int[Array, " padded"],
    width: int,
    base: int,
    feedback: Callable[[Loop, Memory], tuple[Memory, Array]],
    group: Int[Array, ""],
    memory: Memory,
    looped: Int[Array, "blocks slots 64"],
) -> tuple[Array, Memory, Array]:
    """Plays one group of feedback loops.

    Args:
      control: what the operators are told.
      route: how they are connected.
      on: blocks in which loops run.
      around: the loops' operators.
      order: voices, those that are to be played first.
      kept: the same, with a voice that is not there in place of others.
      width: voices in a group.
      base: the first group's first slot.
      feedback: plays the group.
      group: its number.
      memory: of the loops.
      looped: to be written into.

    Returns:
      The next group's number, and the memory and outputs with this one's.
    """
    start = group * width
    voices = jax.lax.dynamic_slice(order, (start,), (width,))
    keep = jax.lax.dynamic_slice(kept, (start,), (width,))
    operators = around[:, voices]
    inner = (jnp.arange(len(around)) > 0)[:, None]
    # Within a loop gains jump from block to block.
    gain = control.gain[:, operators, voices]
    last = control.last_gain[:, operators, voices]
    loop = Loop(
        control.phase[:, operators, voices],
        control.increment[:, operators, voices],
        jnp.where(inner, last, gain),
        jnp.where(inner, 0, control.ramp[:, operators, voices]),
        on[:, voices],
        route.shift[voices],
        route.length[voices],
    )
    after, output = feedback(loop, (memory[0][voices], memory[1][voices]))
    memory = (
        memory[0].at[keep].set(after[0], mode="drop"),
        memory[1].at[keep].set(after[1], mode="drop"),
    )
    looped = jax.lax.dynamic_update_slice(looped, output, (0, base + start, 0))
    return group + 1, memory, looped


def _play_loops(
    control: Control,
    route: Routing,
    memory: Memory,
    looped: Int[Array, "blocks slots 64"],
    *,
    lanes: tuple[int, int],
    feedback: Callable[[Loop, Memory], tuple[Memory, Array]],
) -> tuple[Memory, Array, Array, Array]:
    """As `loops`, with `lanes` loops in a group, short ones and long ones."""
    batch = len(route.fed)
    long = route.length > 1
    first = jnp.where(long, 0, route.output)
    on = jnp.take_along_axis(control.active, first[None, None], 1)[:, 0]
    on = on & route.fed
    slot, base = jnp.zeros(batch, jnp.int32), 0
    short = first[None], ~long, lanes[0]
    longer = jnp.arange(3)[:, None], long, lanes[1]
    for around, which, width in (short, longer):
        around = jnp.broadcast_to(around, (len(around), batch))
        order, count = _first(which & on.any(0))
        groups = -(-batch // width)
        order = jnp.pad(order, (0, groups * width - batch))
        number = jnp.arange(groups * width)
        kept = jnp.where(number < count, order, batch)
        slot = slot.at[kept].set(number + base, mode="drop")
        group = functools.partial(
            _group, control, route, on, around, order, kept, width, base
        )
        _, memory, looped = jax.lax.while_loop(
            lambda carry, count=count, width=width: carry[0] * width < count,
            lambda carry, group=group: group(feedback, *carry),
            (jnp.zeros((), jnp.int32), memory, looped),
        )
        base += groups * width
    return memory, looped, slot, on


def loops(
    control: Control,
    route: Routing,
    memory: Memory,
    looped: Int[Array, "blocks slots 64"],
) -> tuple[Memory, Array, Array, Array]:
    """Plays the feedback loops of a batch, in groups.

    Args:
      control: what the operators are told.
      route: how they are connected.
      memory: of the loops.
      looped: int16, to be written into; as many slots as `slots` says.

    Returns:
      The loops' memory; their outputs, one loop a slot; the slot of each
      voice's loop; the blocks [blocks, batch] in which it ran.
    """
    narrow, wide = _lanes(len(route.fed))
    return jax.lax.platform_dependent(
        control,
        route,
        memory,
        looped,
        cuda=functools.partial(
            _play_loops, lanes=wide, feedback=dx7_operators.feedback_kernel
        ),
        default=functools.partial(
            _play_loops, lanes=narrow, feedback=dx7_operators.feedback
        ),
    )


def _sources(
    control: Control, route: Routing, on: Bool[Array, "blocks batch"]
) -> Int[Array, "blocks operators batch"]:
    """Where operators get their output from, see `dx7_operators.Part`."""
    k = np.arange(OPERATORS)[:, None]
    source = control.active.astype(jnp.int32)
    source = jnp.where(on[:, None] & (k == route.output), 2, source)
    # Those before the end of a long loop are heard in its output only.
    inside = on[:, None] & (route.length > 1) & (k < route.output)
    source = jnp.where(inside, 0, source)
    # An operator that modulates what is not heard is not heard itself.
    active = (source > 0).any(0)
    heard: list[Array] = []
    for target in range(OPERATORS - 1, -1, -1):
        reaches = route.carriers[target]
        for further, hears in zip(range(5, target, -1), heard, strict=True):
            reaches = reaches | (route.modulators[:, further, target] & hears)
        heard.append(active[target] & reaches)
    return jnp.where(jnp.stack(heard[::-1]), source, 0)


def _play_heard(
    parts: Part,
    route: Routing,
    looped: Int[Array, "blocks slots 64"],
    slot: Int[Array, " batch"],
    sound: Float[Array, "batch samples"],
    start: Int[Array, ""],
) -> Float[Array, "batch samples"]:
    """Plays those voices of a batch that are heard, one after another.

    Args:
      parts: what the operators of each voice are told.
      route: how they are connected.
      looped: outputs of feedback loops.
      slot: which of them is a voice's.
      sound: to be written into, zero.
      start: first sample.

    Returns:
      The sound with this chunk.
    """
    order, count = _first((parts.source > 0).any((1, 2)))

    def voice(carry: tuple[Array, Array, Array]):
        n, sound, room = carry
        v = order[n]
        heard, room = dx7_operators.play_sounding(
            Part(*(x[v] for x in parts)),
            looped,
            slot[v],
            route.modulators[v],
            route.carriers[:, v],
            room,
        )
        sound = jax.lax.dynamic_update_slice(
            sound, heard.reshape(1, -1), (v, start)
        )
        return n + 1, sound, room

    def more(carry: tuple[Array, Array, Array]):
        return carry[0] < count

    none = jnp.zeros((), jnp.int32)
    room = jnp.zeros((OPERATORS, len(looped), BLOCK), jnp.int16)
    return jax.lax.while_loop(more, voice, (none, sound, room))[1]


def _play_all(
    parts: Part,
    route: Routing,
    looped: Int[Array, "blocks slots 64"],
    slot: Int[Array, " batch"],
    sound: Float[Array, "batch samples"],
    start: Int[Array, ""],
) -> Float[Array, "batch samples"]:
    """Plays all voices of a batch side by side; see `_play_heard`."""
    heard = jax.vmap(dx7_operators.play, (0, 0, 0, 1))(
        parts,
        looped[:, slot].swapaxes(0, 1),
        route.modulators,
        route.carriers,
    )
    heard = heard.reshape(len(sound), -1)
    return jax.lax.dynamic_update_slice(sound, heard, (0, start))


def _chunks(samples: int, batch: int) -> tuple[int, int]:
    """Chunks, and blocks in each, that a render is cut into."""
    blocks = -(-samples // BLOCK)
    most = max(1, min(_CHUNK, _ROWS // batch))
    chunks = -(-blocks // most)
    return chunks, -(-blocks // chunks)


def check(
    voices: Shaped[np.ndarray, "..."],
    *,
    note: Num[np.ndarray, "..."] | float | int,
    velocity: Num[np.ndarray, "..."] | float | int,
    hold: Num[np.ndarray, "..."] | float | int,
    duration: float | int,
    sample_rate: float | int,
) -> None:
    """Refuses what `render` would make nonsense of. Call it outside `jit`.

    Args:
      voices: as for `render`; so are the others.
      note: 0 to 127.
      velocity: 1 to 127.
      hold: above 0 seconds.
      duration: at least one sample.
      sample_rate: at least 16,000 Hz.

    Raises:
      ValueError: names the first value that is out of its range.
    """
    voices = np.asarray(voices)
    if voices.ndim != 2 or voices.shape[1] != len(tables.LARGEST):
        raise ValueError(
            f"voices are [batch, {len(tables.LARGEST)}] bytes, not "
            f"{list(voices.shape)}"
        )
    if not len(voices):
        raise ValueError("a batch of 0 voices: at least 1 is needed")
    if voices.dtype != np.uint8:
        raise ValueError(f"voices are uint8, not {voices.dtype}")
    wrong = np.argwhere(voices > tables.LARGEST)
    if len(wrong):
        voice, byte = wrong[0]
        raise ValueError(
            f"byte {byte} of voice {voice} is {voices[voice, byte]}, above "
            f"{tables.LARGEST[byte]} (datasets.handcrafted.repair clips it)"
        )
    ranges = (
        ("note", note, 0, 127),
        ("velocity", velocity, 1, 127),
        ("hold", hold, np.nextafter(0, 1), np.inf),
    )
    for name, value, least, most in ranges:
        value = np.asarray(value)
        if value.shape not in ((), (len(voices),)):
            raise ValueError(
                f"{name} of shape {list(value.shape)}: one number, or one for "
                f"each of {len(voices)} voices"
            )
        # Written so that NaN is refused.
        fine = (value >= least) & (value <= most)
        if name != "hold":
            fine &= value == np.floor(value)
        if not np.all(fine):
            bound = (
                "above 0 seconds" if name == "hold" else f"{least} to {most}"
            )
            bad = np.broadcast_to(value, fine.shape)[~fine].flat[0]
            raise ValueError(f"{name} is {bad}, not {bound}")
    if sample_rate != int(sample_rate) or sample_rate < LOWEST_RATE:
        raise ValueError(
            f"sample_rate is {sample_rate}, not a whole number of Hz from "
            f"{LOWEST_RATE} (below, the engine's integers overflow)"
        )
    if not duration * sample_rate >= 0.5:
        raise ValueError(f"duration is {duration} seconds: less than a sample")


def _per_voice(
    batch: int, *values: Num[Array, "*batch"] | float | int
) -> list[Array]:
    return [jnp.broadcast_to(jnp.asarray(v), (batch,)) for v in values]


def room(
    batch: int, *, duration: float, sample_rate: int, start: int = 0
) -> tuple[int, int]:
    """Shape of the array that `render_into` writes to.

    Args:
      batch: voices.
      duration: seconds of sound, from note-on.
      sample_rate: in Hz.
      start: samples before note-on.

    Returns:
      Rows and columns; more columns than samples, as chunks are whole.
    """
    chunks, blocks = _chunks(round(duration * sample_rate), batch)
    return batch, start + chunks * blocks * BLOCK


def render_into(
    sound: Float[Array, "batch columns"],
    voices: UInt8[Array, "batch bytes"],
    *,
    note: Num[Array, "*batch"] | int,
    velocity: Num[Array, "*batch"] | int,
    hold: Float[Array, "*batch"] | float | int,
    duration: float,
    sample_rate: int,
    start: int = 0,
) -> Float[Array, "batch columns"]:
    """Renders as `render` does, to an array that is there already.

    For a caller that renders many batches: donated to `jit`, the array is
    written in place. Fresh memory costs a tenth of a render.

    Args:
      sound: of the shape `room`; what it holds is lost.
      voices: as for `render`; so are the others.
      note: MIDI note.
      velocity: MIDI velocity.
      hold: seconds from note-on to note-off.
      duration: seconds of sound, from note-on.
      sample_rate: in Hz.
      start: samples of silence before note-on.

    Returns:
      The sound; what lies beyond `start` and the duration means nothing.
    """
    batch = len(voices)
    chunks, blocks = _chunks(round(duration * sample_rate), batch)
    route = routing(voices)
    note, velocity, hold = _per_voice(batch, note, velocity, hold)
    told = dx7_control.note_on(voices, note, velocity, hold, sample_rate)

    def chunk(i: Array, carry: tuple):
        state, memory, looped, sound = carry
        state, control = dx7_control.control(told, state, blocks, sample_rate)
        memory, looped, slot, on = loops(control, route, memory, looped)
        source = _sources(control, route, on)
        parts = Part(*(x.transpose(2, 1, 0) for x in (*control[:4], source)))
        sound = jax.lax.platform_dependent(
            parts,
            route,
            looped,
            slot,
            sound,
            start + i * (blocks * BLOCK),
            cpu=_play_heard,
            default=_play_all,
        )
        return state, memory, looped, sound

    none = jnp.zeros(batch, jnp.int32)
    carry = (
        dx7_control.start(told),
        (none, none),
        jnp.zeros((blocks, slots(batch), BLOCK), jnp.int16),
        jnp.zeros_like(sound),
    )
    return jax.lax.fori_loop(0, chunks, chunk, carry)[-1]


@functools.partial(jax.jit, static_argnames=("duration", "sample_rate"))
def render(
    voices: UInt8[Array, "batch bytes"],
    *,
    note: Num[Array, "*batch"] | int,
    velocity: Num[Array, "*batch"] | int,
    hold: Float[Array, "*batch"] | float | int,
    duration: float,
    sample_rate: int,
) -> Float[Array, "batch samples"]:
    """Renders voices, each a single note.

    Values are not checked: see `check`.

    Args:
      voices: VCED bytes [batch, 156]; bits of the last are the switches of the
        operators (bit 5: the first).
      note: MIDI note, 0 to 127, of all voices or of each.
      velocity: MIDI velocity, 1 to 127, of all voices or of each.
      hold: seconds from note-on to note-off, of all voices or of each.
      duration: seconds of sound, from note-on; rounded to whole samples.
      sample_rate: in Hz, a whole number.

    Returns:
      The engine's output as dexed-py gives it, before any gain or filter, in
      which one operator peaks at 2.
    """
    time = {"duration": duration, "sample_rate": sample_rate}
    sound = render_into(
        jnp.zeros(room(len(voices), **time)),
        voices,
        note=note,
        velocity=velocity,
        hold=hold,
        **time,
    )
    return sound[:, : round(duration * sample_rate)]
