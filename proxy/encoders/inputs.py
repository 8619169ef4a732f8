"""What an encoder sees of a relaxed preset: one-hot, raw values or tokens.

A relaxed preset *is* the one-hot input, so `mlp_oh` and its kin read it as it
stands. The functions here make the other two views. Both are linear in the
relaxed preset and equal the look-up when the probabilities are one-hot, so
gradients reach every category and switch.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from proxy.space import ParameterSpace


def check(relaxed: Float[Array, "batch width"], space: ParameterSpace) -> None:
    """Refuses an array that is not a batch of relaxed presets.

    Raises:
      ValueError: when the last axis is not the space's width.
    """
    if relaxed.shape[-1] != space.width:
        raise ValueError(
            f"a relaxed preset of {space.name} has {space.width} values, got "
            f"{relaxed.shape[-1]}; encode presets with space.to_relaxed first"
        )


def table_order(space: ParameterSpace) -> np.ndarray:
    """`[tokens]`: for each used parameter, its position in relaxed order.

    Relaxed order is non-categorical parameters, then categorical ones, each
    in table order.
    """
    order = np.concatenate([space.noncategorical, space.categorical])
    return np.argsort(order)


def padded_slots(space: ParameterSpace) -> tuple[np.ndarray, np.ndarray]:
    """Slots of a relaxed preset that make up each parameter's token.

    Returns:
      `slots [tokens, choices]` in table order, positions in a relaxed preset
      padded to the widest parameter, and `real [tokens, choices]`, which of
      them are not padding.
    """
    slots, real = space.category_blocks
    # A value is a block of one.
    padding = [(0, 0), (0, slots.shape[1] - 1)]
    values = np.arange(len(space.noncategorical))[:, None]
    slots = np.concatenate([np.pad(values, padding), slots])
    real = np.concatenate([np.pad(values >= 0, padding), real])
    order = table_order(space)
    return slots[order], real[order]


def raw_values(
    relaxed: Float[Array, "batch width"], space: ParameterSpace
) -> Float[Array, "batch parameters"]:
    """Plug-in values of the used parameters, in table order.

    Returns:
      Raw values in [0, 1]; a category is Σ probability * value.
    """
    values = np.concatenate(
        [np.ones(len(space.noncategorical)), space.slot_value]
    )
    slots, real = padded_slots(space)
    weights = jnp.asarray(np.where(real, values[slots], 0), relaxed.dtype)
    return (relaxed[:, slots] * weights).sum(-1)


def sinusoids(length: int, features: int) -> np.ndarray:
    """Positional encoding: sines and cosines interleaved, base 10,000.

    Args:
      length: number of positions, from 0.
      features: even size of a token.

    Returns:
      `[length, features]` float64
      (Vaswani et al., https://arxiv.org/abs/1706.03762, section 3.5).
    """
    rates = np.exp(np.arange(0, features, 2) * (-np.log(1e4) / features))
    angles = np.arange(length)[:, None] * rates
    pairs = np.stack([np.sin(angles), np.cos(angles)], -1)
    return pairs.reshape(length, -1)[:, :features]


class TokenTable(nn.Module):
    """The rows a preset's tokens are made of.

    The token of a numerical or binary parameter is value * row, without a
    bias; that of a categorical one its probabilities times its part of one
    shared table.

    Attributes:
      space: the parameter space.
      features: size of a token.
    """

    space: ParameterSpace
    features: int

    @nn.compact
    def __call__(self) -> Float[Array, "width features"]:
        """One row for each slot of a relaxed preset."""
        # The paper's truncated normal cuts at ±2, a hundred deviations off.
        init = nn.initializers.normal(0.02)
        values = self.param(
            "noncategorical",
            init,
            (len(self.space.noncategorical), self.features),
        )
        categories = self.param(
            "categorical",
            init,
            (sum(self.space.cardinalities), self.features),
        )
        return jnp.concatenate([values, categories])


def tokens(
    relaxed: Float[Array, "batch width"],
    table: Float[Array, "width features"],
    space: ParameterSpace,
) -> Float[Array, "batch tokens features"]:
    """Tokens in relaxed order: non-categorical parameters first.

    Args:
      relaxed: relaxed presets.
      table: a row for each slot.
      space: their space.

    Returns:
      One token for each used parameter; index the token axis with
      `table_order` where the table's order matters.
    """
    split = len(space.noncategorical)
    values = relaxed[:, :split, None] * table[:split]
    # One batched product over blocks padded to the widest: a loop over the
    # blocks would compile to as many small products as there are categories.
    slots, real = space.category_blocks
    probabilities = relaxed[:, slots] * real.astype(relaxed.dtype)
    categories = jnp.einsum("bcs,csf->bcf", probabilities, table[slots])
    return jnp.concatenate([values, categories], axis=1)


def folded(
    relaxed: Float[Array, "batch width"],
    table: Float[Array, "width features"],
    kernel: Float[Array, "tokens features hidden"],
    space: ParameterSpace,
    dtype: Any = None,
) -> Float[Array, "batch hidden"]:
    """A dense layer on flattened tokens, without making the tokens.

    Σ_t token_t · kernel_t = relaxed · M, where row j of M is row j of the
    table times the kernel of the parameter that slot j belongs to.

    Args:
      relaxed: relaxed presets.
      table: a token row for each slot.
      kernel: the layer's part for each token, in table order.
      space: the parameter space.
      dtype: type of the product with the batch, that of its factors when
        None; M is always computed in the type of the weights.

    Returns:
      What the layer gives, without bias.
    """
    split = len(space.noncategorical)
    values = (table[:split, :, None] * kernel[space.noncategorical]).sum(1)
    slots, real = space.category_blocks
    rows = jnp.einsum("csf,cfh->csh", table[slots], kernel[space.categorical])
    matrix = jnp.concatenate([values, rows[real]])
    dtype = dtype or jnp.result_type(relaxed, matrix)
    return relaxed.astype(dtype) @ matrix.astype(dtype)
