"""The published estimator's state dict: names and layouts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from matching.estimator import CHANNELS, Estimator
from proxy.published.tensors import StateDict, Tensor, assemble, hwio


def _matrix(weight: np.ndarray) -> np.ndarray:
    """[out, in, ...] -> [in, out]; a convolution's kernel is 1 x 1."""
    return weight.reshape(len(weight), -1).T


def _tensors() -> list[Tensor]:
    # Each of its layers is a convolution, an activation and, from the second
    # on, a batch normalisation.
    starts = [0, *range(2, 2 + 3 * (len(CHANNELS) - 1), 3)]
    layers = {f"conv_{i}": f"enc_nn.{s}" for i, s in enumerate(starts)}
    layers |= {
        f"norm_{i}": f"enc_nn.{s + 2}" for i, s in enumerate(starts) if i
    }
    layers |= {"mixer": "features_mixer_cnn.0"}
    layers |= {"head": "mlp.1", "head_norm": "mlp.2"}
    tensors = []
    for ours, theirs in layers.items():
        params, stats = ("params", ours), ("batch_stats", ours)
        weight, layout = (*params, "kernel"), _matrix
        if "norm" in ours:
            weight, layout = (*params, "scale"), np.asarray
            mean, var = f"{theirs}.running_mean", f"{theirs}.running_var"
            tensors += [Tensor(mean, (*stats, "mean"))]
            tensors += [Tensor(var, (*stats, "var"))]
        elif ours.startswith("conv"):
            layout = hwio
        tensors += [Tensor(f"{theirs}.weight", weight, layout)]
        tensors += [Tensor(f"{theirs}.bias", (*params, "bias"))]
    return tensors


def from_published(state: StateDict) -> dict[str, Any]:
    """Variables of `Estimator` from a published state dict.

    Args:
      state: arrays by name, with or without the prefix `estimator.`; those
        of other networks are ignored.

    Returns:
      `{"params", "batch_stats"}`, NumPy arrays.

    Raises:
      ValueError: when a tensor is missing or has the wrong shape; names it.
    """
    state = {k.removeprefix("estimator."): v for k, v in state.items()}
    tensors = _tensors()
    names = {tensor.name for tensor in tensors}
    outputs = np.size(state.get("mlp.1.bias", 0))
    leaves = jax.eval_shape(
        Estimator(outputs).init, jax.random.key(0), jnp.zeros((1, 128, 313))
    )
    return assemble(
        {name: state[name] for name in names & state.keys()},
        tensors,
        jax.tree.map(lambda leaf: leaf.shape, leaves),
        f"a published estimator of {outputs} logits",
    )
