"""Published Keras weights to variable trees: names and layouts.

Arrays in, arrays out: reading files is `datasets.weights.published`' part.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from proxy.audio import openl3

Layers = Mapping[str, Mapping[str, np.ndarray]]

_NORM = {
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
_CONVOLUTION = {"kernel": ("params", "kernel"), "bias": ("params", "bias")}


def _short(weight: str) -> str:
    """`conv2d_1/kernel:0` -> `kernel`."""
    return weight.split("/")[-1].split(":")[0]


def openl3_variables(layers: Layers) -> dict[str, Any]:
    """Variables of `proxy.audio.openl3` from a published file's layers.

    Keras numbers its layers anew in every session, so names are no guide: the
    layers are taken in the order of the file, which is that of the network,
    as Keras does itself. Layers without weights, and the spectrogram's, which
    files before version 0.4 hold, are skipped.

    Args:
      layers: Layer -> weight -> array, in the order of the file.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32. Convolutions have Keras's
      own layout.

    Raises:
      ValueError: When there are more or fewer layers, others, or other
        shapes; names the layer.
    """
    found = [
        (name, {_short(weight): array for weight, array in weights.items()})
        for name, weights in layers.items()
        if weights and "spectrogram" not in name
    ]
    ours = [
        (f"{kind}_{number}", table)
        for number in range(1, len(openl3.CHANNELS))
        for kind, table in (("norm", _NORM), ("conv", _CONVOLUTION))
    ]
    if len(found) != len(ours):
        raise ValueError(
            f"The weights hold {len(found)} layers, not the {len(ours)} of "
            "OpenL3's audio network."
        )
    shapes = openl3.shapes()
    tree: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for (theirs, weights), (layer, table) in zip(found, ours, strict=True):
        if set(weights) != set(table):
            raise ValueError(
                f"Layer {theirs!r} holds {', '.join(sorted(weights))}, where "
                f"OpenL3 has {', '.join(sorted(table))}."
            )
        for weight, (part, name) in table.items():
            array, shape = weights[weight], shapes[part][layer][name]
            if array.shape != shape:
                raise ValueError(
                    f"The {weight} of layer {theirs!r} has shape "
                    f"{array.shape}, where OpenL3 has {shape}."
                )
            place = tree[part].setdefault(layer, {})
            place[name] = np.asarray(array, np.float32)
    return tree
