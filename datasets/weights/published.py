"""Published weights of the audio models: download, verify, read, cache.

They are not part of this project: they are downloaded once, into
`$XDG_CACHE_HOME/synth-proxy-jax/weights` (or below `~/.cache`), in the
published format, and converted whenever they are loaded. Neither PyTorch nor
Keras is needed; OpenL3's take h5py.

* `mn01` to `mn40`: MIT, https://github.com/fschmid56/EfficientAT;
* `passt_s`, `passt_l`: Apache-2.0, https://github.com/kkoutini/PaSST;
* `openl3_*`: CC BY 4.0, https://github.com/marl/openl3, branch `models`;
* `audiomae`: CC BY 4.0, https://github.com/facebookresearch/AudioMAE, as
  ported to timm by gaunernst on huggingface.co, for which there is an address
  that programs can download from. The original's own files work as `path`.
"""

import collections
import contextlib
import dataclasses
import gzip
import importlib
import io
import os
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np

from datasets import download
from proxy.audio import efficientat, openl3, passt
from proxy.published import efficientat as torch_weights
from proxy.published import openl3 as keras_weights

_RELEASE = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
_PASST = "https://github.com/kkoutini/PaSST/releases/download/"
_OPENL3 = "https://github.com/marl/openl3/raw/models/"
_AUDIOMAE = (
    "https://huggingface.co/gaunernst/"
    "vit_base_patch16_1024_128.audiomae_as2m_ft_as20k/resolve/main/"
)
# Uncompressed; OpenL3's files have 19 MB.
_LARGEST = 1 << 27


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
      file: Its name in the cache.
      sha256: Its checksum; None where we never had the file in hand. Then the
        checksum on first use is recorded beside it, and every later load is
        held against that.
      release: The start of its URL.
      remote: The rest of it, where that is not the name in the cache.
    """

    file: str
    sha256: str | None = None
    release: str = _RELEASE
    remote: str | None = None

    @property
    def url(self) -> str:
        """Where it is published."""
        return self.release + (self.remote or self.file)


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
    # With knowledge distillation, as the paper's PaSST-S and PaSST-L.
    "passt_s": Published("passt-s-kd-ap.486.pt", release=_PASST + "v.0.0.9/"),
    "passt_l": Published("passt-l-kd-ap.47.pt", release=_PASST + "v.0.0.10/"),
    "audiomae": Published(
        "audiomae-as2m-ft-as20k.bin",
        release=_AUDIOMAE,
        remote="pytorch_model.bin",
    ),
    **{
        f"openl3_{spectrum}_{content}": Published(
            f"openl3_audio_{spectrum}_{content}-v0_4_0.h5.gz", release=_OPENL3
        )
        for spectrum in openl3.SPECTRA
        for content in openl3.CONTENTS
    },
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
      `{"params": ...}`, and "batch_stats" where there are any, of float32
      NumPy arrays.

    Raises:
      ValueError: For an unknown name, a wrong checksum (nothing is deleted),
        a file that is not what it should be, or a cache folder that cannot
        be written to.
      FileNotFoundError: When `path` does not exist, or the file is not cached
        and cannot be downloaded; says where to get and to put it.
      ImportError: When reading it takes a library that is not installed.
    """
    file, _ = _fetch(name, cache_dir, path, sha256)
    try:
        return _variables(name, file)
    except ValueError as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file}: {error}") from error


def digest(
    name: str,
    cache_dir: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    fetch: bool = False,
) -> str:
    """Which file `load` would read, told by its sha256.

    Args:
      name: As for `load`.
      cache_dir: As for `load`.
      path: As for `load`.
      fetch: Whether to download it if need be.

    Returns:
      The checksum in hexadecimal; "" for a file that is not at hand and not
      fetched, and whose checksum is not known beforehand.

    Raises:
      As `load` does, except for what is in the file.
    """
    if fetch:
        return _fetch(name, cache_dir, path, None)[1]
    file = _place(name, cache_dir, path)
    if file.is_file():
        return download.checksum(file)
    return "" if path is not None else PUBLISHED[name].sha256 or ""


def _place(
    name: str,
    cache_dir: str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None,
) -> pathlib.Path:
    """Where the file of that name is, or will be."""
    if name not in PUBLISHED:
        raise ValueError(
            f"No published weights are known as {name!r}: "
            f"use one of {', '.join(PUBLISHED)}."
        )
    if path is not None:
        return pathlib.Path(path)
    folder = pathlib.Path(cache_dir or download.cache_folder() / "weights")
    return folder / PUBLISHED[name].file


def _fetch(
    name: str,
    cache_dir: str | os.PathLike[str] | None,
    path: str | os.PathLike[str] | None,
    sha256: str | None,
) -> tuple[pathlib.Path, str]:
    """The verified file and its checksum, downloaded if need be."""
    file = _place(name, cache_dir, path)
    published = PUBLISHED[name]
    expected = sha256 or published.sha256
    if path is None:
        return file, download.fetch(published.url, path=file, sha256=expected)
    if not file.is_file():
        raise FileNotFoundError(
            f"There are no weights at {file}: download {published.url}, "
            "or leave the path out."
        )
    if expected:
        return file, download.verify(file, expected)
    return file, download.checksum(file)


def _variables(name: str, file: pathlib.Path) -> dict[str, Any]:
    """Reads and converts a file."""
    if name in efficientat.WIDTHS:
        return torch_weights.efficientat_variables(
            read_state_dict(file), efficientat.WIDTHS[name]
        )
    if name in passt.DEPTHS:
        return torch_weights.passt_variables(
            read_checkpoint(file), passt.DEPTHS[name]
        )
    if name.startswith("openl3"):
        return keras_weights.openl3_variables(read_keras(file))
    return torch_weights.audiomae_variables(read_checkpoint(file))


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


class Placeholder:
    """Stands for an object of a class that is not admitted; does nothing.

    Pickles call, index, extend and set the state of what they build: a
    placeholder takes all of it and keeps none.
    """

    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        """Ignores the arguments."""
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        """Gives itself."""
        del args, kwargs
        return self

    def __setstate__(self, state: Any) -> None:
        del state

    def __setitem__(self, key: Any, value: Any) -> None:
        del key, value

    def append(self, value: Any) -> None:
        """Ignores the value."""
        del value

    def extend(self, values: Any) -> None:
        """Ignores the values."""
        del values

    def add(self, value: Any) -> None:
        """Ignores the value."""
        del value


def _placeholder(name: str) -> type[Placeholder]:
    return type("Placeholder", (Placeholder,), {"name": name})


class CheckpointUnpickler(TensorUnpickler):
    """Admits tensors of plain types; the rest becomes placeholders."""

    def find_class(self, module: str, name: str) -> Any:
        """Nothing outside this project is ever imported."""
        try:
            found: Any = super().find_class(module, name)
        except ValueError:
            return _placeholder(f"{module}.{name}")
        if name != "_rebuild_tensor_v2":
            return found

        def rebuild(*args: Any) -> Any:
            # A tensor of another type counts only where it is needed.
            try:
                return found(*args)
            except (TypeError, ValueError) as error:
                return _placeholder(f"{module}.{name} ({error})")()

        return rebuild

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or a placeholder for one of another type."""
        try:
            return super().persistent_load(pid)
        except (KeyError, ValueError) as error:
            return _placeholder(f"storage ({error})")()


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


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch checkpoint without PyTorch.

    Unlike `read_state_dict` it takes files that hold more than tensors
    (settings, optimizer states) beside them; none of it is run or kept.

    Args:
      path: A state dict, or a dictionary with one under "model" or
        "state_dict".

    Returns:
      Name to array, in the order of the file.

    Raises:
      ValueError: When the file is damaged, or an entry of the state dict is
        no tensor of a plain number type; names it.
    """
    state = unpickle(path, CheckpointUnpickler)
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{os.fspath(path)} holds no state dict.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            what = getattr(value, "name", "") or type(value).__name__
            raise ValueError(
                f"{os.fspath(path)}: entry {name!r} is {what}, not a tensor "
                "of a plain number type"
            )
    return dict(state)


# Reading without Keras.


def read_keras(
    path: str | os.PathLike[str],
) -> dict[str, dict[str, np.ndarray]]:
    """Reads a Keras weights file (HDF5, gzip-compressed or not).

    Only plain arrays of numbers inside the file itself are read.

    Args:
      path: What `model.save_weights` or `model.save` wrote.

    Returns:
      Layer -> weight -> array, in the order of the file.

    Raises:
      ValueError: When the file is damaged, too large or no such file.
      ImportError: When h5py is not installed; says how to install it.
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
            for layer in map(_text, root.attrs["layer_names"]):
                weights = map(_text, root[layer].attrs["weight_names"])
                layers[layer] = {
                    weight: _array(h5py, root[layer], weight)
                    for weight in weights
                }
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


def _array(h5py: Any, group: Any, name: str) -> np.ndarray:
    """A plain array of numbers, stored in this very file."""
    place = ""
    for part in name.split("/"):
        place = f"{place}/{part}" if place else part
        link = group.get(place, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a link to elsewhere")
    found = group[name]
    if (
        not isinstance(found, h5py.Dataset)
        or found.external
        or found.is_virtual
        or found.dtype.kind not in "fiu"
        or found.size > _LARGEST // 4
    ):
        raise ValueError(f"{name} is not a plain array of numbers")
    return np.asarray(found[()])
