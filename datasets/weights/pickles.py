"""PyTorch's checkpoints, read without PyTorch.

Such a file may hold more than tensors: settings, callbacks, optimizer states,
of any class. Reading it here imports none of them and runs none of their code.
"""

import collections
import contextlib
import os
import pickle
import zipfile
from typing import Any

import numpy as np

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


class _Placeholder:
    """Stands for an object that is not admitted; takes anything, keeps none.

    Pickles call, index, extend and set the state of what they build.
    """

    what = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Placeholder":
        del args, kwargs
        return super().__new__(cls)

    def _ignore(self, *args: Any, **kwargs: Any) -> "_Placeholder":
        del args, kwargs
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = _ignore


def _placeholder(what: str) -> type[_Placeholder]:
    return type("Placeholder", (_Placeholder,), {"what": what})


def _tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None):
    """What `torch._utils._rebuild_tensor_v2` makes, as an array."""
    del requires_grad, hooks, metadata
    if not isinstance(storage, np.ndarray):
        what = getattr(storage, "what", "a tensor without a storage")
        return _placeholder(what)()
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(
        not isinstance(n, int) or n < 0 for n in numbers
    ):
        return _placeholder(f"a tensor of size {size} and stride {stride}")()
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if last >= storage.size:
        return _placeholder("a tensor that reaches beyond its storage")()
    view = np.lib.stride_tricks.as_strided(
        storage[offset:],
        size,
        [s * storage.itemsize for s in stride],
        writeable=False,
    )
    return view.copy()


class _Unpickler(pickle.Unpickler):
    """Admits tensors of plain types; the rest becomes placeholders."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        return _placeholder(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """The numbers of a storage."""
        match pid:
            case ("storage", np.dtype() as dtype, str(key), _, int(count)):
                pass
            case ("storage", kind, *_):
                return _placeholder(getattr(kind, "what", "a storage"))()
            case _:
                return _placeholder(f"a reference to {pid!r}")()
        try:
            entry = self._archive.getinfo(f"{self._root}/data/{key}")
        except KeyError as error:
            return _placeholder(str(error))()
        if entry.compress_type != zipfile.ZIP_STORED:
            return _placeholder(f"{entry.filename}, which is compressed")()
        size = count * dtype.itemsize
        if entry.file_size != size:
            return _placeholder(
                f"storage {key} of {entry.file_size} bytes instead of {size}"
            )()
        return np.frombuffer(self._archive.read(entry), dtype)


def _unpickle(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, in the zip format."""
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
                return _Unpickler(file, archive, root).load()
    except FileNotFoundError:
        raise
    except Exception as error:
        # Whatever a malformed pickle provokes, the file is to blame.
        raise ValueError(
            f"{os.fspath(path)} is not a state dict this project reads: {error}"
        ) from error


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint; what else it holds is left out.

    Args:
      path: a state dict, or a dictionary with one under "model" or
        "state_dict", as `torch.save` wrote it in the zip format.

    Returns:
      Arrays by name, in the order of the file.

    Raises:
      ValueError: when the file is damaged or of another kind, or an entry of
        the state dict is no tensor of a plain number type; names the entry.
    """
    state = _unpickle(path)
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{os.fspath(path)} holds no state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray):
            what = getattr(value, "what", "") or type(value).__name__
            raise ValueError(
                f"{os.fspath(path)}: entry {name!r} is {what}, not a tensor "
                "of a plain number type; it is refused"
            )
    return dict(state)


def read_lightning(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The encoder's tensors in a PyTorch Lightning checkpoint.

    Returns:
      Tensors by name, without the part before the first dot.

    Raises:
      ValueError: as `read`, or when the names do not share a first part.
    """
    tensors = read(path)
    prefixes = {key.split(".")[0] for key in tensors}
    if len(prefixes) != 1 or not all("." in key for key in tensors):
        raise ValueError(
            f"{path}: its tensors do not share one prefix but start with "
            f"{', '.join(sorted(prefixes))}; expected preset_encoder."
        )
    return {key.split(".", 1)[1]: value for key, value in tensors.items()}
