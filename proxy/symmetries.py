"""Presets that sound the same by construction.

An operator that modulates may change places with another that modulates the
same one; the parameters of what cannot be heard may be anything. Such presets
are training data that need no rendering:

    presets = equivalent(key, batch["preset"], space)
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from proxy.space import ParameterSpace, Routing
from proxy.spaces import dexed

# Of each synthesizer where it is known, the parameters that nobody hears.
_FREE: dict[str, Callable[[Array], Bool[Array, "*batch parameters"]]] = {
    "dexed": dexed.free
}


@functools.cache
def automorphisms(routing: Routing) -> tuple[np.ndarray, np.ndarray]:
    """Exchanges of nodes that leave a routing as it is.

    Found by trying every order, so that a routing may have eight nodes or so.

    Args:
      routing: the routing.

    Returns:
      `[categories, 2, exchanges, nodes]`, for each node the one whose place it
      takes, first those that keep the loops in place, too, then those that
      need not; and `[categories, 2]`, how many there are, the rest of the
      table being repetitions.
    """
    nodes = len(routing.modules)
    orders = np.array(list(itertools.permutations(range(nodes))))
    pairs = (orders[:, :, None], orders[:, None, :])

    def kept(matrix):
        return (matrix[pairs] == matrix).all((1, 2))

    found = []
    for edges, loops, outputs in zip(
        routing.edge_table,
        routing.loop_table,
        routing.output_table,
        strict=True,
    ):
        same = kept(edges) & (outputs[orders] == outputs).all(1)
        found.append((orders[same & kept(loops)], orders[same]))
    counts = np.array([[len(some) for some in both] for both in found])
    tables = [
        [np.resize(some, (counts.max(), nodes)) for some in both]
        for both in found
    ]
    return np.array(tables, np.int8), counts.astype(np.int32)


def exchange(
    key: Key[Array, ""],
    presets: Float[Array, "batch parameters"],
    space: ParameterSpace,
) -> Float[Array, "batch parameters"]:
    """Exchanges nodes under the symmetries of each preset's routing.

    Args:
      key: JAX random key.
      presets: hard presets.
      space: their space.

    Returns:
      Presets that sound the same; the same presets, where the space has no
      routing.
    """
    routing = space.routing
    if routing is None:
        return presets
    tables, counts = map(jnp.asarray, automorphisms(routing))
    category = presets[:, space.index(routing.parameter)].astype(jnp.int32)
    idle = (presets[:, space.index(routing.feedback)] == 0).astype(jnp.int32)
    number = jax.random.randint(
        key, category.shape, 0, counts[category, idle], jnp.int32
    )
    places = tables[category, idle, number].astype(jnp.int32)
    node, counterparts = space.node_columns
    own = np.arange(space.num_used)
    source = jnp.asarray(counterparts)[places[:, node], own]
    source = jnp.where(node >= 0, source, own)
    return jnp.take_along_axis(presets, source, axis=-1)


def equivalent(
    key: Key[Array, ""],
    presets: Float[Array, "batch parameters"],
    space: ParameterSpace,
) -> Float[Array, "batch parameters"]:
    """Other presets with the same sound.

    What cannot be heard becomes what it is in another preset of the batch;
    then nodes are exchanged.

    Args:
      key: JAX random key.
      presets: hard presets.
      space: their space.

    Returns:
      Presets that sound the same, in a synthesizer whose symmetries are
      known; the same presets in others.
    """
    if space.name in _FREE:
        others = jnp.roll(presets, 1, axis=0)
        presets = jnp.where(_FREE[space.name](presets), others, presets)
    return exchange(key, presets, space)
