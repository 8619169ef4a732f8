"""OpenL3's published Keras layers: names and layouts."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from proxy.audio import openl3
from proxy.published.tensors import Tensor, assemble

_NORM = {
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
_CONVOLUTION = {"kernel": ("params", "kernel"), "bias": ("params", "bias")}


def variables(layers: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Variables of `proxy.audio.openl3` from a published file's layers.

    Keras numbers its layers anew in every session, so names are no guide: the
    layers are taken in the order of the file, which is that of the network,
    as Keras does itself. Layers without weights, and the spectrogram's, which
    files before version 0.4 hold, are skipped.

    Args:
      layers: arrays by layer and weight, in the order of the file.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32. Convolutions have Keras's
      own layout.

    Raises:
      ValueError: when there are more or fewer layers, others, or other
        shapes; names the layer.
    """
    theirs = [
        name
        for name, weights in layers.items()
        if weights and "spectrogram" not in name
    ]
    ours = [
        (f"{kind}_{number}", table)
        for number in range(1, len(openl3.CHANNELS))
        for kind, table in (("norm", _NORM), ("conv", _CONVOLUTION))
    ]
    if len(theirs) != len(ours):
        raise ValueError(
            f"The weights hold {len(theirs)} layers, not the {len(ours)} of "
            "OpenL3's audio network."
        )
    state = {
        # conv2d_1/kernel:0 -> kernel
        f"{layer}/{weight.split('/')[-1].split(':')[0]}": array
        for layer in theirs
        for weight, array in layers[layer].items()
    }
    tensors = [
        Tensor(f"{layer}/{weight}", (part, name, leaf))
        for layer, (name, table) in zip(theirs, ours, strict=True)
        for weight, (part, leaf) in table.items()
    ]
    network = "OpenL3's audio network"
    return assemble(state, tensors, openl3.shapes(), network)
