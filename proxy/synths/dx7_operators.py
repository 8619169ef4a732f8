"""The DX7's operators, sample by sample, in the arithmetic of Mark I.

The outputs of operators are integers of 14 bits; where they modulate, they
count 2^13 each on the scale on which a cycle is 2^24. `dx7` says where the
laws come from.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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


def long_wave(
    phase: Int[Array, "*shape"], gain: Int[Array, "*shape"]
) -> Int[Array, "*shape"]:
    """As `wave`, from a table of sines.

    For one wave that depends on another: XLA makes one kernel of both, whose
    loop LLVM does not vectorise. Looking up ends a kernel.
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
      length: operators in the loop.
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


def feedback(
    loop: Loop, memory: Memory
) -> tuple[Memory, Int[Array, "blocks samples batch"]]:
    """Plays feedback loops, sample after sample.

    Args:
      loop: what their operators are told, one or three of them.
      memory: the loops' last two outputs before the first block.

    Returns:
      The memory after the last block; the loops' outputs (int16) in blocks of
      64 samples, which say nothing where a loop is not on.
    """
    long = loop.phase.shape[1] > 1
    # Steps that are compiled as one: many for a single operator, whose step
    # is one kernel; the others take long to compile.
    unroll = 4 if long else BLOCK
    play = long_wave if long else wave

    def block(carry: tuple[Memory, Memory, Array], told: tuple[Array, ...]):
        # A block that is not on is undone at the start of the next: a choice
        # at its end would use the last samples a second time, and XLA would
        # then compute all that leads to them a second time, too.
        memory = _choose(carry[2], *carry[:2])
        phase, increment, gain, ramp, on = told

        def sample(memory: Memory, n: Array):
            phases = phase + n * increment
            gains = gain + (n + 1) * ramp
            older, last = memory
            fed = ((older + last) << 13) >> loop.shift
            output = play(phases[0] + fed, gains[0])
            for k in range(1, len(phases)):
                further = play(phases[k] + (output << 13), gains[k])
                output = jnp.where(loop.length > k, further, output)
            return (last, output), output

        after, outputs = jax.lax.scan(
            sample, memory, jnp.arange(BLOCK), unroll=unroll
        )
        return (after, memory, on), outputs.astype(jnp.int16)

    first = (memory, memory, loop.on[0])
    (after, before, ran), outputs = jax.lax.scan(block, first, loop[:5])
    return _choose(ran, after, before), outputs


def _choose(which: Bool[Array, " batch"], one: Memory, other: Memory) -> Memory:
    return (
        jnp.where(which, one[0], other[0]),
        jnp.where(which, one[1], other[1]),
    )


class Part(NamedTuple):
    """What the operators of one voice are told in each block.

    Attributes:
      phase: at a block's first sample, 2^24 a cycle.
      increment: of the phase, a sample.
      gain: before the first sample.
      ramp: of the gain, a sample.
      source: 0 for an operator that is not to be heard, 1 for one that is
        played, 2 for one whose output comes from its feedback loop.
    """

    phase: Int[Array, "operators blocks"]
    increment: Int[Array, "operators blocks"]
    gain: Int[Array, "operators blocks"]
    ramp: Int[Array, "operators blocks"]
    source: Int[Array, "operators blocks"]


def play(
    part: Part,
    looped: Int[Array, "blocks samples"],
    modulators: Bool[Array, "targets sources"],
    carriers: Bool[Array, " operators"],
) -> Float[Array, "blocks samples"]:
    """Plays the operators of one voice, given what its feedback loop plays.

    Args:
      part: what the operators are told.
      looped: output of the voice's feedback loop.
      modulators: which operators modulate which.
      carriers: which operators are heard.

    Returns:
      The sound, where an operator peaks at 2.
    """
    n = jnp.arange(BLOCK, dtype=jnp.int32)
    outputs: list[Array] = []
    for k in range(OPERATORS):
        phase, increment, gain, ramp, source = (x[k][:, None] for x in part)
        masks = -modulators[k].astype(jnp.int32)

        def from_loop(source: Array = source) -> Array:
            return jnp.where(source == 2, looped, 0).astype(jnp.int16)

        def played(
            phase: Array = phase,
            increment: Array = increment,
            gain: Array = gain,
            ramp: Array = ramp,
            source: Array = source,
            masks: Array = masks,
            others: tuple[Array, ...] = tuple(outputs),
        ) -> Array:
            for mask, other in zip(masks, others, strict=False):
                phase = phase + ((mask & other.astype(jnp.int32)) << 13)
            output = wave(phase + n * increment, gain + (n + 1) * ramp)
            output = jnp.where(source == 2, looped.astype(jnp.int32), output)
            return jnp.where(source > 0, output, 0).astype(jnp.int16)

        def silence() -> Array:
            return jnp.zeros_like(looped)

        # Most operators of most voices are silent for some of the time.
        kind = jnp.where((source == 2).any(), 1, 0)
        kind = jnp.where((source == 1).any(), 2, kind)
        outputs.append(jax.lax.switch(kind, (silence, from_loop, played)))
    parts = [
        -carriers[k].astype(jnp.int32) & outputs[k].astype(jnp.int32)
        for k in range(OPERATORS)
    ]
    return sum(parts[1:], parts[0]).astype(jnp.float32) * np.float32(2**-12)
