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
    rest = (attenuation & 1023).astype(jnp.float32)
    size = _bits(_polynomial(_EXPONENTIAL, rest) + _ROUND, jnp.int32)
    size = (size - (_ROUND_BITS - 6144)) >> (attenuation >> 10)
    return size ^ ((phase << 8) >> 31)


class Loop(NamedTuple):
    """What the operators of a feedback loop are told in each block.

    The first axis goes around the loop, from the operator that is fed.
    """

    phase: Int[Array, "loop blocks batch"]
    increment: Int[Array, "loop blocks batch"]
    gain: Int[Array, "loop blocks batch"]
    ramp: Int[Array, "loop blocks batch"]


# The loop's two last outputs, the last one second.
Memory = tuple[Int[Array, " batch"], Int[Array, " batch"]]


def loop_sample(
    told: tuple[Array, Array, Array, Array],
    shift: Int[Array, " batch"],
    length: Int[Array, " batch"],
    memory: Memory,
    sample: int | Array,
) -> Memory:
    """One sample of feedback loops.

    Args:
      told: phase, increment, gain and ramp in this block, each [loop, batch].
      shift: how far down the loop's last two outputs are shifted together.
      length: operators in the loop, at most those that are told something.
      memory: its last two outputs.
      sample: within the block, from 0.

    Returns:
      The last two outputs after it.
    """
    phase, increment, gain, ramp = told
    phase = phase + sample * increment
    gain = gain + (sample + 1) * ramp
    older, last = memory
    modulation = ((older + last) << 13) >> shift
    output = wave(phase[0] + modulation, gain[0])
    for operator in range(1, phase.shape[0]):
        further = wave(phase[operator] + (output << 13), gain[operator])
        output = jnp.where(length > operator, further, output)
    return last, output


def feedback(
    loop: Loop,
    shift: Int[Array, " batch"],
    length: Int[Array, " batch"],
    on: Bool[Array, "blocks batch"],
    memory: Memory,
) -> tuple[Memory, Int[Array, "blocks samples batch"]]:
    """Plays feedback loops, sample after sample.

    Args:
      loop: what its operators are told.
      shift: how far down the loop's last two outputs are shifted together.
      length: operators in the loop.
      on: blocks in which it runs; in others its memory stays.
      memory: its last two outputs before the first block.

    Returns:
      The memory after the last block; the loop's output (int16) in blocks of
      64 samples, in which it does not run without meaning.
    """
    unroll = BLOCK if len(loop.phase) == 1 else 1

    def block(carry: tuple[Memory, Memory, Array], told: tuple[Array, ...]):
        # A block that does not run is undone at the start of the next: a
        # choice at its end would use the last samples a second time, and XLA
        # would then compute all that leads to them a second time, too.
        memory = _choose(carry[2], *carry[:2])
        *controls, on = told

        def step(after: Memory, sample: Array):
            after = loop_sample(tuple(controls), shift, length, after, sample)
            return after, after[1]

        after, outputs = jax.lax.scan(
            step, memory, jnp.arange(BLOCK), unroll=unroll
        )
        return (after, memory, on), outputs.astype(jnp.int16)

    told = (*(jnp.swapaxes(x, 0, 1) for x in loop), on)
    first = (memory, memory, on[0])
    (after, before, ran), outputs = jax.lax.scan(block, first, told)
    return _choose(ran, after, before), outputs


def _choose(which: Bool[Array, " batch"], one: Memory, other: Memory) -> Memory:
    return (
        jnp.where(which, one[0], other[0]),
        jnp.where(which, one[1], other[1]),
    )


class Rows(NamedTuple):
    """What the operators are told in blocks of any voices, one a row.

    Attributes:
      phase: at the row's first sample.
      increment: of the phase.
      gain: before the first sample.
      ramp: of the gain.
      source: 0 for an operator that is left out, 2 for one whose output comes
        from its feedback loop, 1 for any other.
      modulators: bit k stands for operator k.
    """

    phase: Int[Array, "operators rows"]
    increment: Int[Array, "operators rows"]
    gain: Int[Array, "operators rows"]
    ramp: Int[Array, "operators rows"]
    source: Int[Array, "operators rows"]
    modulators: Int[Array, "operators rows"]


def _sum(
    outputs: Int[Array, "operators rows samples"], members: Int[Array, " rows"]
) -> Int[Array, "rows samples"]:
    """Adds the outputs of those operators whose bit is set."""
    masks = [-((members >> k) & 1)[:, None] for k in range(OPERATORS)]
    parts = [
        mask & output.astype(jnp.int32)
        for mask, output in zip(masks, outputs, strict=True)
    ]
    return sum(parts[1:], parts[0])


def play(
    rows: Rows,
    looped: Int[Array, "rows samples"],
    carriers: Int[Array, " rows"],
) -> Float[Array, "rows samples"]:
    """Plays the operators of blocks, given what their feedback loops play.

    Args:
      rows: what the operators are told.
      looped: output of the rows' feedback loops.
      carriers: bit k set where operator k is heard.

    Returns:
      The sound, where an operator peaks at 2.
    """
    sample = jnp.arange(BLOCK, dtype=jnp.int32)

    def operator(outputs: Array, told: tuple[Array, Rows]):
        k, row = told
        phase, increment, gain, ramp, source, modulators = (
            x[:, None] for x in row
        )
        modulation = _sum(outputs, modulators[:, 0])
        output = wave(
            phase + sample * increment + (modulation << 13),
            gain + (sample + 1) * ramp,
        )
        output = jnp.where(source == 2, looped.astype(jnp.int32), output)
        output = jnp.where(source > 0, output, 0)
        return outputs.at[k].set(output.astype(jnp.int16)), None

    # A loop, so that each operator is computed on its own: joined into one
    # kernel, a row's operators would wait for each other.
    outputs = jnp.zeros((OPERATORS, *looped.shape), jnp.int16)
    ks = jnp.arange(OPERATORS)
    outputs, _ = jax.lax.scan(operator, outputs, (ks, rows))
    return _sum(outputs, carriers).astype(jnp.float32) * np.float32(2**-12)
