"""What comes with the project, trained or fitted, ready to be used.

    encoder, variables = pretrained.load("dexed")
    embedding = encoder.apply(variables, relaxed)
    presets = priors.sample(pretrained.prior("dexed"), key, (256,))

Weights are in the safetensors format: eight bytes (little-endian) with the
length of a JSON header, the header with dtype, shape and place of each array,
then the arrays' bytes. They are stored in half precision. `README.md` beside
them is the model card: data, licence, figures, the command that makes them
again.

This is the one place in `proxy` that opens files: they are package data.
"""

import hashlib
import importlib.resources
import json
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from proxy import encoders, priors, spaces, unknown

_FILES = importlib.resources.files(__name__)
_PRIOR, _WEIGHTS = "_prior.npz", ".safetensors"
_DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


def _names(ending: str) -> tuple[str, ...]:
    files = (file.name for file in _FILES.iterdir())
    found = (f.removesuffix(ending) for f in files if f.endswith(ending))
    return tuple(sorted(found))


# Priors ----------------------------------------------------------------------


def prior(space: str) -> priors.Fitted:
    """A distribution like that of the presets that people make.

    Args:
      space: name of a synthesizer.

    Returns:
      The prior, fitted to a public bank, of which it has statistics alone.

    Raises:
      ValueError: when none comes with the project; lists those that do.
    """
    known = _names(_PRIOR)
    if space not in known:
        message = unknown("fitted prior", space, known)
        raise ValueError(f"{message}; fit one with launch.presets fit")
    data = (_FILES / f"{space}{_PRIOR}").read_bytes()
    return priors.from_bytes(data, spaces.get(space))


# Proxies ---------------------------------------------------------------------


def encode(arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> bytes:
    """Writes arrays in the safetensors format.

    Args:
      arrays: of dtype float16 or float32, by name.
      about: what else the header says; a checksum of the arrays is added.

    Returns:
      The content of a file; the same for the same arguments.

    Raises:
      ValueError: for an array of another dtype.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {}
    parts, place = [], 0
    for name, array in sorted(arrays.items()):
        dtype = array.dtype.newbyteorder("<")
        if dtype not in names:
            raise ValueError(f"{name}: {array.dtype} cannot be stored")
        part = np.ascontiguousarray(array, dtype).tobytes()
        header[name] = {
            "dtype": names[dtype],
            "shape": list(array.shape),
            "data_offsets": [place, place + len(part)],
        }
        parts.append(part)
        place += len(part)
    body = b"".join(parts)
    checksum = hashlib.sha256(body).hexdigest()
    header["__metadata__"] = {**about, "sha256": checksum}
    text = json.dumps(header, sort_keys=True).encode()
    return len(text).to_bytes(8, "little") + text + body


def decode(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads what `encode` wrote.

    Args:
      data: the content of a file.

    Returns:
      The arrays by name, and what the header says.

    Raises:
      ValueError: when the bytes are not in the format, or damaged.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError("its header is cut short")
        header = json.loads(data[8 : 8 + length])
        about = header.pop("__metadata__")
        body, arrays = memoryview(data)[8 + length :], {}
        if hashlib.sha256(body).hexdigest() != about["sha256"]:
            raise ValueError("its arrays do not have its checksum")
        for name, entry in header.items():
            dtype, (start, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
            if end - start != dtype.itemsize * math.prod(entry["shape"]):
                raise ValueError(f"{name} is not of its shape")
            values = np.frombuffer(body[start:end], dtype)
            arrays[name] = values.reshape(entry["shape"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a file of a proxy: {error}") from error
    return arrays, about


def names() -> tuple[str, ...]:
    """Names of the proxies that come with the project."""
    return _names(_WEIGHTS)


def read(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The variables of a proxy, and what its file says of it.

    Args:
      name: one of `names()`.

    Returns:
      The variables, float32, and the strings "encoder", "space", "dimension",
      "audio_model", "sizes", "render" (both JSON: of the encoder; how the
      presets were made to sound) and "sha256".

    Raises:
      ValueError: for an unknown name; lists the known ones.
    """
    if name not in names():
        raise ValueError(unknown("pretrained proxy", name, names()))
    arrays, about = decode((_FILES / f"{name}{_WEIGHTS}").read_bytes())
    flat = {key: array.astype(np.float32) for key, array in arrays.items()}
    return traverse_util.unflatten_dict(flat, sep="/"), about


def load(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A pretrained proxy.

    Args:
      name: one of `names()`, e.g. "dexed".

    Returns:
      The preset encoder, and its variables in float32: `encoder.apply(
      variables, relaxed)` maps relaxed presets [*batch, width] to embeddings
      [*batch, embedding] of the audio model that `read(name)[1]` tells.

    Raises:
      ValueError: for an unknown name; lists the known ones.
    """
    variables, about = read(name)
    encoder = encoders.build(
        about["encoder"],
        spaces.get(about["space"]),
        int(about["dimension"]),
        **json.loads(about["sizes"]),
    )
    return encoder, jax.tree.map(jnp.asarray, variables)
