"""Encoders that know modules: what belongs together, and what feeds what.

A synthesizer is made of modules: operators, envelopes, oscillators. Modules
of the same layout (`ParameterSpace.layouts`) do the same thing, so they share
a network here; and where a space has a routing (`ParameterSpace.graph`),
modules send each other messages along it, and those that are heard are summed,
so that it does not matter which of two operators does a job.

* `modules`: dense layers on what the modules say;
* `modules_tfm`: a transformer over one token for each module.

Numerical values are read as piecewise-linear functions of themselves
(Gorishniy et al. 2022, "On embeddings for numerical features in deep
learning", https://arxiv.org/abs/2203.05556, section 3.1, in the basis of hat
functions), so that a layer can bend anywhere.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from proxy.encoders import inputs, mlp, transformer
from proxy.encoders.transformer import layer_norm
from proxy.space import Graph, ParameterSpace

# A stepped parameter of at most so many values has a knot at each.
_STEPS = 64


@functools.lru_cache
def _layout(
    space: ParameterSpace, modules: tuple[int, ...], knots: int
) -> dict[str, np.ndarray]:
    """Where the features of modules of one layout come from.

    Returns:
      "plain" `[modules, values]`, positions in a relaxed preset of what is
      read as it is: probabilities, switches, and numerical values as well;
      "bent" `[modules, hats]`, positions of the numerical value that a hat
      function is of; its "left", "centre" and "right" `[hats]`.
    """
    slots, real = inputs.padded_slots(space)
    columns = [space.module_columns[module].tolist() for module in modules]
    knotted = [_knots(space, column, knots) for column in columns[0]]
    plain = [
        np.concatenate([slots[column][real[column]] for column in own])
        for own in columns
    ]
    bent = [
        np.repeat(slots[own, 0], [len(at) for at in knotted]) for own in columns
    ]
    hats = [
        hat
        for at in knotted
        for outer in [np.concatenate([at[:1] - 1, at, at[-1:] + 1])]
        for hat in zip(outer[:-2], at, outer[2:], strict=True)
    ]
    left, centre, right = np.array(hats, np.float32).reshape(-1, 3).T
    return {
        "plain": np.array(plain, np.int32),
        "bent": np.array(bent, np.int32),
        "left": left,
        "centre": centre,
        "right": right,
    }


def _knots(space: ParameterSpace, column: int, knots: int) -> np.ndarray:
    """Places where a numerical parameter's function bends, else none."""
    parameter = space.used[column]
    if parameter.kind != "numerical":
        return np.zeros(0)
    if parameter.interval is not None:
        return np.linspace(*parameter.interval, knots)
    values = np.array(parameter.values)
    if len(values) <= _STEPS:
        return values
    return np.linspace(values[0], values[-1], knots)


def features(
    relaxed: Float[Array, "batch width"],
    space: ParameterSpace,
    modules: tuple[int, ...],
    knots: int,
) -> Float[Array, "batch modules features"]:
    """What the network of a layout sees of its modules.

    Args:
      relaxed: relaxed presets.
      space: their space.
      modules: numbers of modules of one layout.
      knots: of a continuous parameter, evenly spaced in its interval; a
        stepped one has a knot at each of its values.

    Returns:
      Every value and probability of a module, and the hat functions of its
      numerical values: 1 at their own knot, 0 at the others, linear between.
    """
    table = _layout(space, modules, knots)
    plain = relaxed[:, table["plain"]]
    x = relaxed[:, table["bent"]]
    left, centre, right = (
        jnp.asarray(table[name], x.dtype)
        for name in ("left", "centre", "right")
    )
    rising, falling = (
        (x - left) / (centre - left),
        (right - x) / (right - centre),
    )
    hats = jnp.maximum(jnp.minimum(rising, falling), 0)
    return jnp.concatenate([plain, hats], axis=-1)


class ModuleTokens(nn.Module):
    """One token for each module, from a network that its layout shares.

    Attributes:
      space: the parameter space.
      features: size of a token.
      knots: see `features`.
      dtype: compute type, that of weights and input when None.
    """

    space: ParameterSpace
    features: int
    knots: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, relaxed: Float[Array, "batch width"]
    ) -> Float[Array, "batch modules features"]:
        """Tokens in the order of `ParameterSpace.module_names`."""
        parts = []
        for number, alike in enumerate(self.space.layouts):
            x = features(relaxed, self.space, alike, self.knots)
            dense = _dense(self.features, self.dtype, f"layout_{number}")
            parts.append(dense(x))
        order = np.argsort(np.concatenate(self.space.layouts))
        return jnp.concatenate(parts, axis=1)[:, order]


class Messages(nn.Module):
    """Nodes hear from what feeds them: x + network(own + messages).

    A message is a linear function of its sender, one for what modulates and
    one for what feeds back (Gilmer et al. 2017, "Neural message passing for
    quantum chemistry", https://arxiv.org/abs/1704.01212, section 2).

    Attributes:
      dtype: compute type, that of weights and input when None.
    """

    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch nodes features"], graph: Graph
    ) -> Float[Array, "batch nodes features"]:
        """Applies the block."""
        kinds = jnp.stack([graph.edges, graph.loops], axis=1)
        y = layer_norm(x, "norm")
        sent = _dense(2 * x.shape[-1], self.dtype, "send", use_bias=False)(y)
        sent = sent.reshape(*x.shape[:2], 2, -1)
        y = _dense(x.shape[-1], self.dtype, "keep")(y)
        y += jnp.einsum("bkst,bskf->btf", kinds.astype(y.dtype), sent)
        return x + _dense(x.shape[-1], self.dtype, "update")(nn.relu(y))


class ResidualBlock(nn.Module):
    """Pre-norm block: x + two dense layers of its size.

    Attributes:
      dtype: compute type, that of weights and input when None.
    """

    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch features"]
    ) -> Float[Array, "batch features"]:
        """Applies the block."""
        size = x.shape[-1]
        y = nn.relu(layer_norm(x, "norm"))
        y = nn.relu(_dense(size, self.dtype, "inner")(y))
        return x + _dense(size, self.dtype, "outer")(y)


def _dense(size: int, dtype: Any, name: str, **options: Any) -> nn.Dense:
    return nn.Dense(
        size, kernel_init=mlp.KAIMING, dtype=dtype, name=name, **options
    )


class Modules(mlp.Encoder):
    """`modules`: shared networks, messages along the graph, dense layers.

    What the nodes of a routing have become is summed, what is heard and what
    modulates apart; what other modules say stands side by side.

    Attributes:
      hidden: size of the dense layers behind.
      blocks: number of residual blocks of two dense layers each.
      token: size of what is known of a module.
      hops: how often nodes send messages, where there is a routing; the
        longest chain of a DX7 has three links.
      knots: see `features`.
    """

    hidden: int = 512
    blocks: int = 2
    token: int = 192
    hops: int = 3
    knots: int = 17

    def embed(
        self, relaxed: Float[Array, "batch width"], train: bool
    ) -> Float[Array, "batch embedding"]:
        """Tokens, messages along the graph, dense layers and head."""
        del train
        tokens = ModuleTokens(
            self.space, self.token, self.knots, self.dtype, name="tokens"
        )(relaxed)
        nodes = list(self.space.nodes)
        others = np.setdiff1d(np.arange(tokens.shape[1]), nodes)
        rest = nn.relu(tokens[:, others]).reshape(len(tokens), -1)
        x = rest
        if nodes:
            graph = self.space.graph(relaxed)
            context = _dense(self.token, self.dtype, "context")(rest)
            role = _dense(self.token, self.dtype, "roles")(_roles(graph))
            own = nn.relu(tokens[:, nodes] + context[:, None] + role)
            for hop in range(self.hops):
                own = Messages(self.dtype, name=f"hops_{hop}")(own, graph)
            heard = graph.outputs[..., None].astype(own.dtype)
            parts = [(own * heard).sum(1), (own * (1 - heard)).sum(1), rest]
            x = jnp.concatenate(parts, axis=-1)
        x = _dense(self.hidden, self.dtype, "mix")(x)
        for block in range(self.blocks):
            x = ResidualBlock(self.dtype, name=f"blocks_{block}")(x)
        x = nn.relu(layer_norm(x, "norm"))
        return mlp.head(x, self.dimension, self.dtype)


class ModuleTransformer(mlp.Encoder):
    """`modules_tfm`: a transformer over one token for each module.

    Where the space has a routing, attention is biased, differently in each
    block and head, to what feeds a module, to what it feeds, and to what is
    heard (as Ying et al. 2021, "Do transformers really perform badly for graph
    representation?", https://arxiv.org/abs/2106.05234, section 3.1.2, bias
    it by distance). Modules outside the routing have learned positions.

    Attributes:
      hidden: size of a token.
      blocks: number of blocks.
      heads: number of attention heads.
      factor: size of a block's ReLU network over that of a token.
      knots: see `features`.
    """

    hidden: int = 256
    blocks: int = 4
    heads: int = 8
    factor: float = 4.0
    knots: int = 17

    def embed(
        self, relaxed: Float[Array, "batch width"], train: bool
    ) -> Float[Array, "batch embedding"]:
        """Tokens, blocks and head.

        Raises:
          ValueError: when the token size is not a multiple of the number of
            heads.
        """
        del train
        if self.hidden % self.heads:
            raise ValueError(
                f"modules_tfm: hidden={self.hidden} must be a multiple of "
                f"heads={self.heads}"
            )
        x = ModuleTokens(
            self.space, self.hidden, self.knots, self.dtype, name="tokens"
        )(relaxed)
        nodes = list(self.space.nodes)
        others = np.setdiff1d(np.arange(x.shape[1]), nodes)
        positions = self.param(
            "positions", transformer.SMALL, (len(others), self.hidden)
        )
        x = x.at[:, others].add(positions.astype(x.dtype))
        relations = None
        if nodes:
            graph = self.space.graph(relaxed)
            role = _dense(self.hidden, self.dtype, "roles")(_roles(graph))
            x = x.at[:, nodes].add(role)
            relations = _relations(graph, np.array(nodes), x.shape[1])
        first = self.param("cls", transformer.SMALL, (1, self.hidden))
        first = jnp.broadcast_to(first, (len(x), *first.shape))
        x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        for block in range(self.blocks):
            bias = None
            if relations is not None:
                weights = self.param(
                    f"bias_{block}",
                    transformer.SMALL,
                    (relations.shape[-1], self.heads),
                )
                bias = jnp.einsum("bqkr,rh->bhqk", relations, weights)
            x = transformer.TransformerBlock(
                self.heads,
                round(self.hidden * self.factor),
                queries=1 if block == self.blocks - 1 else None,
                dtype=self.dtype,
                name=f"blocks_{block}",
            )(x, bias)
        x = nn.relu(layer_norm(x[:, 0], "norm"))
        return mlp.head(x, self.dimension, self.dtype)


def _roles(graph: Graph) -> Float[Array, "batch nodes 2"]:
    """Whether a node is heard, and whether it feeds back."""
    return jnp.stack([graph.outputs, graph.loops.sum(-1)], axis=-1)


def _relations(
    graph: Graph, nodes: np.ndarray, modules: int
) -> Float[Array, "batch tokens tokens 4"]:
    """What one token is to another, the first token being the class token.

    Asking token, asked token: the asked one feeds the asking one, is fed by
    it, feeds back into it; and, of the class token, the asked one is heard.
    """
    edges, loops, outputs = graph
    size = modules + 1
    found = jnp.zeros((len(outputs), size, size, 4), outputs.dtype)
    grid = (slice(None), nodes[:, None] + 1, nodes + 1)
    for kind, relation in enumerate((edges.mT, edges, loops.mT)):
        found = found.at[(*grid, kind)].set(relation)
    return found.at[:, 0, nodes + 1, 3].set(outputs)
