"""Keras's weights files, read without Keras."""

import gzip
import importlib
import io
import os
from typing import Any

import numpy as np

# Uncompressed; OpenL3's files have 19 MB.
_LARGEST = 1 << 27


def read(
    path: str | os.PathLike[str],
) -> dict[str, dict[str, np.ndarray]]:
    """Reads a Keras weights file (HDF5, gzip-compressed or not).

    Only plain arrays of numbers inside the file itself are read.

    Args:
      path: what `model.save_weights` or `model.save` wrote.

    Returns:
      Arrays by layer and weight, in the order of the file.

    Raises:
      ValueError: when the file is damaged, too large or no such file.
      ImportError: when h5py is not installed; says how to install it.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError(
            f"{os.fspath(path)} is in Keras's HDF5 format, which takes h5py: "
            "pip install 'synth-proxy-jax[openl3]'"
        ) from error
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        with h5py.File(io.BytesIO(data)) as file:
            root = file.get("model_weights", file)
            layers: dict[str, dict[str, np.ndarray]] = {}
            left = _LARGEST
            for layer in map(_text, root.attrs["layer_names"]):
                layers[layer] = {}
                for weight in map(_text, root[layer].attrs["weight_names"]):
                    data = _dataset(h5py, root[layer], weight)
                    left -= data.size * data.dtype.itemsize
                    if left < 0:
                        raise ValueError(
                            f"its arrays have more than {_LARGEST:,} bytes"
                        )
                    layers[layer][weight] = np.asarray(data[()])
            return layers
    except FileNotFoundError:
        raise
    except Exception as error:
        # Whatever a malformed file provokes, the file is to blame.
        raise ValueError(
            f"{os.fspath(path)} is not a Keras weights file this project "
            f"reads: {error}"
        ) from error


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _dataset(h5py: Any, group: Any, name: str) -> Any:
    """A plain array of numbers, stored in this very file."""
    place = ""
    for part in name.split("/"):
        place = f"{place}/{part}" if place else part
        link = group.get(place, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a link to elsewhere")
    data = group[name]
    if (
        not isinstance(data, h5py.Dataset)
        or data.external
        or data.is_virtual
        or data.dtype.kind not in "fiu"
    ):
        raise ValueError(f"{name} is not a plain array of numbers")
    return data
