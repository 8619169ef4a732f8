"""PyTorch's checkpoints, read without PyTorch.

Such a file may hold more than tensors: settings, callbacks, optimizer states,
of any class. Reading it here imports none of them and runs none of their code.
Nor does it take more memory than its size explains, whatever it claims.
"""

import collections
import contextlib
import functools
import io
import math
import os
import pickle
import pickletools
import zipfile
from typing import Any

import numpy as np

from datasets import limits

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


# Bytes of the part that is not numbers; of large checkpoints it has a few
# hundred thousand.
_LARGEST_PICKLE = 2**24
# Tensors may share numbers, but not so often.
_MOST_COPIES = 8


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


@functools.lru_cache(maxsize=1024)
def _placeholder(what: str) -> type[_Placeholder]:
    what = limits.shorten(what)
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
    if math.prod(size) > storage.size:
        return _placeholder(
            f"a tensor of {math.prod(size):,} numbers from a storage of "
            f"{storage.size:,}"
        )()
    view = np.lib.stride_tricks.as_strided(
        storage[offset:],
        size,
        [s * storage.itemsize for s in stride],
        writeable=False,
    )
    return view.copy()


class _Unpickler(pickle.Unpickler):
    """Admits tensors of plain types; the rest becomes placeholders."""

    def __init__(
        self, data: bytes, archive: zipfile.ZipFile, root: str, most: int
    ):
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._root = root
        # Bytes of tensors that may still be made.
        self._left = most
        self._storages: dict[str, np.ndarray] = {}

    def _tensor(self, *arguments: Any) -> Any:
        tensor = _tensor(*arguments)
        self._left -= getattr(tensor, "nbytes", 0)
        if self._left < 0:
            raise ValueError("its tensors claim more than the file holds")
        return tensor

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
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
        if key in self._storages:
            return self._storages[key].view(dtype)
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
        self._left -= size
        if self._left < 0:
            raise ValueError("its tensors claim more than the file holds")
        data = np.frombuffer(limits.unzip(self._archive, entry, size), dtype)
        return self._storages.setdefault(key, data)


def _check(data: bytes) -> None:
    """Looks through a pickle before it is loaded.

    Raises:
      ValueError: an instruction reserves memory for what is not there.
    """
    for count, (code, argument, _) in enumerate(pickletools.genops(data)):
        # The memo is a list as long as its largest place.
        if "PUT" in code.name and int(argument or 0) > count:
            raise ValueError(f"its memo claims {argument:,} entries")


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
                entry = archive.getinfo(f"{root}/byteorder")
                order = limits.unzip(archive, entry, 16)
                if order != b"little":
                    raise ValueError(f"its byte order is {order!r}")
            entry = archive.getinfo(pickles[0])
            data = limits.unzip(archive, entry, _LARGEST_PICKLE)
            _check(data)
            most = _MOST_COPIES * os.stat(path).st_size
            return _Unpickler(data, archive, root, most).load()
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
            shown = limits.shorten(repr(name))
            raise ValueError(
                f"{os.fspath(path)}: entry {shown} is {what}, not a tensor "
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
