"""EfficientAT's published state dicts: names and layouts."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from proxy.audio import efficientat
from proxy.published.tensors import StateDict, Tensor, assemble


def _kernel(weight: np.ndarray) -> np.ndarray:
    """[out, in] -> [in, out]; [channels, 1, h, w] -> [h, w, channels]."""
    if weight.ndim == 4 and weight.shape[2:] != (1, 1):
        return weight[:, 0].transpose(1, 2, 0)
    return weight.reshape(weight.shape[:2]).T


def tensors(width: float) -> Iterator[Tensor]:
    """Every tensor of a network, in published order."""

    def convolution(theirs: str, *ours: str) -> Iterator[Tensor]:
        params, stats = ("params", *ours), ("batch_stats", *ours)
        yield Tensor(f"{theirs}.0.weight", (*params, "kernel"), _kernel)
        yield Tensor(f"{theirs}.1.weight", (*params, "scale"))
        yield Tensor(f"{theirs}.1.bias", (*params, "bias"))
        yield Tensor(f"{theirs}.1.running_mean", (*stats, "mean"))
        yield Tensor(f"{theirs}.1.running_var", (*stats, "var"))

    def dense(theirs: str, *ours: str) -> Iterator[Tensor]:
        yield Tensor(f"{theirs}.weight", ("params", *ours, "kernel"), _kernel)
        yield Tensor(f"{theirs}.bias", ("params", *ours, "bias"))

    yield from convolution("features.0", "stem")
    table = efficientat.blocks(width)
    for number, block in enumerate(table, 1):
        theirs, ours = f"features.{number}.block", f"block_{number:02d}"
        layer = 0
        if block.expands:
            yield from convolution(f"{theirs}.{layer}", ours, "expand")
            layer += 1
        yield from convolution(f"{theirs}.{layer}", ours, "depthwise")
        layer += 1
        if block.squeeze:
            inner = f"{theirs}.{layer}.conc_se_layers.0"
            yield from dense(f"{inner}.fc1", ours, "squeeze")
            yield from dense(f"{inner}.fc2", ours, "excite")
            layer += 1
        yield from convolution(f"{theirs}.{layer}", ours, "project")
    yield from convolution(f"features.{len(table) + 1}", "tail")
    yield from dense("classifier.2", "hidden")
    yield from dense("classifier.5", "logits")


def variables(state: StateDict, width: float) -> dict[str, Any]:
    """Variables of `proxy.audio.efficientat` from a published state dict.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32.

    Raises:
      ValueError: when a tensor is missing, is one too many or has another
        shape; names it.
    """
    batches = ".num_batches_tracked"
    return assemble(
        {k: v for k, v in state.items() if not k.endswith(batches)},
        tensors(width),
        efficientat.shapes(width),
        f"an EfficientAT network of width {width}",
    )
