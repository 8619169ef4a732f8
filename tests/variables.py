"""Random variables of networks, without compiling how they are drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from proxy import objective


def draw(init: Any, *inputs: Any, seed: int = 0) -> Any:
    """Variables as `init` would shape them.

    Weights keep the size of what goes through them, scales and variances are
    one, biases and means zero, and all else, such as tokens, small.
    """
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            value = np.ones(leaf.shape)
        elif name in ("bias", "mean"):
            value = np.zeros(leaf.shape)
        else:
            kernel = "kernel" in name
            size = np.prod(leaf.shape[:-1]) ** -0.5 if kernel else 0.02
            value = size * rng.standard_normal(leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def start(variables: Any, update: Any, average: bool = False) -> Any:
    """What training starts from, with these variables."""
    params = variables["params"]
    return objective.TrainState(
        jnp.zeros((), jnp.int32),
        params,
        variables.get("batch_stats", {}),
        update.init(params),
        params if average else None,
    )


def normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    """Normally distributed float32; `jax.random` compiles every shape."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)
