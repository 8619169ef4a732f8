"""The way back from our variables to published state dicts."""

import collections

import numpy as np
from flax import traverse_util

from proxy.published import efficientat, encoders


def _state(tensors, variables):
    flat = traverse_util.flatten_dict(variables)
    seen = collections.Counter()
    state = {}
    for tensor in tensors:
        if tensor.path not in flat:
            continue
        array = np.asarray(flat[tensor.path])
        if tensor.stacked:
            array = array[seen[tensor.path]]
            seen[tensor.path] += 1
        if tensor.path[-1].endswith("kernel"):
            deep = array.ndim == 3
            array = array.transpose(2, 0, 1)[:, None] if deep else array.T
            name = tensor.name
            if not deep and name.startswith("features") and ".fc" not in name:
                array = array[:, :, None, None]
        state[tensor.name] = np.ascontiguousarray(array)
    return state


def efficientat_state(variables, width):
    """In published names, order and layout, without what counts batches."""
    return _state(efficientat.tensors(width), variables)


def encoder_state(name, variables):
    """Of variables, or of gradients under "params"."""
    params = variables["params"]
    blocks = sum(key.startswith(("blocks_", "gru_")) for key in params)
    return _state(encoders.tensors(name, blocks), variables)
