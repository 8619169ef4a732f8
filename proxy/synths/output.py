"""What follows every synthesizer: its output stage, fades, levels.

Pure functions of audio `[*batch, samples]`, the same behind every engine.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Samples that a recursion takes in one step, by a product of matrices.
_BLOCK = 16


def _steps(
    x: Float[Array, "*batch samples"], pole: float, other: float
) -> tuple[Array, Array]:
    """Blocks of a recursion, each from silence: [*batch, blocks, width].

    Args:
      x: what goes in.
      pole: what is left of the recursion's output after a sample.
      other: what one sample puts into the next one's output.

    Returns:
      The input, filled up with zeros, and the output.
    """
    samples = x.shape[-1]
    width = samples if samples <= 4 * _BLOCK else _BLOCK
    if missing := -samples % width:
        zeros = jnp.zeros((*x.shape[:-1], missing), x.dtype)
        x = jnp.concatenate([x, zeros], -1)
    rows = x.reshape(*x.shape[:-1], -1, width)
    age = np.subtract.outer(np.arange(width), np.arange(width))
    within = np.where(age > 0, other * pole ** np.maximum(age - 1.0, 0), 0)
    within[age == 0] = 1
    product = jnp.matmul(
        rows, within.T.astype(np.float32), precision=jax.lax.Precision.HIGHEST
    )
    return rows, product


def _carried(
    handed: Float[Array, "*batch blocks"], pole: float, width: int
) -> Float[Array, "*batch blocks width"]:
    """What each block gets from those before it, by what each hands on."""
    total = _leaky_sum(handed, pole**width)
    # Not `jnp.pad`, which takes a CPU twice as long.
    zero = jnp.zeros((*handed.shape[:-1], 1), handed.dtype)
    total = jnp.concatenate([zero, total[..., :-1]], -1)
    return total[..., None] * (pole ** np.arange(width)).astype(np.float32)


def _leaky_sum(
    x: Float[Array, "*batch samples"], pole: float
) -> Float[Array, "*batch samples"]:
    """y[n] = x[n] + pole y[n - 1], from zero."""
    rows, sums = _steps(x, pole, pole)
    if rows.shape[-2] > 1:
        sums += _carried(pole * sums[..., -1], pole, rows.shape[-1])
    return sums.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def dc_block(
    audio: Float[Array, "*batch samples"], sample_rate: int
) -> Float[Array, "*batch samples"]:
    """Removes what does not move, as Dexed's output stage does.

    y[n] = x[n] - x[n - 1] + (1 - 126 / sample rate) y[n - 1], from silence
    (J. O. Smith, Introduction to Digital Filters, "DC Blocker"). The recursion
    is cut into blocks: within one it is a product with a triangular matrix,
    and from block to block another recursion, of which a block is one step.

    Args:
      audio: before the filter.
      sample_rate: in Hz.

    Returns:
      The filtered audio, in float32.
    """
    # The engine's pole is a float32.
    pole = float(np.float32(1 - 126 / sample_rate))
    rows, sound = _steps(audio.astype(jnp.float32), pole, pole - 1)
    if rows.shape[-2] > 1:
        handed = np.float32(pole) * sound[..., -1] - rows[..., -1]
        sound += _carried(handed, pole, rows.shape[-1])
    return sound.reshape(*audio.shape[:-1], -1)[..., : audio.shape[-1]]


def fade_out(
    audio: Float[Array, "*batch samples"], length: int
) -> Float[Array, "*batch samples"]:
    """Fades the last `length` samples linearly, from 1 to 0."""
    samples = audio.shape[-1]
    gains = np.ones(samples, np.float32)
    gains[samples - length :] = np.linspace(1, 0, length, dtype=np.float32)
    return audio * gains


def rms(audio: Float[Array, "*batch samples"]) -> Float[Array, "*batch"]:
    """Root mean square; NaN where a sample is not finite.

    The squares are added in rows first: a plain sum of 160,000 float32 loses
    four of its seven digits, where this keeps all but one.
    """
    samples = audio.shape[-1]
    side = int(np.ceil(samples**0.5))
    padding = [(0, 0)] * (audio.ndim - 1) + [(0, side * side - samples)]
    rows = jnp.pad(audio, padding).reshape(*audio.shape[:-1], side, side)
    return jnp.sqrt(jnp.square(rows).sum(-1).sum(-1) / samples)


def finish(
    audio: Float[Array, "batch columns"],
    count: Int[Array, ""] | int,
    *,
    gain: float,
    samples: int,
    sample_rate: int,
    fade: int,
) -> tuple[Float[Array, "batch columns"], Float[Array, " batch"]]:
    """Brings an engine's output to a plug-in's: gain, DC blocker, fade.

    On a CPU row by row, where it lies, so that a row stays in the cache.

    Args:
      audio: an engine's output.
      count: rows that are wanted, the first ones.
      gain: factor.
      samples: columns that are sound.
      sample_rate: in Hz.
      fade: samples at the end over which it fades out.

    Returns:
      The audio, and the root mean square of each row; zero for other rows
      than the wanted ones.
    """

    def some(audio: Array) -> tuple[Array, Array]:
        sound = audio[:, :samples] * gain
        sound = fade_out(dc_block(sound, sample_rate), fade)
        return jax.lax.dynamic_update_slice(audio, sound, (0, 0)), rms(sound)

    def one(row: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        audio, levels = carry
        shape = (1, audio.shape[1])
        sound, level = some(jax.lax.dynamic_slice(audio, (row, 0), shape))
        audio = jax.lax.dynamic_update_slice(audio, sound, (row, 0))
        return audio, levels.at[row].set(level[0])

    def by_row(audio: Array, count: Array) -> tuple[Array, Array]:
        levels = jnp.zeros(len(audio))
        return jax.lax.fori_loop(0, count, one, (audio, levels))

    def together(audio: Array, count: Array) -> tuple[Array, Array]:
        audio, levels = some(audio)
        return audio, jnp.where(jnp.arange(len(audio)) < count, levels, 0)

    return jax.lax.platform_dependent(
        audio, jnp.asarray(count), cpu=by_row, default=together
    )
