"""Batch normalisation that follows PyTorch to the last digit."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Batch normalisation over the leading axis, as PyTorch computes it.

    In training the batch is normalised by its own mean and *biased* variance,
    found in two passes: the one-pass formula of `flax.linen.BatchNorm` loses
    about three digits. The running variance is the *unbiased* one, with n the
    batch over all devices, and new = `momentum`·old + (1 - `momentum`)·batch.
    Statistics are never computed in less than float32.
    (Ioffe and Szegedy, https://arxiv.org/abs/1502.03167, and
    `torch.nn.BatchNorm1d`.)

    Attributes:
      axis_name: mapped axis whose devices share one batch, None for none.
      momentum: share of the old running statistics that stays.
      epsilon: added to the variance.
      dtype: type of the output, that of the input when None.
    """

    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"], *, train: bool
    ) -> Float[Array, "batch features"]:
        """Normalises a batch, and in training updates `batch_stats`.

        Args:
          x: activations.
          train: whether to use, and record, the statistics of this batch.

        Returns:
          scale·(x - mean)/√(variance + epsilon) + bias.

        Raises:
          ValueError: when training on a single example, whose variance is 0.
        """
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable(
            "batch_stats", "mean", jnp.zeros, (features,)
        )
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        dtype = self.dtype or x.dtype
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            axis = None if self.is_initializing() else self.axis_name
            size = x.shape[0]
            mean = x.mean(0)
            if axis is not None:
                size = size * jax.lax.axis_size(axis)
                mean = jax.lax.pmean(mean, axis)
            if size < 2 and not self.is_initializing():
                raise ValueError(
                    "batch normalisation cannot train on a batch of one: use "
                    "a batch of at least 2 presets"
                )
            centred = x - mean
            var = jnp.square(centred).mean(0)
            if axis is not None:
                var = jax.lax.pmean(var, axis)
            if not self.is_initializing():
                new = 1 - self.momentum
                unbiased = var * (size / (size - 1))
                running_mean.value += new * (
                    jax.lax.stop_gradient(mean) - running_mean.value
                )
                running_var.value += new * (
                    jax.lax.stop_gradient(unbiased) - running_var.value
                )
        else:
            centred = x - running_mean.value
            var = running_var.value
        y = centred * (scale * jax.lax.rsqrt(var + self.epsilon)) + bias
        return y.astype(dtype)
