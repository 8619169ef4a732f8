"""PyTorch Lightning checkpoints, read without PyTorch.

Such a file holds more than tensors: hyper-parameters, callbacks, optimizer
states, of any class. Reading it here runs none of their code.
"""

import os

import numpy as np

from datasets.weights import published


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
    whole = published.unpickle(path, published.CheckpointUnpickler)
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
