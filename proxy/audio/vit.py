"""The transformer blocks that PaSST and AudioMAE share.

Vision transformers (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR
2021) on patches of a spectrogram, in evaluation mode: pre-norm blocks of
self-attention and a two-layer perceptron with exact GELU, heads of 64 channels.

The parameters of all blocks are stacked along a leading axis, so that a
network of any depth compiles as one block.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

PATCH = 16
_HEAD = 64

Params = Mapping[str, Any]


def shapes(depth: int, width: int) -> dict[str, Any]:
    """Shapes of the patch embedding, the blocks and the last norm.

    Args:
      depth: number of blocks.
      width: channels of a token, a multiple of 64.
    """
    norm = {"scale": (depth, width), "bias": (depth, width)}

    def dense(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {"kernel": (depth, inputs, outputs), "bias": (depth, outputs)}

    return {
        "patch": {"kernel": (PATCH, PATCH, 1, width), "bias": (width,)},
        "blocks": {
            "norm1": dict(norm),
            "qkv": dense(width, 3 * width),
            "proj": dense(width, width),
            "norm2": dict(norm),
            "fc1": dense(width, 4 * width),
            "fc2": dense(4 * width, width),
        },
        "norm": {"scale": (width,), "bias": (width,)},
    }


def init(key: PRNGKeyArray, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Random parameters of given shapes: norms are the identity."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(
        shapes, is_leaf=lambda node: isinstance(node, tuple)
    )
    keys = jax.random.split(key, len(leaves))

    def leaf(path, shape, key):
        if path[-1].key == "scale":
            return jnp.ones(shape)
        if path[-1].key == "bias":
            return jnp.zeros(shape)
        return 0.02 * jax.random.normal(key, shape)

    return jax.tree.unflatten(
        tree, [leaf(*pair, k) for pair, k in zip(leaves, keys, strict=True)]
    )


def patches(
    params: Params,
    spectrogram: Float[Array, "batch rows columns"],
    stride: int,
) -> Float[Array, "batch patch_rows patch_columns width"]:
    """Embeds the 16x16 patches of a spectrogram, `stride` apart."""
    embedded = lax.conv_general_dilated(
        spectrogram[..., None],
        params["kernel"].astype(spectrogram.dtype),
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return embedded + params["bias"].astype(spectrogram.dtype)


def layer_norm(
    params: Params, tokens: Float[Array, "*shape width"]
) -> Float[Array, "*shape width"]:
    """Layer normalisation with epsilon 1e-6, computed in float32."""
    x = tokens.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6)
    return (x * params["scale"] + params["bias"]).astype(tokens.dtype)


def _dense(params: Params, x: jax.Array) -> jax.Array:
    return x @ params["kernel"].astype(x.dtype) + params["bias"].astype(x.dtype)


def block(
    params: Params, tokens: Float[Array, "batch tokens width"]
) -> Float[Array, "batch tokens width"]:
    """One block, its parameters without the leading axis."""
    batch, count, width = tokens.shape
    qkv = _dense(params["qkv"], layer_norm(params["norm1"], tokens))
    heads = (batch, count, 3, width // _HEAD, _HEAD)
    query, key, value = jnp.moveaxis(qkv.reshape(heads), 2, 0)
    attended = jax.nn.dot_product_attention(query, key, value)
    tokens = tokens + _dense(params["proj"], attended.reshape(tokens.shape))
    hidden = _dense(params["fc1"], layer_norm(params["norm2"], tokens))
    hidden = jax.nn.gelu(hidden, approximate=False)
    return tokens + _dense(params["fc2"], hidden)


def run(
    blocks: Params, tokens: Float[Array, "batch tokens width"]
) -> Float[Array, "batch tokens width"]:
    """All blocks, one after the other."""

    def step(tokens, params):
        return block(params, tokens), None

    return lax.scan(step, tokens, blocks)[0]
