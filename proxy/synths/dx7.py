"""Dexed, a Yamaha DX7, in batches."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8

from proxy.synths import dx7_control, dx7_operators
from proxy.synths import dx7_tables as tables
from proxy.synths.dx7_control import Control, lookup
from proxy.synths.dx7_operators import Loop, Memory, Part
from proxy.synths.dx7_tables import BLOCK, OPERATORS

# Blocks that are followed at once: memory grows with them, and what is spent
# around the samples shrinks.
_CHUNK = 512
# Voices whose feedback is played side by side: with one operator in the loop,
# with more.
_LANES = 256
_LONG_LANES = 16


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
        carriers=lookup(np.asarray(tables.CARRIERS), algorithm).T,
        fed=amount > 0,
        output=lookup(tables.FEEDBACK.astype(np.int32), algorithm),
        length=lookup(tables.LOOP.astype(np.int32), algorithm),
        shift=jnp.minimum(8 - amount + weaker, 16) + 1,
    )


def _first(which: Bool[Array, " batch"]) -> tuple[Array, Array]:
    """The voices in question before the others, and their number."""
    return jnp.argsort(~which, stable=True), which.sum()


def _loops(
    control: Control,
    route: Routing,
    memory: Memory,
    looped: Int[Array, "slots blocks samples"],
) -> tuple[Memory, Array, Array, Array]:
    """Plays the feedback loops of a batch.

    Returns:
      The loops' memory; their outputs, one loop a slot; the slot of each
      voice's loop; the blocks [blocks, batch] in which it ran.
    """
    batch = len(route.fed)
    long = route.length > 1
    first = jnp.where(long, 0, route.output)
    on = jnp.take_along_axis(control.active, first[None, None], 1)[:, 0]
    on = on & route.fed
    slot, base = jnp.zeros(batch, jnp.int32), 0
    short = first[None], ~long, min(batch, _LANES)
    longer = jnp.arange(3)[:, None], long, min(batch, _LONG_LANES)
    for around, which, lanes in (short, longer):
        around = jnp.broadcast_to(around, (len(around), batch))
        order, count = _first(which & on.any(0))
        groups = -(-batch // lanes)
        order = jnp.pad(order, (0, groups * lanes - batch))
        number = jnp.arange(groups * lanes)
        kept = jnp.where(number < count, order, batch)
        slot = slot.at[kept].set(number + base, mode="drop")

        def play(
            carry: tuple[Array, Memory, Array],
            order: Array = order,
            kept: Array = kept,
            around: Array = around,
            lanes: int = lanes,
            base: int = base,
        ):
            group, memory, looped = carry
            start = group * lanes
            voices = jax.lax.dynamic_slice(order, (start,), (lanes,))
            keep = jax.lax.dynamic_slice(kept, (start,), (lanes,))
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
            after, output = dx7_operators.feedback(
                loop, (memory[0][voices], memory[1][voices])
            )
            memory = (
                memory[0].at[keep].set(after[0], mode="drop"),
                memory[1].at[keep].set(after[1], mode="drop"),
            )
            looped = jax.lax.dynamic_update_slice(
                looped, output.swapaxes(0, 1), (base + start, 0, 0)
            )
            return group + 1, memory, looped

        def more(carry: Any, count: Array = count, lanes: int = lanes):
            return carry[0] * lanes < count

        begun: Any = (0, memory, looped)
        _, memory, looped = jax.lax.while_loop(more, play, begun)
        base += groups * lanes
    return memory, looped, slot, on


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


def _play(
    parts: Part,
    route: Routing,
    looped: Array,
    slot: Array,
    sound: Array,
    start: Array,
) -> Array:
    """Plays those voices of a batch that are heard, one after another."""
    kinds = dx7_operators.kinds(parts.source)
    order, count = _first((kinds > 0).any(1))

    def voice(carry: tuple[Array, Array]):
        n, sound = carry
        v = order[n]
        part = Part(*(x[v] for x in parts))
        heard = dx7_operators.play(
            part,
            kinds[v],
            looped[slot[v]],
            route.modulators[v],
            route.carriers[:, v],
        )
        heard = heard.reshape(1, -1)
        return n + 1, jax.lax.dynamic_update_slice(sound, heard, (v, start))

    begun: Any = (0, sound)
    return jax.lax.while_loop(lambda carry: carry[0] < count, voice, begun)[1]


@functools.partial(jax.jit, static_argnames=("duration", "sample_rate"))
def render(
    voices: UInt8[Array, "batch bytes"],
    *,
    note: Num[Array, "*batch"] | int,
    velocity: Num[Array, "*batch"] | int,
    hold: Float[Array, "*batch"] | float,
    duration: float,
    sample_rate: int,
) -> Float[Array, "batch samples"]:
    """Renders voices."""
    batch = len(voices)
    note, velocity, hold = (
        jnp.broadcast_to(jnp.asarray(x), (batch,))
        for x in (note, velocity, hold)
    )
    samples = round(duration * sample_rate)
    blocks = -(-samples // BLOCK)
    chunks = -(-blocks // _CHUNK)
    blocks = -(-blocks // chunks)
    route = routing(voices)
    told = dx7_control.note_on(voices, note, velocity, hold, sample_rate)

    def chunk(i: Array, carry: tuple):
        state, memory, looped, sound = carry
        state, control = dx7_control.control(told, state, blocks, sample_rate)
        memory, looped, slot, on = _loops(control, route, memory, looped)
        source = _sources(control, route, on)
        parts = Part(*(x.transpose(2, 1, 0) for x in (*control[:4], source)))
        start = i * blocks * BLOCK
        sound = _play(parts, route, looped, slot, sound, start)
        return state, memory, looped, sound

    none = jnp.zeros(batch, jnp.int32)
    slots = sum(
        -(-batch // lanes) * lanes
        for lanes in (min(batch, _LANES), min(batch, _LONG_LANES))
    )
    carry = (
        dx7_control.start(told),
        (none, none),
        jnp.zeros((slots, blocks, BLOCK), jnp.int16),
        jnp.zeros((batch, chunks * blocks * BLOCK), jnp.float32),
    )
    return jax.lax.fori_loop(0, chunks, chunk, carry)[-1][:, :samples]
