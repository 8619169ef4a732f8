"""Published tensors: which place in a tree of ours each takes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

StateDict = Mapping[str, np.ndarray]


def vector(array: np.ndarray) -> np.ndarray:
    """Drops axes of size 1."""
    return array.reshape(-1)


def transpose(array: np.ndarray) -> np.ndarray:
    """[out, in] -> [in, out]."""
    return array.T


def hwio(array: np.ndarray) -> np.ndarray:
    """[out, in, height, width] -> [height, width, in, out]."""
    return array.transpose(2, 3, 1, 0)


class Tensor(NamedTuple):
    """A published tensor.

    Attributes:
      name: published name of the tensor.
      path: place of the tensor in our tree, collection first.
      layout: a function from the published layout to ours.
      stacked: whether our array is a stack of all tensors of this path.
    """

    name: str
    path: tuple[str, ...]
    layout: Callable[[np.ndarray], np.ndarray] = np.asarray
    stacked: bool = False


def assemble(
    state: StateDict,
    tensors: Iterable[Tensor],
    shapes: Mapping[str, Any],
    network: str,
    *,
    unused: tuple[str, ...] = (),
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Builds a tree of published tensors.

    Args:
      state: arrays by published name.
      tensors: all that the network has, those of a stack in its order.
      shapes: the tree, with shapes in place of arrays.
      network: what the network is called in errors.
      unused: starts of names that may be there and are not needed.
      dtype: type of the tree's arrays, None for that of the tensors.

    Returns:
      The tree, NumPy arrays.

    Raises:
      ValueError: when a tensor is missing, is one too many, has another
        shape or a value that is not finite; names it.
    """
    tensors = list(tensors)
    names = [tensor.name for tensor in tensors]
    if missing := [name for name in names if name not in state]:
        raise ValueError(
            f"The weights lack {missing[0]!r} (and {len(missing) - 1} more): "
            f"they are not those of {network}."
        )
    surplus = sorted(
        name for name in set(state) - set(names) if not name.startswith(unused)
    )
    if surplus:
        raise ValueError(
            f"The weights hold {surplus[0]!r} (and {len(surplus) - 1} more), "
            f"which {network} does not have."
        )
    expected: Any = traverse_util.flatten_dict(shapes)
    flat: dict[tuple[str, ...], Any] = {}
    for name, path, layout, stacked in tensors:
        # A layout that fails on the number of axes is a wrong shape, too.
        try:
            array = np.ascontiguousarray(layout(state[name]), dtype)
        except (ValueError, IndexError):
            array = None
        shape = expected[path][1:] if stacked else expected[path]
        if array is None or array.shape != shape:
            raise ValueError(
                f"Tensor {name!r} has shape {np.shape(state[name])}, which "
                f"does not fit {network}."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"Tensor {name!r} has values that are not finite.")
        if stacked:
            flat.setdefault(path, []).append(array)
        else:
            flat[path] = array
    flat = {k: np.stack(v) if type(v) is list else v for k, v in flat.items()}
    return traverse_util.unflatten_dict(flat)
