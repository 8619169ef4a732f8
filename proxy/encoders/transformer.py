"""`tfm`: a pre-norm transformer over a preset's tokens."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from proxy.encoders import inputs, mlp

SMALL = nn.initializers.normal(0.02)


def layer_norm(x: Float[Array, "*batch features"], name: str) -> Any:
    """Layer normalisation as PyTorch computes it.

    The variance takes two passes, and float32 at least (Ba et al.,
    https://arxiv.org/abs/1607.06450).

    Args:
      x: activations.
      name: name of the layer in the module that calls.

    Returns:
      `x` normalised over its last axis, in its own type.
    """
    norm = nn.LayerNorm(1e-5, dtype=x.dtype, use_fast_variance=False, name=name)
    return norm(x)


def attention(
    projected: Float[Array, "batch tokens projections"],
    heads: int,
    queries: int | None = None,
    bias: Float[Array, "batch heads tokens tokens"] | None = None,
) -> Float[Array, "batch queries features"]:
    """Softmax attention, every token seen.

    (Vaswani et al., https://arxiv.org/abs/1706.03762, section 3.2; the
    softmax is computed in float32 at least.) On a CPU a few presets at a
    time are worked on, so that all they need stays in the cache, and the
    weights are made again for the gradient: memory is slower than that.

    Args:
      projected: queries, keys and values side by side, each the heads side
        by side.
      heads: number of heads.
      queries: number of the first tokens that ask, None for all.
      bias: added to the scores, `[..., asking, asked]`.

    Returns:
      For each query, the weighted means of the values, heads side by side.
    """

    def some(projected, bias):
        *batch, tokens, size = projected.shape
        split = projected.reshape(*batch, tokens, 3, heads, -1)
        q, k, v = (split[..., i, :, :] for i in range(3))
        q = q[..., :queries, :, :] * (q.shape[-1] ** -0.5)
        scores = jnp.einsum("...qhd,...khd->...hqk", q, k)
        wide = scores.astype(jnp.promote_types(q.dtype, jnp.float32))
        if bias is not None:
            wide += bias[..., :queries, :]
        weights = nn.softmax(wide).astype(q.dtype)
        y = jnp.einsum("...hqk,...khd->...qhd", weights, v)
        return y.reshape(*y.shape[:-2], size // 3)

    def blocked(*args):
        one = jax.checkpoint(some)
        return jax.lax.map(lambda args: one(*args), args, batch_size=8)

    return jax.lax.platform_dependent(
        projected, bias, cpu=blocked, default=some
    )


class TransformerBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      heads: number of attention heads.
      inner: hidden size of the ReLU network.
      queries: number of the first tokens to compute, None for all. What
        the last block gives for the others is never used.
      dtype: compute type, that of weights and input when None.
    """

    heads: int
    inner: int
    queries: int | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens features"],
        bias: Float[Array, "batch heads tokens tokens"] | None = None,
    ) -> Float[Array, "batch queries features"]:
        """Applies the block; the bias is added to attention's scores."""
        features = x.shape[-1]

        def dense(size: int, name: str) -> nn.Dense:
            return nn.Dense(
                size, kernel_init=SMALL, dtype=self.dtype, name=name
            )

        y = layer_norm(x, "norm_1")
        y = dense(3 * features, "in_proj")(y)
        y = attention(y, self.heads, self.queries, bias)
        x = x[:, : self.queries] + dense(features, "out_proj")(y)
        y = layer_norm(x, "norm_2")
        y = nn.relu(dense(self.inner, "linear_1")(y))
        return x + dense(features, "linear_2")(y)


class Transformer(mlp.Encoder):
    """`tfm`: tokens with positions, pre-norm blocks, a normalised head.

    The head is layer norm, ReLU, linear, on the class token or on the mean
    of all tokens (the published code's mean leaves out the first parameter
    by mistake).

    Attributes:
      hidden: size of a token.
      blocks: number of blocks.
      heads: number of attention heads.
      factor: size of a block's ReLU network over that of a token.
      pooling: "cls" or "mean".
    """

    hidden: int = 256
    blocks: int = 6
    heads: int = 8
    factor: float = 4.0
    pooling: Literal["cls", "mean"] = "cls"

    def embed(
        self, relaxed: Float[Array, "batch width"], train: bool
    ) -> Float[Array, "batch embedding"]:
        """Tokens, blocks and head.

        Raises:
          ValueError: when the token size is not a multiple of the number of
            heads, or the pooling is unknown.
        """
        del train
        if self.hidden % self.heads or self.pooling not in ("cls", "mean"):
            raise ValueError(
                f"tfm: hidden={self.hidden} must be a multiple of "
                f"heads={self.heads}, and pooling={self.pooling!r} 'cls' or "
                "'mean'"
            )
        cls = self.pooling == "cls"
        table = inputs.TokenTable(self.space, self.hidden, name="tokens")()
        x = inputs.tokens(relaxed, table, self.space)
        # Attention does not mind the order: tokens stay in relaxed order
        # and carry the positions of the table's order.
        order = np.concatenate(
            [self.space.noncategorical, self.space.categorical]
        )
        positions = inputs.sinusoids(self.space.num_used + 1, self.hidden)
        x = x + jnp.asarray(positions[order + cls], x.dtype)
        if cls:
            first = self.param("cls", SMALL, (1, self.hidden))
            first = first + jnp.asarray(positions[:1], first.dtype)
            first = jnp.broadcast_to(first, (x.shape[0], *first.shape))
            x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        if self.dtype is not None:
            x = x.astype(self.dtype)
        for i in range(self.blocks):
            x = TransformerBlock(
                self.heads,
                round(self.hidden * self.factor),
                queries=1 if cls and i == self.blocks - 1 else None,
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(x)
        x = x[:, 0] if cls else x.mean(1)
        x = nn.relu(layer_norm(x, "norm"))
        return mlp.head(
            x,
            self.dimension,
            self.dtype,
            kernel_init=mlp.KAIMING,
            # Which the paper's code leaves alone.
            bias_init=mlp.uniform_bias(self.hidden),
        )
