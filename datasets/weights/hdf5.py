"""Keras's HDF5 files, read in a process of their own; see `datasets.child`.

The HDF5 library may crash on a damaged file.
"""

import gzip
import io
from typing import Any

import numpy as np


class Host:
    """What may be asked for.

    Args:
      sound: memory for sounds, of which there are none here.
    """

    def __init__(self, sound: np.ndarray) -> None:
        import h5py

        del sound
        self.h5py: Any = h5py

    def read(
        self, path: bytes, largest: int
    ) -> dict[str, dict[str, np.ndarray]]:
        """Arrays by layer and weight, see `keras.read`.

        Args:
          path: the file.
          largest: bytes that the file, unpacked, and its arrays may have.

        Raises:
          ValueError: it is damaged or too large; HDF5 raises others, too.
        """
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"it has more than {largest:,} bytes")
        with self.h5py.File(io.BytesIO(content)) as file:
            root = file.get("model_weights", file)
            layers: dict[str, dict[str, np.ndarray]] = {}
            left = largest
            for layer in map(_text, root.attrs["layer_names"]):
                layers[layer] = {}
                for weight in map(_text, root[layer].attrs["weight_names"]):
                    data = self._dataset(root[layer], weight)
                    left -= data.size * data.dtype.itemsize
                    if left < 0:
                        raise ValueError(
                            f"its arrays have more than {largest:,} bytes"
                        )
                    layers[layer][weight] = np.asarray(data[()])
            return layers

    def _dataset(self, group: Any, name: str) -> Any:
        """A plain array of numbers, stored in this very file."""
        place = ""
        for part in name.split("/"):
            place = f"{place}/{part}" if place else part
            link = group.get(place, getlink=True)
            if not isinstance(link, self.h5py.HardLink):
                raise ValueError(f"{name} is a link to elsewhere")
        data = group[name]
        if (
            not isinstance(data, self.h5py.Dataset)
            or data.external
            or data.is_virtual
            or data.dtype.kind not in "fiu"
        ):
            raise ValueError(f"{name} is not a plain array of numbers")
        return data


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
