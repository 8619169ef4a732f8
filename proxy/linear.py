"""What a proxy must beat: the mean embedding and ridge regression.

Both are linear in sufficient statistics that add up over blocks of data, so
fitting needs one pass and memory that does not grow with the data.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Sums over samples, of centred or raw products alike.

    Attributes:
      count: number of samples.
      inputs: sum of relaxed presets.
      targets: sum of embeddings.
      gram: sum of outer products of relaxed presets.
      cross: sum of outer products of relaxed presets and embeddings.
    """

    count: Float[Array, ""]
    inputs: Float[Array, " width"]
    targets: Float[Array, " embedding"]
    gram: Float[Array, "width width"]
    cross: Float[Array, "width embedding"]


class Linear(NamedTuple):
    """An affine map from relaxed presets to embeddings."""

    weight: Float[Array, "width embedding"]
    bias: Float[Array, " embedding"]


def moments(
    relaxed: Float[Array, "samples width"],
    embedding: Float[Array, "samples embedding"],
) -> Moments:
    """Statistics of one block of data; add blocks with `jax.tree.map`."""
    return Moments(
        jnp.asarray(relaxed.shape[0], relaxed.dtype),
        relaxed.sum(0),
        embedding.sum(0),
        jnp.matmul(relaxed.T, relaxed, precision="highest"),
        jnp.matmul(relaxed.T, embedding, precision="highest"),
    )


def fit_mean(stats: Moments) -> Linear:
    """Predicts the mean training embedding for every preset."""
    return Linear(jnp.zeros_like(stats.cross), stats.targets / stats.count)


def fit_ridge(stats: Moments, penalty: float) -> Linear:
    """Least squares with a penalty on the squared weights.

    Hoerl and Kennard, "Ridge regression", Technometrics 12(1), 1970. The
    bias is not penalised.

    Args:
      stats: moments of the training data.
      penalty: weight of the squared coefficients per sample, positive:
        one-hot blocks sum to one, so the plain problem is singular.

    Returns:
      The affine map.
    """
    x, y = stats.inputs / stats.count, stats.targets / stats.count
    gram = stats.gram / stats.count - jnp.outer(x, x)
    cross = stats.cross / stats.count - jnp.outer(x, y)
    eye = jnp.eye(len(x), dtype=gram.dtype)
    weight = jnp.linalg.solve(gram + penalty * eye, cross)
    return Linear(weight, y - x @ weight)


def apply(
    model: Linear, relaxed: Float[Array, "samples width"]
) -> Float[Array, "samples embedding"]:
    """Predicted embeddings."""
    return jnp.matmul(relaxed, model.weight, precision="highest") + model.bias
