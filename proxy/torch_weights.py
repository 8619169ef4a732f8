"""Published PyTorch state dicts to variable trees: names and layouts.

Arrays in, arrays out: reading files is `datasets.weights`' part.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from proxy.audio import efficientat

StateDict = Mapping[str, np.ndarray]


# EfficientAT


def _efficientat_names(width: float) -> dict[str, tuple[str, ...]]:
    """Published name -> path in the tree, in published order."""
    names: dict[str, tuple[str, ...]] = {}

    def convolution(theirs, *ours):
        names[f"{theirs}.0.weight"] = ("params", *ours, "kernel")
        names[f"{theirs}.1.weight"] = ("params", *ours, "scale")
        names[f"{theirs}.1.bias"] = ("params", *ours, "bias")
        names[f"{theirs}.1.running_mean"] = ("batch_stats", *ours, "mean")
        names[f"{theirs}.1.running_var"] = ("batch_stats", *ours, "var")

    def dense(theirs, *ours):
        names[f"{theirs}.weight"] = ("params", *ours, "kernel")
        names[f"{theirs}.bias"] = ("params", *ours, "bias")

    convolution("features.0", "stem")
    table = efficientat.blocks(width)
    for number, block in enumerate(table, 1):
        theirs, ours = f"features.{number}.block", f"block_{number:02d}"
        layer = 0
        if block.expands:
            convolution(f"{theirs}.{layer}", ours, "expand")
            layer += 1
        convolution(f"{theirs}.{layer}", ours, "depthwise")
        layer += 1
        if block.squeeze:
            inner = f"{theirs}.{layer}.conc_se_layers.0"
            dense(f"{inner}.fc1", ours, "squeeze")
            dense(f"{inner}.fc2", ours, "excite")
            layer += 1
        convolution(f"{theirs}.{layer}", ours, "project")
    convolution(f"features.{len(table) + 1}", "tail")
    dense("classifier.2", "hidden")
    dense("classifier.5", "logits")
    return names


def _to_flax(weight: np.ndarray) -> np.ndarray:
    """[out, in] -> [in, out]; [channels, 1, h, w] -> [h, w, channels]."""
    if weight.ndim == 4 and weight.shape[2:] != (1, 1):
        return np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))
    if weight.ndim == 4:
        weight = weight[:, :, 0, 0]
    return np.ascontiguousarray(weight.T)


def _from_flax(kernel: np.ndarray, convolution: bool) -> np.ndarray:
    if kernel.ndim == 3:
        return np.ascontiguousarray(kernel.transpose(2, 0, 1)[:, None])
    kernel = np.ascontiguousarray(kernel.T)
    return kernel[:, :, None, None] if convolution else kernel


def efficientat_variables(state: StateDict, width: float) -> dict[str, Any]:
    """Variables of `proxy.audio.efficientat` from a published state dict.

    Args:
      state: Names and arrays as EfficientAT publishes them.
      width: The width multiplier the weights belong to.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32.

    Raises:
      ValueError: When a tensor is missing, is one too many or has another
        shape; names it.
    """
    names = _efficientat_names(width)
    given = {n for n in state if not n.endswith(".num_batches_tracked")}
    if missing := [name for name in names if name not in given]:
        raise ValueError(
            f"The weights lack {missing[0]!r} (and {len(missing) - 1} more): "
            f"they are not those of an EfficientAT network of width {width}."
        )
    if surplus := sorted(given - set(names)):
        raise ValueError(
            f"The weights hold {surplus[0]!r} (and {len(surplus) - 1} more), "
            f"which an EfficientAT network of width {width} does not have."
        )
    expected = efficientat.shapes(width)
    tree: dict[str, Any] = {}
    for name, path in names.items():
        array, shape, node = state[name], expected, tree
        if path[-1] == "kernel":
            array = _to_flax(array)
        for part in path:
            shape = shape[part]
        if array.shape != shape:
            raise ValueError(
                f"Tensor {name!r} has shape {state[name].shape}, which does "
                f"not fit an EfficientAT network of width {width}."
            )
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = np.asarray(array, np.float32)
    return tree


def efficientat_state(
    variables: Mapping[str, Any], width: float
) -> dict[str, np.ndarray]:
    """The way back: a state dict in published names, order and layout.

    `num_batches_tracked`, of no use in a frozen network, is left out.
    """
    state = {}
    for name, path in _efficientat_names(width).items():
        node = variables
        for part in path:
            node = node[part]
        array = np.asarray(jax.device_get(node))
        if path[-1] == "kernel":
            convolution = "features" in name and ".fc" not in name
            array = _from_flax(array, convolution)
        state[name] = array
    return state
