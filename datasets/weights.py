"""Published weights of the audio models: download, verify, read, cache.

The weights are EfficientAT's (MIT licence, Florian Schmid 2022,
https://github.com/fschmid56/EfficientAT). They are not part of this project:
they are downloaded once, into `$XDG_CACHE_HOME/synth-proxy-jax/weights` (or
below `~/.cache`), in the published format, and converted whenever they are
loaded, which takes milliseconds. Torch is not needed.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np

from datasets import download
from proxy import torch_weights
from proxy.audio import efficientat

_RELEASE = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
      file: Its name in the release.
      sha256: Its checksum; None where we never had the file in hand. Then the
        checksum on first use is recorded beside it, and every later load is
        held against that.
    """

    file: str
    sha256: str | None = None

    @property
    def url(self) -> str:
        """Where it is published."""
        return _RELEASE + self.file


PUBLISHED = {
    "mn01": Published("mn01_as_mAP_298.pt"),
    "mn02": Published("mn02_as_mAP_378.pt"),
    "mn04": Published(
        "mn04_as_mAP_432.pt",
        "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
    ),
    "mn05": Published("mn05_as_mAP_443.pt"),
    "mn10": Published("mn10_as_mAP_471.pt"),
    "mn20": Published("mn20_as_mAP_478.pt"),
    "mn30": Published("mn30_as_mAP_482.pt"),
    "mn40": Published("mn40_as_mAP_484.pt"),
}


def load(
    name: str,
    cache_dir: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    """Variables of an audio model from its published weights.

    Args:
      name: One of `PUBLISHED`, as in `AudioModel.weights`.
      cache_dir: Where downloads are kept; None for `weights` in
        `download.cache_folder()`.
      path: A file to read instead of downloading.
      sha256: The checksum to expect instead of the known one: for weights of
        your own, or to pin a width whose checksum is not known here.

    Returns:
      `{"params": ..., "batch_stats": ...}` of float32 NumPy arrays.

    Raises:
      ValueError: For an unknown name, a wrong checksum (nothing is deleted),
        a file that is not what it should be, or a cache folder that cannot
        be written to.
      FileNotFoundError: When `path` does not exist, or the file is not cached
        and cannot be downloaded; says where to get and to put it.
    """
    if name not in PUBLISHED:
        raise ValueError(
            f"No published weights are known as {name!r}: "
            f"use one of {', '.join(PUBLISHED)}."
        )
    published = PUBLISHED[name]
    if path is not None:
        file = pathlib.Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"There are no weights at {file}: download {published.url}, "
                "or leave the path out."
            )
        expected = sha256 or published.sha256
        if expected:
            download.verify(file, expected)
    else:
        folder = (
            pathlib.Path(cache_dir)
            if cache_dir
            else download.cache_folder() / "weights"
        )
        file = folder / published.file
        download.fetch(
            published.url, path=file, sha256=sha256 or published.sha256
        )
    state = read_state_dict(file)
    try:
        return torch_weights.efficientat_variables(
            state, efficientat.WIDTHS[name]
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


# Reading without torch.

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def _rebuild_tensor(
    storage, offset, size, stride, requires_grad, hooks, metadata=None
):
    """What `torch._utils._rebuild_tensor_v2` makes, as an array."""
    del requires_grad, hooks, metadata
    if not isinstance(storage, np.ndarray):
        raise ValueError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(
        not isinstance(n, int) or n < 0 for n in numbers
    ):
        raise ValueError(f"a tensor of size {size} and stride {stride}")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if last >= storage.size:
        raise ValueError("a tensor that reaches beyond its storage")
    view = np.lib.stride_tricks.as_strided(
        storage[offset:],
        size,
        [s * storage.itemsize for s in stride],
        writeable=False,
    )
    return view.copy()


class TensorUnpickler(pickle.Unpickler):
    """Admits dictionaries of tensors of plain types, nothing else."""

    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive = archive
        self._root = root

    def find_class(self, module, name):
        """The few globals a tensor needs."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise ValueError(
            f"it refers to {module}.{name}, and only plain tensors are admitted"
        )

    def persistent_load(self, pid):
        """The numbers of a storage."""
        match pid:
            case ("storage", np.dtype() as dtype, str(key), _, int(count)):
                pass
            case _:
                raise ValueError(f"it refers to {pid!r}, not to a storage")
        entry = self._archive.getinfo(f"{self._root}/data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its entry {entry.filename} is compressed")
        if entry.file_size != count * dtype.itemsize:
            raise ValueError(
                f"its storage {key} has {entry.file_size} bytes, not "
                f"{count * dtype.itemsize}"
            )
        return np.frombuffer(self._archive.read(entry), dtype)


def unpickle(
    path: str | os.PathLike[str], unpickler: type["TensorUnpickler"]
) -> Any:
    """Reads what `torch.save` wrote (the zip format) without PyTorch.

    Args:
      path: the file.
      unpickler: decides what the file may refer to.

    Returns:
      The pickled object.

    Raises:
      ValueError: When the file is damaged, or the unpickler refuses it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [
                name
                for name in archive.namelist()
                if name.count("/") == 1 and name.endswith("/data.pkl")
            ]
            if len(pickles) != 1:
                raise ValueError("it has no data.pkl")
            root = pickles[0].split("/")[0]
            with contextlib.suppress(KeyError):
                order = archive.read(f"{root}/byteorder")
                if order != b"little":
                    raise ValueError(f"its byte order is {order!r}")
            with archive.open(pickles[0]) as file:
                return unpickler(file, archive, root).load()
    except FileNotFoundError:
        raise
    except Exception as error:
        # Whatever a malformed pickle provokes, the file is to blame.
        raise ValueError(
            f"{os.fspath(path)} is not a state dict this project reads: {error}"
        ) from error


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a PyTorch state dict (the zip format) without PyTorch.

    The file cannot run code: it may hold dictionaries of tensors of plain
    number types, and anything else is refused by name.

    Args:
      path: What `torch.save(model.state_dict(), path)` wrote.

    Returns:
      Name to array, in the order of the file.

    Raises:
      ValueError: When the file is damaged, or holds anything else.
    """
    state = unpickle(path, TensorUnpickler)
    if not isinstance(state, dict):
        raise ValueError(
            f"{os.fspath(path)} is not a state dict this project reads: it "
            f"holds a {type(state).__name__}"
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            raise ValueError(
                f"{os.fspath(path)} is not a state dict this project reads: "
                f"its entry {name!r} is a {type(value).__name__}, not a tensor"
            )
    return dict(state)
