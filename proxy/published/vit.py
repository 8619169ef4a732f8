"""Published state dicts of PaSST and AudioMAE: names and layouts."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from proxy.audio import audiomae, passt
from proxy.published.tensors import (
    StateDict,
    Tensor,
    assemble,
    hwio,
    transpose,
    vector,
)


def _table(array: np.ndarray) -> np.ndarray:
    """[1, rows, width] -> [rows, width]."""
    return array.reshape(array.shape[-2:])


def _columns(array: np.ndarray) -> np.ndarray:
    """[1, width, rows, 1] or [1, width, 1, rows] -> [rows, width]."""
    return array.reshape(array.shape[1], -1).T


def _backbone(depth: int, norm: str) -> Iterator[Tensor]:
    """Patch embedding, blocks and last norm, published under that name."""

    def layer(theirs: str, *ours: str, weight: Any, **options: Any):
        name = "kernel" if weight in (hwio, transpose) else "scale"
        path = ("params", *ours)
        yield Tensor(f"{theirs}.weight", (*path, name), weight, **options)
        yield Tensor(f"{theirs}.bias", (*path, "bias"), vector, **options)

    yield from layer("patch_embed.proj", "patch", weight=hwio)
    for i in range(depth):
        for theirs, weight in (
            ("norm1", vector),
            ("attn.qkv", transpose),
            ("attn.proj", transpose),
            ("norm2", vector),
            ("mlp.fc1", transpose),
            ("mlp.fc2", transpose),
        ):
            ours = ("blocks", theirs.split(".")[-1])
            yield from layer(
                f"blocks.{i}.{theirs}", *ours, weight=weight, stacked=True
            )
    yield from layer(norm, "norm", weight=vector)


def passt_variables(
    state: StateDict, depth: int, width: int = passt.WIDTH
) -> dict[str, Any]:
    """Variables of `proxy.audio.passt` from a published state dict.

    The classification heads, `head.*` and `head_dist.*`, are left out.

    Args:
      state: arrays by name as PaSST publishes them.
      depth: number of blocks: 12 for PaSST-S, 7 for PaSST-L.
      width: channels of a token.

    Returns:
      `{"params": ...}`, float32.

    Raises:
      ValueError: when a tensor is missing, is one too many or has another
        shape; names it.
    """
    tokens = ("params", "tokens")
    return assemble(
        state,
        [
            *_backbone(depth, "norm"),
            Tensor("cls_token", tokens, vector, stacked=True),
            Tensor("dist_token", tokens, vector, stacked=True),
            Tensor("new_pos_embed", ("params", "tokens_position"), _table),
            Tensor("freq_new_pos_embed", ("params", "frequency"), _columns),
            Tensor("time_new_pos_embed", ("params", "time"), _columns),
        ],
        passt.shapes(depth, width),
        f"a PaSST network of {depth} blocks",
        unused=("head.", "head_dist."),
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
      state: arrays by name as AudioMAE, or its port to timm, publishes them.
      depth: number of blocks.
      width: channels of a token.

    Returns:
      `{"params": ...}`, float32.

    Raises:
      ValueError: when a tensor is missing, is one too many or has another
        shape; names it.
    """
    norm = "fc_norm" if "fc_norm.weight" in state else "norm"
    return assemble(
        state,
        [
            *_backbone(depth, norm),
            Tensor("cls_token", ("params", "token"), vector),
            Tensor("pos_embed", ("params", "position"), _table),
        ],
        audiomae.shapes(depth, width),
        f"an AudioMAE encoder of {depth} blocks",
        unused=("head.", "decoder_", "mask_token"),
    )
