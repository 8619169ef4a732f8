"""Published PyTorch state dicts to variable trees: names and layouts.

Arrays in, arrays out: reading files is `datasets.weights.published`' part.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from proxy.audio import audiomae, efficientat, passt

StateDict = Mapping[str, np.ndarray]


# EfficientAT


def _efficientat_names(width: float) -> dict[str, tuple[str, ...]]:
    """Published name -> path in the tree, in published order."""
    names: dict[str, tuple[str, ...]] = {}

    def convolution(theirs, *ours):
        names[f"{theirs}.0.weight"] = ("params", *ours, "kernel")
        names[f"{theirs}.1.weight"] = ("params", *ours, "scale")
        names[f"{theirs}.1.bias"] = ("params", *ours, "bias")
        names[f"{theirs}.1.running_mean"] = ("batch_stats", *ours, "mean")
        names[f"{theirs}.1.running_var"] = ("batch_stats", *ours, "var")

    def dense(theirs, *ours):
        names[f"{theirs}.weight"] = ("params", *ours, "kernel")
        names[f"{theirs}.bias"] = ("params", *ours, "bias")

    convolution("features.0", "stem")
    table = efficientat.blocks(width)
    for number, block in enumerate(table, 1):
        theirs, ours = f"features.{number}.block", f"block_{number:02d}"
        layer = 0
        if block.expands:
            convolution(f"{theirs}.{layer}", ours, "expand")
            layer += 1
        convolution(f"{theirs}.{layer}", ours, "depthwise")
        layer += 1
        if block.squeeze:
            inner = f"{theirs}.{layer}.conc_se_layers.0"
            dense(f"{inner}.fc1", ours, "squeeze")
            dense(f"{inner}.fc2", ours, "excite")
            layer += 1
        convolution(f"{theirs}.{layer}", ours, "project")
    convolution(f"features.{len(table) + 1}", "tail")
    dense("classifier.2", "hidden")
    dense("classifier.5", "logits")
    return names


def _to_flax(weight: np.ndarray) -> np.ndarray:
    """[out, in] -> [in, out]; [channels, 1, h, w] -> [h, w, channels]."""
    if weight.ndim == 4 and weight.shape[2:] != (1, 1):
        return np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))
    if weight.ndim == 4:
        weight = weight[:, :, 0, 0]
    return np.ascontiguousarray(weight.T)


def _from_flax(kernel: np.ndarray, convolution: bool) -> np.ndarray:
    if kernel.ndim == 3:
        return np.ascontiguousarray(kernel.transpose(2, 0, 1)[:, None])
    kernel = np.ascontiguousarray(kernel.T)
    return kernel[:, :, None, None] if convolution else kernel


def efficientat_variables(state: StateDict, width: float) -> dict[str, Any]:
    """Variables of `proxy.audio.efficientat` from a published state dict.

    Args:
      state: Names and arrays as EfficientAT publishes them.
      width: The width multiplier the weights belong to.

    Returns:
      `{"params": ..., "batch_stats": ...}`, float32.

    Raises:
      ValueError: When a tensor is missing, is one too many or has another
        shape; names it.
    """
    names = _efficientat_names(width)
    given = {n for n in state if not n.endswith(".num_batches_tracked")}
    if missing := [name for name in names if name not in given]:
        raise ValueError(
            f"The weights lack {missing[0]!r} (and {len(missing) - 1} more): "
            f"they are not those of an EfficientAT network of width {width}."
        )
    if surplus := sorted(given - set(names)):
        raise ValueError(
            f"The weights hold {surplus[0]!r} (and {len(surplus) - 1} more), "
            f"which an EfficientAT network of width {width} does not have."
        )
    expected = efficientat.shapes(width)
    tree: dict[str, Any] = {}
    for name, path in names.items():
        array, shape, node = state[name], expected, tree
        if path[-1] == "kernel":
            array = _to_flax(array)
        for part in path:
            shape = shape[part]
        if array.shape != shape:
            raise ValueError(
                f"Tensor {name!r} has shape {state[name].shape}, which does "
                f"not fit an EfficientAT network of width {width}."
            )
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = np.asarray(array, np.float32)
    return tree


def efficientat_state(
    variables: Mapping[str, Any], width: float
) -> dict[str, np.ndarray]:
    """The way back: a state dict in published names, order and layout.

    `num_batches_tracked`, of no use in a frozen network, is left out.
    """
    state = {}
    for name, path in _efficientat_names(width).items():
        node = variables
        for part in path:
            node = node[part]
        array = np.asarray(jax.device_get(node))
        if path[-1] == "kernel":
            convolution = "features" in name and ".fc" not in name
            array = _from_flax(array, convolution)
        state[name] = array
    return state


# Vision transformers


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One leaf of a tree and where it is published.

    Attributes:
      path: Its place below `params`.
      names: The tensor's name; those of several, when it is a stack of them.
      layout: From a published tensor's layout to ours.
      stack: Whether it is a stack.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    layout: Callable[[np.ndarray], np.ndarray]
    stack: bool = False


def _vector(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)


def _table(array: np.ndarray) -> np.ndarray:
    """[1, rows, width] -> [rows, width]."""
    return array.reshape(array.shape[-2:])


def _columns(array: np.ndarray) -> np.ndarray:
    """[1, width, rows, 1] or [1, width, 1, rows] -> [rows, width]."""
    return array.reshape(array.shape[1], -1).T


def _hwio(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0)


def _transpose(array: np.ndarray) -> np.ndarray:
    return array.T


def _vit_leaves(depth: int, norm: str) -> list[_Leaf]:
    """Patch embedding, blocks and last norm, published under that name."""

    def blocks(theirs: str, ours: str, weight: str) -> list[_Leaf]:
        def leaf(end: str, name: str, layout: Any) -> _Leaf:
            names = (f"blocks.{i}.{theirs}.{end}" for i in range(depth))
            path = ("blocks", ours, name)
            return _Leaf(path, tuple(names), layout, stack=True)

        layout = _transpose if weight == "kernel" else _vector
        return [leaf("weight", weight, layout), leaf("bias", "bias", _vector)]

    return [
        _Leaf(("patch", "kernel"), ("patch_embed.proj.weight",), _hwio),
        _Leaf(("patch", "bias"), ("patch_embed.proj.bias",), _vector),
        *blocks("norm1", "norm1", "scale"),
        *blocks("attn.qkv", "qkv", "kernel"),
        *blocks("attn.proj", "proj", "kernel"),
        *blocks("norm2", "norm2", "scale"),
        *blocks("mlp.fc1", "fc1", "kernel"),
        *blocks("mlp.fc2", "fc2", "kernel"),
        _Leaf(("norm", "scale"), (f"{norm}.weight",), _vector),
        _Leaf(("norm", "bias"), (f"{norm}.bias",), _vector),
    ]


def _assemble(
    state: StateDict,
    leaves: Sequence[_Leaf],
    shapes: Mapping[str, Any],
    unused: Sequence[str],
    network: str,
) -> dict[str, Any]:
    """Variables of a transformer from its tensors.

    Args:
      state: Names and arrays as published.
      leaves: Where they belong.
      shapes: The tree with shapes in place of arrays.
      unused: Starts of names that may be there and are not needed.
      network: Its name, for messages.

    Raises:
      ValueError: When a tensor is missing, is one too many or has another
        shape; names it.
    """
    names = [name for leaf in leaves for name in leaf.names]
    if missing := [name for name in names if name not in state]:
        raise ValueError(
            f"The weights lack {missing[0]!r} (and {len(missing) - 1} more): "
            f"they are not those of {network}."
        )
    surplus = sorted(
        name
        for name in set(state) - set(names)
        if not name.startswith(tuple(unused))
    )
    if surplus:
        raise ValueError(
            f"The weights hold {surplus[0]!r} (and {len(surplus) - 1} more), "
            f"which {network} does not have."
        )
    tree: dict[str, Any] = {}
    for leaf in leaves:
        shape, node = shapes["params"], tree
        for part in leaf.path:
            shape = shape[part]
        arrays = []
        for name in leaf.names:
            array = state[name]
            # A layout that fails on the number of axes is a wrong shape, too.
            try:
                array = leaf.layout(array)
            except (ValueError, IndexError):
                array = np.zeros(0)
            if array.shape != (shape[1:] if leaf.stack else shape):
                raise ValueError(
                    f"Tensor {name!r} has shape {state[name].shape}, which "
                    f"does not fit {network}."
                )
            arrays.append(np.asarray(array, np.float32))
        for part in leaf.path[:-1]:
            node = node.setdefault(part, {})
        node[leaf.path[-1]] = (
            np.stack(arrays) if leaf.stack else np.ascontiguousarray(arrays[0])
        )
    return {"params": tree}


def passt_variables(
    state: StateDict, depth: int, width: int = passt.WIDTH
) -> dict[str, Any]:
    """Variables of `proxy.audio.passt` from a published state dict.

    The classification heads, `head.*` and `head_dist.*`, are left out.

    Args:
      state: Names and arrays as PaSST publishes them.
      depth: Number of blocks: 12 for PaSST-S, 7 for PaSST-L.
      width: Channels of a token.

    Returns:
      `{"params": ...}`, float32.

    Raises:
      ValueError: When a tensor is missing, is one too many or has another
        shape; names it.
    """
    tokens = ("cls_token", "dist_token")
    leaves = [
        *_vit_leaves(depth, "norm"),
        _Leaf(("tokens",), tokens, _vector, stack=True),
        _Leaf(("tokens_position",), ("new_pos_embed",), _table),
        _Leaf(("frequency",), ("freq_new_pos_embed",), _columns),
        _Leaf(("time",), ("time_new_pos_embed",), _columns),
    ]
    return _assemble(
        state,
        leaves,
        passt.shapes(depth, width),
        ("head.", "head_dist."),
        f"a PaSST network of {depth} blocks",
    )


def audiomae_variables(
    state: StateDict,
    depth: int = audiomae.DEPTH,
    width: int = audiomae.WIDTH,
) -> dict[str, Any]:
    """Variables of `proxy.audio.audiomae` from a published state dict.

    The last norm is published as `norm` with pretrained weights and as
    `fc_norm` with fine-tuned ones. Decoder and head are left out.

    Args:
      state: Names and arrays as AudioMAE, or its port to timm, publishes them.
      depth: Number of blocks.
      width: Channels of a token.

    Returns:
      `{"params": ...}`, float32.

    Raises:
      ValueError: When a tensor is missing, is one too many or has another
        shape; names it.
    """
    norm = "fc_norm" if "fc_norm.weight" in state else "norm"
    leaves = [
        *_vit_leaves(depth, norm),
        _Leaf(("token",), ("cls_token",), _vector),
        _Leaf(("position",), ("pos_embed",), _table),
    ]
    return _assemble(
        state,
        leaves,
        audiomae.shapes(depth, width),
        ("head.", "decoder_", "mask_token"),
        f"an AudioMAE encoder of {depth} blocks",
    )
