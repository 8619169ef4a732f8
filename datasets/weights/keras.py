"""Keras's weights files, read without Keras."""

import importlib.util
import os
import pathlib

import numpy as np

from datasets import child, limits

# Uncompressed; OpenL3's files have 19 MB.
_LARGEST = 1 << 27
_HOST = pathlib.Path(__file__).with_name("hdf5.py")


def read(
    path: str | os.PathLike[str],
) -> dict[str, dict[str, np.ndarray]]:
    """Reads a Keras weights file (HDF5, gzip-compressed or not).

    Only plain arrays of numbers inside the file itself are read, in a process
    of its own: the HDF5 library may crash on a damaged file.

    Args:
      path: what `model.save_weights` or `model.save` wrote.

    Returns:
      Arrays by layer and weight, in the order of the file.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: when the file is damaged, or costs more to read than it may.
      ImportError: when h5py is not installed; says how to install it.
    """
    if importlib.util.find_spec("h5py") is None:
        raise ImportError(
            f"{os.fspath(path)} is in Keras's HDF5 format, which takes h5py: "
            "pip install 'synth-proxy-jax[openl3]'"
        )
    file = pathlib.Path(path).absolute()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    wait = limits.usual().seconds
    reader = child.Child(_HOST)
    try:
        reader.ask("limit", 8 * _LARGEST, timeout=wait)
        return reader.ask("read", os.fsencode(file), _LARGEST, timeout=wait)
    except child.ReplyError as error:
        reason = error.args[1]
    except child.DeadError as error:
        reason = f"reading it ends in a {error}{reader.last_words()}"
    finally:
        reader.close()
    raise ValueError(
        f"{os.fspath(path)} is not a Keras weights file this project reads: "
        f"{reason}"
    )
