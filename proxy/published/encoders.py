"""The published code's tensors: names and layouts, arrays in, arrays out.

A published state dict holds PyTorch tensors by name; ours is a tree of Flax
variables. Dense kernels are transposed, the two directions of a recurrent
layer are stacked, everything else is renamed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from proxy import encoders
from proxy.encoders import inputs
from proxy.space import ParameterSpace


class _Entry(NamedTuple):
    """One published tensor and where it goes.

    Attributes:
      tensor: the published name.
      path: the path in our tree.
      transpose: whether the tensor is a matrix to transpose.
      place: its place in the stack, when several share a path.
    """

    tensor: str
    path: tuple[str, ...]
    transpose: bool = False
    place: int | None = None


def _norm(theirs: str, *ours: str) -> Iterator[_Entry]:
    yield _Entry(f"{theirs}.weight", ("params", *ours, "scale"))
    yield _Entry(f"{theirs}.bias", ("params", *ours, "bias"))


def _batch_norm(theirs: str, *ours: str) -> Iterator[_Entry]:
    yield from _norm(theirs, *ours)
    stats = ("batch_stats", *ours)
    yield _Entry(f"{theirs}.running_mean", (*stats, "mean"))
    yield _Entry(f"{theirs}.running_var", (*stats, "var"))


def _dense(theirs: str, *ours: str, bias: bool = True) -> Iterator[_Entry]:
    yield _Entry(f"{theirs}weight", ("params", *ours, "kernel"), True)
    if bias:
        yield _Entry(f"{theirs}bias", ("params", *ours, "bias"))


def _gru(theirs: str, layer: int, *ours: str) -> Iterator[_Entry]:
    for place, end in enumerate(("", "_reverse")):
        for part, name in (("ih", "input"), ("hh", "hidden")):
            end_ = f"_{part}_l{layer}{end}"
            path = ("params", *ours)
            kernel, bias = (*path, f"{name}_kernel"), (*path, f"{name}_bias")
            yield _Entry(f"{theirs}.weight{end_}", kernel, True, place)
            yield _Entry(f"{theirs}.bias{end_}", bias, False, place)


def _tokens(prefix: str, *ours: str) -> Iterator[_Entry]:
    path = ("params", *ours, "tokens")
    yield _Entry(f"{prefix}noncat_tokenizer", (*path, "noncategorical"))
    yield _Entry(f"{prefix}cat_tokenizer.weight", (*path, "categorical"))


def _transformer(blocks: int) -> Iterator[_Entry]:
    yield from _tokens("tokenizer.")
    yield _Entry("tokenizer.cls_token", ("params", "cls"))
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


def _highway(name: str, blocks: int) -> Iterator[_Entry]:
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


def _entries(name: str, blocks: int) -> Iterator[_Entry]:
    """Every tensor an encoder of this many blocks (or layers) may have."""
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


def _count(state: Mapping[str, np.ndarray], pattern: str) -> int:
    found = (re.match(pattern, key) for key in state)
    return len({m.group(1) for m in found if m})


def _shape(state: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(
            f"the state dict has no tensor {name!r}: it is not of this encoder"
        )
    return np.shape(state[name])


def sizes(name: str, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Reads an encoder's sizes off its published tensors.

    The number of attention heads leaves no trace in them.

    Args:
      name: the encoder's name, one of `encoders.names()`.
      state: published tensors by name.

    Returns:
      Arguments of `encoders.build`, `dimension` among them.

    Raises:
      ValueError: when a tensor that tells a size is missing.
    """
    encoders.get(name)
    if name == "tfm":
        hidden = _shape(state, "tokenizer.noncat_tokenizer")[1]
        inner = _shape(state, "encoder.layers.0.linear1.weight")[0]
        return {
            "dimension": _shape(state, "head.2.bias")[0],
            "hidden": hidden,
            "blocks": _count(state, r"encoder\.layers\.(\d+)\."),
            "factor": inner / hidden,
            "pooling": "cls" if "tokenizer.cls_token" in state else "mean",
        }
    if name == "gru_oh":
        return {
            "dimension": _shape(state, "out_block.2.bias")[0],
            "hidden": _shape(state, "out_block.0.bias")[0],
            "layers": _count(state, r"gru\.weight_ih_l(\d+)"),
        }
    layer = "fc" if name.startswith("hn") else "block"
    found: dict[str, Any] = {
        "dimension": _shape(state, "head.bias")[0],
        "hidden": _shape(state, f"blocks.0.{layer}.0.weight")[0],
        "blocks": _count(state, r"blocks\.(\d+)\."),
    }
    if name == "hn_pt":
        found["token"] = _shape(state, "embedding_layer.noncat_tokenizer")[1]
    if name == "hn_ptgru":
        table = "embedding_layer.tokenizer.noncat_tokenizer"
        found["token"] = _shape(state, table)[1]
    return found


def _derived(
    space: ParameterSpace, state: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
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
            expected = inputs.sinusoids(value.shape[-2], value.shape[-1])
            if not np.allclose(value, expected, atol=1e-3):
                raise ValueError(
                    f"{key}: not the sine and cosine positions of the paper"
                )
        elif last != "num_batches_tracked":
            kept[key] = np.asarray(value)
    return kept


def from_published(
    name: str,
    space: ParameterSpace,
    state: Mapping[str, np.ndarray],
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
    state = _derived(space, state)
    found = {**sizes(name, state), **overrides}
    module = encoders.build(name, space, **found)
    shapes = jax.eval_shape(
        module.init, jax.random.key(0), jnp.zeros((2, space.width))
    )
    expected: Any = flax.traverse_util.flatten_dict(shapes)
    blocks = found.get("blocks", found.get("layers", 1))
    flat: dict[tuple[str, ...], Any] = {}
    for entry in _entries(name, blocks):
        if entry.path not in expected:
            continue  # e.g. a gate where the widths differ
        if entry.tensor not in state:
            raise ValueError(
                f"the state dict has no tensor {entry.tensor!r}: it is not "
                f"a {name} of {blocks} blocks"
            )
        value = state.pop(entry.tensor)
        value = value.T if entry.transpose else value
        shape = expected[entry.path].shape
        shape = shape if entry.place is None else shape[1:]
        if value.shape != shape:
            raise ValueError(
                f"{entry.tensor} has shape {value.shape} (ours: {shape}): "
                f"the checkpoint does not fit {name} on {space.name}, which "
                f"has {space.num_used} used parameters and width "
                f"{space.width}"
            )
        if entry.place is None:
            flat[entry.path] = value
        else:
            flat.setdefault(entry.path, []).append(value)
    if state:
        raise ValueError(
            f"the state dict has tensors that {name} has not: "
            + ", ".join(sorted(state))
        )
    flat = {
        k: np.stack(v) if isinstance(v, list) else v for k, v in flat.items()
    }
    return found, flax.traverse_util.unflatten_dict(flat)


def to_published(
    name: str, variables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Names and lays out our variables as the published code does.

    Args:
      name: the encoder's name.
      variables: variables, or a tree of their shape such as gradients under
        "params".

    Returns:
      Tensors by published name; those without weights are left out.
    """
    flat = flax.traverse_util.flatten_dict(variables)
    params = variables["params"]
    blocks = sum(key.startswith(("blocks_", "gru_")) for key in params)
    state = {}
    for entry in _entries(name, blocks):
        if entry.path in flat:
            value = np.asarray(flat[entry.path])
            value = value if entry.place is None else value[entry.place]
            state[entry.tensor] = value.T if entry.transpose else value
    return state
