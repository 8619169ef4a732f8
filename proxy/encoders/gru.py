"""Recurrent preset encoders: a bidirectional GRU over a preset's parameters.

Gates follow PyTorch: r, z, n with n = tanh(W_in x + b_in + r·(W_hn h + b_hn))
and h' = (1 - z)·n + z·h (Cho et al., https://arxiv.org/abs/1406.1078, with
the reset gate after the product). Both directions run in one loop; the
backward one sees its sequence reversed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from proxy.encoders import inputs, mlp
from proxy.space import ParameterSpace


class Weights(NamedTuple):
    """Weights of one bidirectional layer; axis 0 is forward, backward.

    Attributes:
      input_kernel: weights from the input to the gates r, z, n.
      input_bias: bias of the input's part of the gates.
      hidden_kernel: weights from the state to the gates.
      hidden_bias: bias of the state's part of the gates.
    """

    input_kernel: Float[Array, "2 features gates"]
    input_bias: Float[Array, "2 gates"]
    hidden_kernel: Float[Array, "2 hidden gates"]
    hidden_bias: Float[Array, "2 gates"]


class GRULayer(nn.Module):
    """Holds the weights of one bidirectional layer.

    Attributes:
      features: input size.
      hidden: size of the state of each direction.
      dtype: compute type, that of the weights when None.
    """

    features: int
    hidden: int
    dtype: Any = None

    @nn.compact
    def __call__(self) -> Weights:
        """Returns the weights, in the compute type."""
        xavier = nn.initializers.variance_scaling(
            1.0, "fan_avg", "normal", batch_axis=0
        )
        zeros, gates = nn.initializers.zeros, 3 * self.hidden
        weights = (
            self.param("input_kernel", xavier, (2, self.features, gates)),
            self.param("input_bias", zeros, (2, gates)),
            self.param("hidden_kernel", _orthogonal, (2, self.hidden, gates)),
            self.param("hidden_bias", zeros, (2, gates)),
        )
        dtype = self.dtype or weights[0].dtype
        return Weights(*(w.astype(dtype) for w in weights))


def _orthogonal(key: Array, shape: tuple[int, ...]) -> Array:
    """One matrix for each direction, its rows orthonormal."""
    init = nn.initializers.orthogonal()
    return jnp.stack([init(k, shape[1:]) for k in jax.random.split(key)])


def run(
    weights: Weights,
    gates: Callable[[PyTree], Float[Array, "2 batch gates"]],
    steps: PyTree,
    batch: int,
) -> tuple[
    Float[Array, "batch features"], Float[Array, "length 2 batch hidden"]
]:
    """Runs a layer over a sequence.

    Args:
      weights: the layer's.
      gates: makes the input's part of the gates, bias included, for one
        step of both directions.
      steps: what `gates` reads; axis 0 is the step, in the order in which
        each direction runs.
      batch: batch size.

    Returns:
      The last forward state then the last backward state, and the states
      after every step, again in running order.
    """
    hidden = weights.hidden_kernel.shape[1]
    start = jnp.zeros((2, batch, hidden), weights.hidden_kernel.dtype)

    def step(state, inputs):
        x = gates(inputs)
        y = jnp.einsum("dbh,dhg->dbg", state, weights.hidden_kernel)
        y = y + weights.hidden_bias[:, None]
        rz = nn.sigmoid(x[..., : 2 * hidden] + y[..., : 2 * hidden])
        r, z = jnp.split(rz, 2, -1)
        n = jnp.tanh(x[..., 2 * hidden :] + r * y[..., 2 * hidden :])
        state = n + z * (state - n)
        return state, state

    last, states = jax.lax.scan(step, start, steps)
    return jnp.concatenate([last[0], last[1]], -1), states


def running_order(
    x: Shaped[Any, "2 length *rest"],
) -> Shaped[Any, "length 2 *rest"]:
    """Steps first, the backward direction's sequence reversed."""
    stack = np.stack if isinstance(x, np.ndarray) else jnp.stack
    return stack([x[0], x[1, ::-1]], 1)


def states_in_order(
    states: Float[Array, "length 2 batch hidden"],
) -> Float[Array, "length batch features"]:
    """Forward and backward state at the same place of the sequence."""
    return jnp.concatenate([states[:, 0], states[::-1, 1]], -1)


class TokenGRU(nn.Module):
    """`hn_ptgru`'s input: a GRU over tokens with positions.

    Tokens are linear in the relaxed preset and so is what a GRU does to its
    input: the product of the token rows with the input weights is made once
    for the table, not once for every preset, which saves two thirds of all
    arithmetic.

    Attributes:
      space: the parameter space.
      token: size of a token, and of the output (half for each direction).
      dtype: compute type, that of the weights when None.
    """

    space: ParameterSpace
    token: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, relaxed: Float[Array, "batch width"]
    ) -> Float[Array, "batch features"]:
        """The last states of both directions."""
        table = inputs.TokenTable(self.space, self.token, name="tokens")()
        weights = GRULayer(
            self.token, self.token // 2, self.dtype, name="gru"
        )()
        dtype = weights.input_kernel.dtype
        positions = inputs.sinusoids(self.space.num_used, self.token)
        rows, offsets = (
            jnp.einsum("wf,dfg->dwg", x.astype(dtype), weights.input_kernel)
            for x in (table, jnp.asarray(positions))
        )
        offsets = offsets + weights.input_bias[:, None]
        slots, real = (
            running_order(np.stack([x, x]))
            for x in inputs.padded_slots(self.space)
        )
        # Padding repeats a slot with probability 0.
        values = relaxed.T[slots] * real[..., None]
        steps = (
            values.astype(dtype),
            rows[np.arange(2)[:, None], slots],
            running_order(offsets),
        )

        def gates(step):
            values, rows, offset = step
            x = jnp.einsum("dsb,dsg->dbg", values, rows)
            return x + offset[:, None]

        last, _ = run(weights, gates, steps, relaxed.shape[0])
        return last


class TokenGRUHighway(mlp.Highway):
    """`hn_ptgru`: as `mlp.Highway`, on the last states of a GRU over tokens.

    Attributes:
      token: size of a token, and of the GRU's output.
    """

    token: int = 384

    def view(
        self, relaxed: Float[Array, "batch width"]
    ) -> Float[Array, "batch features"]:
        """The last states of both directions."""
        return TokenGRU(self.space, self.token, self.dtype, name="embed")(
            relaxed
        )


class GRU(mlp.Encoder):
    """`gru_oh`: a GRU over the one-hot preset, one number at a step.

    The head is linear, ReLU, linear.

    Attributes:
      hidden: size of the state, half for each direction.
      layers: number of bidirectional layers.
    """

    hidden: int = 1024
    layers: int = 1

    def embed(
        self, relaxed: Float[Array, "batch width"], train: bool
    ) -> Float[Array, "batch embedding"]:
        """The layers, one after the other, and the head."""
        del train
        batch = relaxed.shape[0]
        x = relaxed.T[..., None]  # [length, batch, 1]
        last = None
        for i in range(self.layers):
            weights = GRULayer(
                x.shape[-1], self.hidden // 2, self.dtype, name=f"gru_{i}"
            )()
            x = x.astype(weights.input_kernel.dtype)

            def gates(x, weights=weights):
                y = jnp.einsum("dbf,dfg->dbg", x, weights.input_kernel)
                return y + weights.input_bias[:, None]

            steps = running_order(jnp.stack([x, x]))
            last, states = run(weights, gates, steps, batch)
            x = states_in_order(states)
        dense = nn.Dense(
            self.hidden,
            kernel_init=mlp.KAIMING,
            dtype=self.dtype,
            name="hidden",
        )
        return mlp.head(
            nn.relu(dense(last)),
            self.dimension,
            self.dtype,
            kernel_init=mlp.KAIMING,
        )
