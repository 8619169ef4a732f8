"""The DX7's operators, sample by sample, in the arithmetic of Mark I.

The outputs of operators are integers of 14 bits; where they modulate, they
count 2^13 each on the scale on which a cycle is 2^24. `dx7` says where the
laws come from.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from proxy.synths import dx7_tables as tables
from proxy.synths.dx7_control import lookup
from proxy.synths.dx7_tables import BLOCK, OPERATORS

# The engine looks up -1024 log2(sin) and 4096 (2^x - 1), rounded, in tables
# of 1,024 entries. Polynomials that round to every entry are faster: a CPU
# fetches what it looks up one by one, and computes eight at a time. They were
# fitted (a linear programme) to keep the largest distance from where rounding
# turns: at least .0034, which is 30 times what float32 loses, with fused
# multiply-adds or without.
_LOG_MANTISSA = tuple(
    np.float32(c)
    for c in (
        -754.1246458865562,
        -984.866197916546,
        328.0944390040877,
        -146.11660016539378,
        75.51853558244338,
        -40.900190602270776,
        13.534484002155342,
    )
)
_LOG_SQUARE = tuple(
    np.float32(c)
    for c in (
        607.4030206877718,
        50.75424539039144,
        5.960782115719655,
        3.0564840123045176,
    )
)
_EXPONENTIAL = tuple(
    np.float32(c / 1024**power)
    for power, c in enumerate(
        (
            8186.459876638413 - 6144,
            -5674.398444580902,
            1966.3301760572108,
            -453.3358199904658,
            76.51757409425687,
            -8.376282580382863,
        )
    )
)
# Added to a small float32, leaves its rounded value in the lowest bits.
_ROUND = np.float32(1.5 * 2**23)
_ROUND_BITS = int(_ROUND.view(np.int32))
# What the logarithm leaves out: where its polynomials are centred, and the
# exponent of the smallest sine's argument, 2^-11.
_LOG_OFFSET = 10752 + ((127 - 11) << 10) - _ROUND_BITS


def _polynomial(coefficients: tuple, x: Array) -> Array:
    """Evaluates c[0] + c[1] x + ..., pairs first (Estrin).

    The sum is a chain of operations; pairs make it half as long.
    """
    terms = list(coefficients)
    while len(terms) > 1:
        pairs = zip(terms[::2], terms[1::2], strict=False)
        odd = terms[len(terms) // 2 * 2 :]
        terms = [a + b * x for a, b in pairs] + odd
        x = x * x
    return terms[0]


def _bits(x: Array, dtype: type) -> Array:
    return jax.lax.bitcast_convert_type(x, dtype)


def log_sine(phase: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """-1024 log2 |sin|, rounded, of the phase in 4,096 steps a cycle.

    Args:
      phase: 2^24 a cycle.

    Returns:
      0 to 10,597, less a constant: `_LOG_OFFSET`.
    """
    quarter = phase ^ ((phase << 9) >> 31)
    # The middle of a step, as 1 to 2,047 of 2,048.
    step = (quarter & 0x3FF000) | 0x800
    x = step.astype(jnp.float32) * np.float32(2**-22)
    bits = _bits(x, jnp.int32)
    mantissa = _bits((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
    square = x * x
    smooth = square * _polynomial(_LOG_SQUARE, square)
    smooth = smooth + _polynomial(_LOG_MANTISSA, mantissa - np.float32(1.5))
    return _bits(smooth + _ROUND, jnp.int32) - ((bits >> 13) & ~1023)


def _exponential(
    attenuation: Int[Array, "*shape"], negative: Int[Array, "*shape"]
) -> Int[Array, "*shape"]:
    """8192 * 2^(-attenuation / 1024); its ones' complement where asked."""
    rest = (attenuation & 1023).astype(jnp.float32)
    size = _bits(_polynomial(_EXPONENTIAL, rest) + _ROUND, jnp.int32)
    size = (size - (_ROUND_BITS - 6144)) >> (attenuation >> 10)
    return size ^ negative


def wave(
    phase: Int[Array, "*shape"], gain: Int[Array, "*shape"]
) -> Int[Array, "*shape"]:
    """An attenuated sine, as the engine's tables and shifts make it.

    Args:
      phase: 2^24 a cycle; anything beyond wraps.
      gain: attenuation in 1/1024 of 6 dB, 0 to 22,000.

    Returns:
      -8,192 to 8,191. Negative halves are ones' complements: -0 is -1.
    """
    attenuation = log_sine(phase) + (gain + _LOG_OFFSET)
    return _exponential(attenuation, (phase << 8) >> 31)


def looked_up_wave(
    phase: Int[Array, "*shape"], gain: Int[Array, "*shape"]
) -> Int[Array, "*shape"]:
    """As `wave`, from a table of sines.

    Looking up ends a kernel, which XLA otherwise makes as large as it can: of
    two waves, one of which depends on the other, it makes one that is slow.
    """
    sine = lookup(tables.LOG_SINE, (phase >> 12) & 4095)
    return _exponential((sine & 0x7FFF) + gain, sine >> 31)


class Loop(NamedTuple):
    """What the operators of feedback loops are told in each block.

    `phase` to `ramp` go around the loop, from the operator that is fed.

    Attributes:
      phase: at a block's first sample, 2^24 a cycle.
      increment: of the phase, a sample.
      gain: before the first sample.
      ramp: of the gain, a sample.
      on: blocks in which the loop runs; in others its memory stays.
      shift: how far down the loop's last two outputs are shifted together.
      length: operators in the loop: one, or, where three are told something,
        two or three.
    """

    phase: Int[Array, "blocks loop batch"]
    increment: Int[Array, "blocks loop batch"]
    gain: Int[Array, "blocks loop batch"]
    ramp: Int[Array, "blocks loop batch"]
    on: Bool[Array, "blocks batch"]
    shift: Int[Array, " batch"]
    length: Int[Array, " batch"]


# The loop's two last outputs, the last one second.
Memory = tuple[Int[Array, " batch"], Int[Array, " batch"]]


def _loop_sample(
    told: Sequence[Sequence[Array] | Array],
    shift: Int[Array, " batch"],
    length: Int[Array, " batch"],
    memory: Memory,
    n: Int[Array, ""],
    play: Callable[[Array, Array], Array],
) -> Memory:
    """The memory of loops after sample `n` of a block."""
    older, last = memory
    modulation = ((older + last) << 13) >> shift
    output = last
    # Around the loop, operator by operator; a long one has two or three.
    for k, (phase, increment, gain, ramp) in enumerate(zip(*told, strict=True)):
        further = play(
            phase + n * increment + modulation, gain + (n + 1) * ramp
        )
        output = further if k < 2 else jnp.where(length > k, further, output)
        modulation = output << 13
    return last, output


def _choose(which: Bool[Array, " batch"], one: Memory, other: Memory) -> Memory:
    return (
        jnp.where(which, one[0], other[0]),
        jnp.where(which, one[1], other[1]),
    )


def feedback(
    loop: Loop, memory: Memory
) -> tuple[Memory, Int[Array, "blocks batch samples"]]:
    """Plays feedback loops, sample after sample.

    Args:
      loop: what their operators are told, one or three of them.
      memory: the loops' last two outputs before the first block.

    Returns:
      The memory after the last block; the loops' outputs (int16) in blocks of
      64 samples, which say nothing where a loop is not on.
    """
    long = loop.phase.shape[1] > 1
    # Samples that are compiled as one step: more make it longer to compile.
    unroll = 4 if long else 16
    play = looked_up_wave if long else wave

    def block(carry: tuple[Memory, Memory, Array], told: tuple[Array, ...]):
        # A block that is not on is undone at the start of the next: a choice
        # at its end would use the last samples a second time, and XLA would
        # then compute all that leads to them a second time, too.
        memory = _choose(carry[2], *carry[:2])
        *now, on = told

        def sample(memory: Memory, n: Array):
            memory = _loop_sample(now, loop.shift, loop.length, memory, n, play)
            return memory, memory[1]

        after, outputs = jax.lax.scan(
            sample, memory, jnp.arange(BLOCK), unroll=unroll
        )
        return (after, memory, on), outputs.astype(jnp.int16).T

    first = (memory, memory, loop.on[0])
    (after, before, ran), outputs = jax.lax.scan(block, first, loop[:5])
    return _choose(ran, after, before), outputs


# Loops that one program of the kernel plays: a warp.
_LANES = 32


def feedback_kernel(
    loop: Loop, memory: Memory, *, interpret: bool = False
) -> tuple[Memory, Int[Array, "blocks batch samples"]]:
    """The same as `feedback`, as one kernel for an accelerator (Pallas).

    Args:
      loop: what the loops' operators are told, one or three of them.
      memory: the loops' last two outputs before the first block.
      interpret: runs the kernel as ordinary operations, on any device.

    Returns:
      As `feedback`.
    """
    blocks, around, batch = loop.phase.shape
    extra = -batch % _LANES
    lanes = batch + extra

    def widened(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, extra)])

    def kernel(*refs: Any) -> None:
        *told, on, shift, length, older, last, output, older_end, last_end = (
            refs
        )
        shift, length = shift[...], length[...]

        def block(b: Array, memory: Memory) -> Memory:
            now = [[x[b, k] for k in range(around)] for x in told]

            def sample(n: Array, memory: Memory) -> Memory:
                memory = _loop_sample(now, shift, length, memory, n, wave)
                output[b, n] = memory[1].astype(jnp.int16)
                return memory

            after = jax.lax.fori_loop(0, BLOCK, sample, memory)
            return _choose(on[b] > 0, after, memory)

        first = older[...], last[...]
        older_end[...], last_end[...] = jax.lax.fori_loop(
            0, blocks, block, first
        )

    def spec(*shape: int) -> pl.BlockSpec:
        zeros = (0,) * len(shape)
        return pl.BlockSpec((*shape, _LANES), lambda i: (*zeros, i))

    *told, on, shift, length = (widened(x) for x in loop)
    outputs, older, last = pl.pallas_call(
        kernel,
        grid=(lanes // _LANES,),
        in_specs=[
            *[spec(blocks, around)] * 4,
            spec(blocks),
            *[spec()] * 4,
        ],
        out_specs=[spec(blocks, BLOCK), spec(), spec()],
        out_shape=[
            jax.ShapeDtypeStruct((blocks, BLOCK, lanes), jnp.int16),
            *[jax.ShapeDtypeStruct((lanes,), jnp.int32)] * 2,
        ],
        interpret=interpret,
        # Triton's arrays stay in the card's memory; Mosaic's would not fit.
        compiler_params=triton.CompilerParams(num_warps=1),
    )(*told, on.astype(jnp.int32), shift, length, *map(widened, memory))
    return (older[:batch], last[:batch]), outputs[..., :batch].swapaxes(1, 2)


class Part(NamedTuple):
    """What the operators of one voice are told in each block.

    Attributes:
      phase: at a block's first sample, 2^24 a cycle.
      increment: of the phase, a sample.
      gain: before the first sample.
      ramp: of the gain, a sample.
      source: SILENT for an operator that is not to be heard, PLAYED for one
        that is, LOOPED for one whose output comes from its feedback loop.
    """

    phase: Int[Array, "operators blocks"]
    increment: Int[Array, "operators blocks"]
    gain: Int[Array, "operators blocks"]
    ramp: Int[Array, "operators blocks"]
    source: Int[Array, "operators blocks"]


SILENT, PLAYED, LOOPED = range(3)


def _phases(
    part: Part,
    k: int | Array,
    masks: Int[Array, " sources"],
    outputs: Sequence[Array] | Array,
) -> Int[Array, "blocks samples"]:
    """Phases of an operator, given the outputs of those before it."""
    # No operator has more than three modulators: 16 bits hold their sum.
    modulation = jnp.zeros((), jnp.int16)
    for j in range(len(outputs)):
        modulation = modulation + (masks[j] & outputs[j])
    n = jnp.arange(BLOCK, dtype=jnp.int32)
    phase, increment = part.phase[k][:, None], part.increment[k][:, None]
    return phase + n * increment + (modulation.astype(jnp.int32) << 13)


def _output(
    part: Part,
    k: int | Array,
    phase: Int[Array, "blocks samples"],
    looped: Int[Array, "blocks samples"],
    play: Callable[[Array, Array], Array],
) -> Int[Array, "blocks samples"]:
    """Output of an operator, given its phases and its feedback loop's."""
    n = jnp.arange(1, BLOCK + 1, dtype=jnp.int32)
    gain = part.gain[k][:, None] + n * part.ramp[k][:, None]
    output = play(phase, gain).astype(jnp.int16)
    source = part.source[k][:, None]
    output = jnp.where(source == LOOPED, looped, output)
    return jnp.where(source == SILENT, 0, output)


def _heard(
    outputs: Sequence[Array] | Int[Array, "operators blocks samples"],
    carriers: Bool[Array, " operators"],
) -> Float[Array, "blocks samples"]:
    """What is heard of the operators' outputs."""
    total = jnp.zeros((), jnp.int32)
    for k in range(OPERATORS):
        mask = -carriers[k].astype(jnp.int32)
        total = total + (mask & outputs[k].astype(jnp.int32))
    return total.astype(jnp.float32) * np.float32(2**-12)


def play(
    part: Part,
    looped: Int[Array, "blocks samples"],
    modulators: Bool[Array, "targets sources"],
    carriers: Bool[Array, " operators"],
) -> Float[Array, "blocks samples"]:
    """Plays the operators of one voice, given what its feedback loop plays.

    Args:
      part: what the operators are told.
      looped: output of the voice's feedback loop, int16.
      modulators: which operators modulate which.
      carriers: which operators are heard.

    Returns:
      The sound, where an operator peaks at 2.
    """
    masks = -modulators.astype(jnp.int16)
    outputs: list[Array] = []
    for k in range(OPERATORS):
        phase = _phases(part, k, masks[k], outputs)
        outputs.append(_output(part, k, phase, looped, wave))
    return _heard(outputs, carriers)


def play_sounding(
    part: Part,
    loops: Int[Array, "blocks slots samples"],
    slot: Int[Array, ""],
    modulators: Bool[Array, "targets sources"],
    carriers: Bool[Array, " operators"],
    room: Int[Array, "operators blocks samples"],
) -> tuple[Float[Array, "blocks samples"], Int[Array, "..."]]:
    """As `play`, without the operators that are silent: for a CPU.

    Every operator is a loop that runs once or not at all. That keeps XLA from
    making one kernel of them, in which each would wait for the one before;
    and what a loop writes into is written in place, by one thread: to share
    it between several costs more than they save.

    Args:
      part: what the operators are told.
      loops: outputs of feedback loops, int16.
      slot: which of them is the voice's.
      modulators: which operators modulate which.
      carriers: which operators are heard.
      room: for the operators' outputs, int16; what is in it does not matter.

    Returns:
      The sound, and the room.
    """
    looping = (part.source == LOOPED).any(1)
    sounding = (part.source == PLAYED).any(1)
    any_of = looping | sounding
    masks = -(modulators & any_of).astype(jnp.int16)

    for k in range(OPERATORS):
        played = sounding[k].astype(jnp.int32)
        copied = (looping[k] & ~sounding[k]).astype(jnp.int32)

        # Where a body would not depend on its counter, XLA would run it
        # always; and what it knows the place of, it would not write in place.
        def copy(carry: tuple[Array, Array], k: int = k):
            count, room = carry
            here = k + jnp.minimum(count, 0)
            looped = part.source[here][:, None] == LOOPED
            output = jnp.where(looped, loops[:, slot + here - k], 0)
            place = here, jnp.zeros_like(here), jnp.zeros_like(here)
            return count + 1, jax.lax.dynamic_update_slice(
                room, output[None], place
            )

        def operator(carry: tuple[Array, Array], k: int = k):
            count, room = carry
            here = k + jnp.minimum(count, 0)
            # Always taken. What a branch returns is in memory, from where
            # looking up is fast; from a vector's lanes it is not.
            phase = jax.lax.cond(
                count == 0,
                lambda: _phases(part, here, masks[k], room[:k]),
                lambda: jnp.zeros(room.shape[1:], jnp.int32),
            )
            looped = loops[:, slot + here - k]
            output = _output(part, here, phase, looped, looked_up_wave)
            place = here, jnp.zeros_like(here), jnp.zeros_like(here)
            return count + 1, jax.lax.dynamic_update_slice(
                room, output[None], place
            )

        for count, body in ((copied, copy), (played, operator)):
            none = jnp.zeros((), jnp.int32)
            _, room = jax.lax.while_loop(
                lambda carry, count=count: carry[0] < count, body, (none, room)
            )
    return _heard(room, carriers & any_of), room
