"""What follows every synthesizer: its output stage, fades, levels.

Pure functions of audio `[*batch, samples]`, the same behind every engine.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Samples that the DC blocker filters by one product of matrices.
_BLOCK = 64


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
    samples = audio.shape[-1]
    blocks = -(-samples // _BLOCK)
    padding = [(0, 0)] * (audio.ndim - 1) + [(0, blocks * _BLOCK - samples)]
    rows = jnp.pad(audio.astype(jnp.float32), padding)
    rows = rows.reshape(*audio.shape[:-1], blocks, _BLOCK)
    # The engine's pole is a float32.
    pole = float(np.float32(1 - 126 / sample_rate))
    powers = pole ** np.arange(_BLOCK + 1)
    age = np.subtract.outer(np.arange(_BLOCK), np.arange(_BLOCK))
    within = np.where(age > 0, (pole - 1) * powers[np.maximum(age - 1, 0)], 0)
    within[age == 0] = 1
    local = jnp.matmul(
        rows, within.T.astype(np.float32), precision=jax.lax.Precision.HIGHEST
    )
    # What a block hands on: pole y - x of its last sample.
    handed = np.float32(pole) * local[..., -1] - rows[..., -1]
    decay = jnp.full_like(handed, powers[_BLOCK])

    def join(one: tuple[Array, Array], two: tuple[Array, Array]):
        return one[0] * two[0], one[1] * two[0] + two[1]

    _, handed = jax.lax.associative_scan(join, (decay, handed), axis=-1)
    before = jnp.pad(handed[..., :-1], [*padding[:-1], (1, 0)])
    rows = local + before[..., None] * powers[:-1].astype(np.float32)
    return rows.reshape(*audio.shape[:-1], -1)[..., :samples]


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
