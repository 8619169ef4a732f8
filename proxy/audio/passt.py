"""PaSST: a transformer for audio tagging, as a frozen embedding function.

Network after Koutini, Schlüter, Eghbal-zadeh and Widmer, "Efficient Training
of Audio Transformers with Patchout" (Interspeech 2022,
https://github.com/kkoutini/PaSST). The front end is that of
`proxy.audio.efficientat` (which took it from there): 128 Kaldi mel bands up
to 15 kHz, one frame in 10 ms, at 32 kHz. Patches of 16x16 lie 10 apart in
frequency and time; a token gets the sum of an embedding of its frequency and
one of its time; two more tokens, for class and distillation, come first. The
features are the mean of these two after the last norm.

PaSST-S has 12 blocks, PaSST-L ("light") has 7. The variables are a tree
`{"params": ...}`, made by `init` or, from published weights, by
`proxy.published.efficientat`; the classification heads are left out.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from proxy.audio import efficientat, spectral, vit

SAMPLE_RATE = 32_000
WIDTH = 768
DEPTHS = {"passt_s": 12, "passt_l": 7}

# Samples of the windows: 160 ms, 640 ms, and 60 ms for the mel bands.
WINDOWS = (5120, 20_480)
MEL_WINDOW = 1920
HOP = 1600
DIMENSION = len(WINDOWS) * WIDTH + 6 * efficientat.MELS

_STRIDE = 10
# Of the 10 s (998 frames) that the networks were trained on.
FREQUENCIES, TIMES = 12, 99

Variables = Mapping[str, Any]


def shapes(depth: int, width: int = WIDTH) -> dict[str, Any]:
    """The variable tree with shapes in place of arrays."""
    return {
        "params": {
            **vit.shapes(depth, width),
            "tokens": (2, width),
            "tokens_position": (2, width),
            "frequency": (FREQUENCIES, width),
            "time": (TIMES, width),
        }
    }


def init(
    key: PRNGKeyArray, depth: int = 12, width: int = WIDTH
) -> dict[str, Any]:
    """Random variables."""
    return vit.init(key, shapes(depth, width))


def features(
    variables: Variables,
    mel: Float[Array, "batch mels frames"],
    *,
    dtype: Any = jnp.float32,
) -> Float[Array, "batch width"]:
    """The network's features of log mel spectrograms.

    Args:
      variables: variables of the network.
      mel: 128 bands as `efficientat.front_end` makes them, 16 to 1,005 frames.
      dtype: what the network computes in.

    Returns:
      `[batch, width]`, float32.

    Raises:
      ValueError: for spectrograms too short or too long.
    """
    params = variables["params"]
    frames = mel.shape[-1]
    times = (frames - vit.PATCH) // _STRIDE + 1
    if not 1 <= times <= TIMES:
        raise ValueError(
            f"PaSST takes 16 to 1,005 frames of 10 ms at once, not {frames}."
        )
    tokens = vit.patches(params["patch"], mel.astype(dtype), _STRIDE)
    position = params["frequency"][:, None] + params["time"][:times]
    tokens = tokens + position.astype(dtype)
    batch, width = tokens.shape[0], tokens.shape[-1]
    first = (params["tokens"] + params["tokens_position"]).astype(dtype)
    first = jnp.broadcast_to(first, (batch, 2, width))
    tokens = jnp.concatenate([first, tokens.reshape(batch, -1, width)], axis=1)
    tokens = vit.run(params["blocks"], tokens)[:, :2]
    normed = vit.layer_norm(params["norm"], tokens.astype(jnp.float32))
    return normed.mean(axis=1)


def _window_mels(
    audio: Float[Array, "batch samples"], size: int
) -> Float[Array, "windows mels frames"]:
    """Spectrograms of windows centred on every 50 ms of all clips, in a row."""
    padding = ((0, 0), (size // 2, size // 2))
    padded = jnp.pad(audio, padding, mode="reflect")
    windows = spectral.frames(padded, size, HOP)
    return efficientat.front_end(windows.reshape(-1, size))


# A whole batch of windows would not fit into an accelerator's memory.
_by_clip = functools.partial(spectral.by_clip, elsewhere=8)


def embed(
    variables: Variables,
    audio: Float[Array, "batch samples"],
    *,
    dtype: Any = jnp.float32,
    at_once: int | None = None,
) -> Float[Array, "batch embedding"]:
    """The embedding of the study: features and mel bands, averaged over time.

    As the HEAR wrapper with two levels and mel bands computes it
    (https://github.com/kkoutini/passt_hear21, `base2levelmel`, features
    without logits), which is what the study of the audio models states for
    PaSST: every 50 ms, the features of a window of 160 ms, those of one of
    640 ms, and the six frames of 128 log mel bands of one of 60 ms, all
    centred there, the clip reflected at its ends; the mean over all of these.

    That is 101 windows of each kind in 5 s, about 1.3 TFLOP for a clip with
    12 blocks: it wants an accelerator. `embed_scene` takes a thirteenth.

    Args:
      variables: variables of the network.
      audio: clips at 32 kHz, in [-1, 1], more than 10,240 samples.
      dtype: what the network computes in; the result is float32.
      at_once: clips worked on together, see `spectral.by_clip`.

    Returns:
      `[batch, 2,304]`: 768 short, 768 long, 768 mel bands (band by band).

    Raises:
      ValueError: for clips too short.
    """
    if audio.shape[-1] <= WINDOWS[-1] // 2:
        raise ValueError(
            f"A clip of {audio.shape[-1]} samples is too short for PaSST's "
            f"windows: give more than {WINDOWS[-1] // 2} samples at 32 kHz."
        )

    def embed_clips(clips):
        def mean(rows):
            return rows.reshape(len(clips), -1, rows.shape[-1]).mean(axis=1)

        levels = [
            mean(features(variables, _window_mels(clips, size), dtype=dtype))
            for size in WINDOWS
        ]
        mels = _window_mels(clips, MEL_WINDOW)
        levels.append(mean(mels.reshape(len(mels), -1)))
        return jnp.concatenate(levels, axis=-1)

    return _by_clip(embed_clips, audio, at_once)


def embed_scene(
    variables: Variables,
    audio: Float[Array, "batch samples"],
    *,
    dtype: Any = jnp.float32,
    at_once: int | None = None,
) -> Float[Array, "batch width"]:
    """The cheaper form: the features of one pass over the whole clip.

    A space of its own, not comparable with `embed`. No averaging: attention
    sees all of the clip.

    Args:
      variables: variables of the network.
      audio: clips at 32 kHz, in [-1, 1], of 0.16 to 10 s.
      dtype: what the network computes in; the result is float32.
      at_once: clips worked on together, see `spectral.by_clip`.

    Returns:
      `[batch, 768]`.

    Raises:
      ValueError: for clips too short or too long.
    """

    def embed_clips(clips):
        return features(variables, efficientat.front_end(clips), dtype=dtype)

    return _by_clip(embed_clips, audio, at_once)
