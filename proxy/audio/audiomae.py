"""AudioMAE: a masked autoencoder's encoder, as a frozen embedding function.

Network and front end after Huang et al., "Masked Autoencoders that Listen"
(NeurIPS 2022, https://github.com/facebookresearch/AudioMAE): a ViT-B with 12
blocks on 16x16 patches, which do not overlap, of 1,024 frames of 128 log mel
bands. The variables are a tree `{"params": ...}`, made by `init` or, from
published weights, by `proxy.published`; decoder and head are left out.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from proxy.audio import spectral, vit

# What the network was trained at, and what the study embeds at: the bands then
# reach up to 22 kHz, and the same pattern stands for another pitch.
TRAINED_RATE, STUDY_RATE = 16_000, 44_100
WIDTH, DEPTH = 768, 12
FRAMES, MELS = 1024, 128
# Blocks before those whose outputs are averaged.
CONTEXT = 8

_MEAN, _STD = -4.2677393, 4.5689974
_TOKENS = FRAMES * MELS // vit.PATCH**2

Variables = Mapping[str, Any]


def shapes(depth: int = DEPTH, width: int = WIDTH) -> dict[str, Any]:
    """The variable tree with shapes in place of arrays."""
    return {
        "params": {
            **vit.shapes(depth, width),
            "token": (width,),
            "position": (1 + _TOKENS, width),
        }
    }


def init(
    key: PRNGKeyArray, depth: int = DEPTH, width: int = WIDTH
) -> dict[str, Any]:
    """Random variables."""
    return vit.init(key, shapes(depth, width))


def filter_bank(
    audio: Float[Array, "batch samples"], sample_rate: int
) -> Float[Array, "batch frames mels"]:
    """Log mel bands as Kaldi's `compute-fbank-feats` makes them.

    After `torchaudio.compliance.kaldi.fbank` with a Hann window: frames of
    25 ms every 10 ms, no padding; each loses its mean and is pre-emphasised
    by 0.97 (its first sample by itself); symmetric window, zeros up to the
    next power of two; power; 128 triangles on the mel scale from 20 Hz to
    half the sample rate; natural logarithm of at least 1.19e-7.

    Args:
      audio: clips, at least 25 ms long.
      sample_rate: sample rate, in Hz.

    Returns:
      `[batch, 1 + (samples - size) // hop, 128]`.
    """
    size, hop = sample_rate * 25 // 1000, sample_rate // 100
    fft_size = 1 << (size - 1).bit_length()
    frames = spectral.frames(audio, size, hop)
    frames = frames - frames.mean(axis=-1, keepdims=True)
    before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    frames = (frames - 0.97 * before) * spectral.hann(size, periodic=False)
    power = spectral.power(jnp.fft.rfft(frames, fft_size))
    bank = spectral.mel_bank(
        MELS,
        sample_rate=sample_rate,
        fft_size=fft_size,
        low=20.0,
        high=sample_rate / 2,
        scale="kaldi",
    )
    bands = jnp.dot(power, bank, precision="highest")
    return jnp.log(jnp.maximum(bands, np.finfo(np.float32).eps))


def front_end(
    audio: Float[Array, "batch samples"], sample_rate: int
) -> Float[Array, "batch frames mels"]:
    """What the network sees of a clip.

    Its mean removed, `filter_bank`, cut or filled up with zeros to 1,024
    frames, and only then normalised: (x + 4.2677393) / (2 * 4.5689974).
    """
    audio = audio - audio.mean(axis=-1, keepdims=True)
    bands = filter_bank(audio, sample_rate)[:, :FRAMES]
    missing = FRAMES - bands.shape[1]
    bands = jnp.pad(bands, ((0, 0), (0, missing), (0, 0)))
    return (bands - _MEAN) / (2 * _STD)


def features(
    variables: Variables,
    spectrogram: Float[Array, "batch frames mels"],
    *,
    context: int = CONTEXT,
    dtype: Any = jnp.float32,
) -> Float[Array, "batch tokens width"]:
    """Contextual embeddings of the 64 x 8 patches, time by time.

    Args:
      variables: variables of the network.
      spectrogram: spectrograms as `front_end` makes them.
      context: the outputs of the blocks after these many, each normalised,
        are averaged.
      dtype: what the network computes in.

    Returns:
      `[batch, 512, width]`, float32, without the class token.
    """
    params = variables["params"]
    tokens = vit.patches(params["patch"], spectrogram.astype(dtype), vit.PATCH)
    batch, width = tokens.shape[0], tokens.shape[-1]
    tokens = tokens.reshape(batch, -1, width)
    first = jnp.broadcast_to(params["token"], (batch, 1, width)).astype(dtype)
    tokens = jnp.concatenate([first, tokens], axis=1)
    tokens = tokens + params["position"].astype(dtype)
    early = jax.tree.map(lambda leaf: leaf[:context], params["blocks"])
    late = jax.tree.map(lambda leaf: leaf[context:], params["blocks"])
    tokens = vit.run(early, tokens)

    def step(carry, block):
        tokens, total = carry
        tokens = vit.block(block, tokens)
        normed = vit.layer_norm(params["norm"], tokens.astype(jnp.float32))
        return (tokens, total + normed), None

    start = (tokens, jnp.zeros(tokens.shape, jnp.float32))
    total = lax.scan(step, start, late)[0][1]
    return total[:, 1:] / late["norm1"]["scale"].shape[0]


def embed(
    variables: Variables,
    audio: Float[Array, "batch samples"],
    *,
    sample_rate: int = STUDY_RATE,
    context: int = CONTEXT,
    dtype: Any = jnp.float32,
    at_once: int | None = None,
) -> Float[Array, "batch width"]:
    """The embedding of the study: the mean over all patches.

    The study's own settings: clips at 44.1 kHz (where the network was trained
    at 16 kHz) for the sake of high frequencies, the outputs of the last four
    blocks averaged, the mean over the 512 patches, time and frequency alike.
    A clip of 5 s fills half of the 1,024 frames; the patches of the empty
    half count, too.

    Args:
      variables: variables of the network.
      audio: clips in [-1, 1], 25 ms or longer; what is beyond 10.25 s is cut.
      sample_rate: sample rate of the clips, in Hz.
      context: blocks whose outputs are averaged, see `features`.
      dtype: what the network computes in; the result is float32.
      at_once: clips worked on together, see `spectral.by_clip`. By default
        one on a CPU and 16 elsewhere.

    Returns:
      `[batch, 768]`.
    """

    def embed_clips(clips):
        bands = front_end(clips, sample_rate)
        tokens = features(variables, bands, context=context, dtype=dtype)
        return tokens.mean(axis=1)

    return spectral.by_clip(embed_clips, audio, at_once, elsewhere=16)
