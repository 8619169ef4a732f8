"""The published encoders' state dicts: names and layouts.

Dense kernels are transposed, the two directions of a recurrent layer are
stacked, everything else is renamed.
"""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from proxy import encoders
from proxy.encoders import inputs
from proxy.published.tensors import StateDict, Tensor, assemble, transpose
from proxy.space import ParameterSpace


def _norm(theirs: str, *ours: str) -> Iterator[Tensor]:
    yield Tensor(f"{theirs}.weight", ("params", *ours, "scale"))
    yield Tensor(f"{theirs}.bias", ("params", *ours, "bias"))


def _batch_norm(theirs: str, *ours: str) -> Iterator[Tensor]:
    yield from _norm(theirs, *ours)
    stats = ("batch_stats", *ours)
    yield Tensor(f"{theirs}.running_mean", (*stats, "mean"))
    yield Tensor(f"{theirs}.running_var", (*stats, "var"))


def _dense(theirs: str, *ours: str, bias: bool = True) -> Iterator[Tensor]:
    yield Tensor(f"{theirs}weight", ("params", *ours, "kernel"), transpose)
    if bias:
        yield Tensor(f"{theirs}bias", ("params", *ours, "bias"))


def _gru(theirs: str, layer: int, *ours: str) -> Iterator[Tensor]:
    path = ("params", *ours)
    for direction in ("", "_reverse"):
        for part, name in (("ih", "input"), ("hh", "hidden")):
            end = f"_{part}_l{layer}{direction}"
            kernel, bias = (*path, f"{name}_kernel"), (*path, f"{name}_bias")
            yield Tensor(f"{theirs}.weight{end}", kernel, transpose, True)
            yield Tensor(f"{theirs}.bias{end}", bias, stacked=True)


def _tokens(prefix: str, *ours: str) -> Iterator[Tensor]:
    path = ("params", *ours, "tokens")
    yield Tensor(f"{prefix}noncat_tokenizer", (*path, "noncategorical"))
    yield Tensor(f"{prefix}cat_tokenizer.weight", (*path, "categorical"))


def _transformer(blocks: int) -> Iterator[Tensor]:
    yield from _tokens("tokenizer.")
    yield Tensor("tokenizer.cls_token", ("params", "cls"))
    for i in range(blocks):
        theirs, ours = f"encoder.layers.{i}", f"blocks_{i}"
        attention = f"{theirs}.self_attn"
        yield from _dense(f"{attention}.in_proj_", ours, "in_proj")
        yield from _dense(f"{attention}.out_proj.", ours, "out_proj")
        for j in (1, 2):
            yield from _dense(f"{theirs}.linear{j}.", ours, f"linear_{j}")
            yield from _norm(f"{theirs}.norm{j}", ours, f"norm_{j}")
    yield from _norm("head.0", "norm")
    yield from _dense("head.2.", "head")


def _highway(name: str, blocks: int) -> Iterator[Tensor]:
    if name == "hn_pt":
        yield from _tokens("embedding_layer.")
    if name == "hn_ptgru":
        yield from _tokens("embedding_layer.tokenizer.", "embed")
        yield from _gru("embedding_layer.gru", 0, "embed", "gru")
    for i in range(blocks):
        theirs, ours = f"blocks.{i}", f"blocks_{i}"
        fc = (ours,) if name == "hn_pt" and i == 0 else (ours, "fc")
        yield from _dense(f"{theirs}.fc.0.", *fc, "dense", bias=False)
        yield from _batch_norm(f"{theirs}.fc.1", *fc, "norm")
        yield from _dense(f"{theirs}.gate.0.", ours, "gate")
    yield from _dense("head.", "head")


def tensors(name: str, blocks: int) -> Iterator[Tensor]:
    """Every tensor that an encoder may have."""
    if name == "tfm":
        yield from _transformer(blocks)
    elif name.startswith("hn"):
        yield from _highway(name, blocks)
    elif name == "gru_oh":
        for i in range(blocks):
            yield from _gru("gru", i, f"gru_{i}")
        yield from _dense("out_block.0.", "hidden")
        yield from _dense("out_block.2.", "head")
    else:
        for i in range(blocks):
            for j in range(2):
                at = f"blocks.{i}.block"
                ours = (f"blocks_{i}", f"layer_{j}")
                yield from _dense(f"{at}.{4 * j}.", *ours, "dense", bias=False)
                yield from _batch_norm(f"{at}.{4 * j + 1}", *ours, "norm")
        yield from _dense("head.", "head")


def _count(state: StateDict, pattern: str) -> int:
    matches = (re.match(pattern, key) for key in state)
    return len({m.group(1) for m in matches if m})


def _size(state: StateDict, name: str, axis: int) -> int:
    if name not in state:
        raise ValueError(
            f"the state dict has no tensor {name!r}: it is not of this encoder"
        )
    shape = np.shape(state[name])
    if len(shape) <= axis or not shape[axis]:
        raise ValueError(
            f"tensor {name!r} has shape {shape}: it is not of this encoder"
        )
    return shape[axis]


def sizes(name: str, state: StateDict) -> dict[str, Any]:
    """Reads an encoder's sizes off its published tensors.

    The number of attention heads leaves no trace in them.

    Returns:
      Arguments of `encoders.build`, `dimension` among them.

    Raises:
      ValueError: when a tensor that tells a size is missing or too small.
    """
    encoders.get(name)
    if name == "tfm":
        hidden = _size(state, "tokenizer.noncat_tokenizer", 1)
        inner = _size(state, "encoder.layers.0.linear1.weight", 0)
        return {
            "dimension": _size(state, "head.2.bias", 0),
            "hidden": hidden,
            "blocks": _count(state, r"encoder\.layers\.(\d+)\."),
            "factor": inner / hidden,
            "pooling": "cls" if "tokenizer.cls_token" in state else "mean",
        }
    if name == "gru_oh":
        return {
            "dimension": _size(state, "out_block.2.bias", 0),
            "hidden": _size(state, "out_block.0.bias", 0),
            "layers": _count(state, r"gru\.weight_ih_l(\d+)"),
        }
    layer = "fc" if name.startswith("hn") else "block"
    known: dict[str, Any] = {
        "dimension": _size(state, "head.bias", 0),
        "hidden": _size(state, f"blocks.0.{layer}.0.weight", 0),
        "blocks": _count(state, r"blocks\.(\d+)\."),
    }
    table = {
        "hn_pt": "embedding_layer.noncat_tokenizer",
        "hn_ptgru": "embedding_layer.tokenizer.noncat_tokenizer",
    }.get(name)
    if table is not None:
        known["token"] = _size(state, table, 1)
    return known


def _weights(space: ParameterSpace, state: StateDict) -> dict[str, np.ndarray]:
    """Checks tensors that hold no weights and leaves them out."""
    kept = {}
    for key, value in state.items():
        last = key.rsplit(".", 1)[-1]
        if last == "cat_offsets":
            expected = space.category_offsets - len(space.noncategorical)
            if not np.array_equal(value, expected):
                raise ValueError(
                    f"{key}: the categories of this checkpoint are not those "
                    f"of {space.name}; it was trained on another synthesizer "
                    "or another version of its parameter table"
                )
        elif key.endswith("pos_encoding.pe"):
            fine = (
                value.ndim >= 2
                and value.size
                and np.allclose(
                    value, inputs.sinusoids(*value.shape[-2:]), atol=1e-3
                )
            )
            if not fine:
                raise ValueError(
                    f"{key}: not the sine and cosine positions of the paper"
                )
        elif last != "num_batches_tracked":
            kept[key] = np.asarray(value)
    return kept


def from_published(
    name: str,
    space: ParameterSpace,
    state: StateDict,
    **overrides: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turns a published state dict into variables of our encoder.

    Args:
      name: the encoder's name.
      space: the parameter space it was trained on.
      state: published tensors by name, without the prefix that a Lightning
        checkpoint puts before them.
      **overrides: sizes that the tensors do not tell, e.g. `heads`.

    Returns:
      The sizes, arguments of `encoders.build`, and the variables
      ("params" and, with batch normalisation, "batch_stats") as NumPy arrays
      of the types they came in.

    Raises:
      ValueError: when a tensor is missing, unknown or of the wrong shape, or
        a table is not the space's; names the tensor.
    """
    state = _weights(space, state)
    arguments = {**sizes(name, state), **overrides}
    encoder = encoders.build(name, space, **arguments)
    leaves = jax.eval_shape(
        encoder.init, jax.random.key(0), jnp.zeros((2, space.width))
    )
    shapes = jax.tree.map(lambda leaf: leaf.shape, leaves)
    ours = traverse_util.flatten_dict(shapes)
    blocks = arguments.get("blocks", arguments.get("layers", 1))
    variables = assemble(
        state,
        # Some have no gate, for example, where their widths are equal.
        [t for t in tensors(name, blocks) if t.path in ours],
        shapes,
        f"a {name} of {blocks} blocks on {space.name}, which has "
        f"{space.num_used} used parameters and width {space.width}",
        dtype=None,
    )
    return arguments, variables
