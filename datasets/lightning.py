"""PyTorch Lightning checkpoints, read without PyTorch.

Such a file holds more than tensors: hyper-parameters, callbacks, optimizer
states, of any class. Reading it here runs none of their code.
"""

import os
from typing import Any

import numpy as np

from datasets import weights


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


class _CheckpointUnpickler(weights.TensorUnpickler):
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


def read(
    path: str | os.PathLike[str],
) -> dict[str, np.ndarray]:
    """The encoder's tensors in a Lightning checkpoint.

    Args:
      path: the file.

    Returns:
      Tensors by name, without the part before the first dot.

    Raises:
      ValueError: when the file is damaged or of another kind, or an entry of
        its state dict is no tensor; names the entry.
    """
    whole = weights.unpickle(path, _CheckpointUnpickler)
    state = whole.get("state_dict") if isinstance(whole, dict) else None
    if not isinstance(state, dict) or not state:
        raise ValueError(
            f"{path} holds no state_dict: it is not a Lightning checkpoint"
        )
    tensors = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray):
            what = getattr(value, "name", "") or type(value).__name__
            raise ValueError(
                f"{path}: entry {key!r} of its state_dict is {what}, not a "
                "tensor of a plain number type; it is refused"
            )
        tensors[key] = value
    prefixes = {key.split(".")[0] for key in tensors}
    if len(prefixes) != 1 or not all("." in key for key in tensors):
        raise ValueError(
            f"{path}: its tensors do not share one prefix but start with "
            f"{', '.join(sorted(prefixes))}; expected preset_encoder."
        )
    return {key.split(".", 1)[1]: value for key, value in tensors.items()}
