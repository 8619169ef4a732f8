"""Networks from sound to logits: the paper's, and one that knows modules.

`Estimator`, the paper's convolutional one, reads a mel spectrogram;
`ModuleEstimator` reads the embedding of an audio model, which is made once and
costs a hundredth of that. Both give one logit per numerical or binary
parameter and one per category. They follow the used parameters in table order,
a categorical parameter taking as many places as it has categories;
`matching.decode` reads them.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from matching import distances
from matching.convolution import strided_convolution
from proxy.encoders import inputs
from proxy.encoders.mlp import KAIMING, LECUN, uniform_bias
from proxy.encoders.modules import ResidualBlock
from proxy.encoders.norm import BatchNorm
from proxy.encoders.transformer import layer_norm
from proxy.space import ParameterSpace

SAMPLE_RATE = 32_000
CHANNELS = (8, 16, 32, 64, 128, 256, 512)
MIXED = 2048
_SLOPE = 0.1

# He's normal for a leaky ReLU, over the inputs of one output.
_KERNEL = nn.initializers.variance_scaling(
    2 / (1 + _SLOPE**2), "fan_in", "normal"
)


def spectrogram(
    audio: Float[Array, "batch samples"], sample_rate: int = SAMPLE_RATE
) -> Float[Array, "batch mels frames"]:
    """What the estimator hears: 128 mel bands in dB.

    The spectrogram of the MFCC distance before its cosine transform, see
    `distances.kaldi_decibels`.

    Args:
      audio: clips in [-1, 1]; 5 s at 32 kHz make 313 frames.
      sample_rate: sample rate, in Hz.

    Returns:
      dB, not below -80.
    """
    return distances.kaldi_decibels(audio, sample_rate).swapaxes(-1, -2)


def scale(
    decibels: Float[Array, "batch mels frames"],
    minimum: float | Float[Array, ""],
    maximum: float | Float[Array, ""],
) -> Float[Array, "batch mels frames"]:
    """Maps [minimum, maximum] to [-1, 1].

    Args:
      decibels: spectrograms.
      minimum: least value of the whole training set, in dB.
      maximum: greatest value of the training set, in dB.

    Returns:
      The network's input; values outside the range lie outside [-1, 1].
    """
    return 2 * (decibels - minimum) / (maximum - minimum) - 1


def standardise(
    embedding: Float[Array, "batch embedding"],
    mean: Float[Array, " embedding"],
    spread: Float[Array, " embedding"],
) -> Float[Array, "batch embedding"]:
    """What `ModuleEstimator` reads of an embedding.

    Args:
      embedding: embeddings of an audio model.
      mean: their mean over the training set.
      spread: their standard deviation over the training set.

    Returns:
      Differences from the mean in standard deviations, those of less than a
      twentieth of the greatest spread taken for that.
    """
    return (embedding - mean) / jnp.maximum(spread, spread.max() / 20)


def prepare(
    heard: Float[Array, "batch *shape"],
    scaling: Mapping[str, Any],
) -> Float[Array, "batch *shape"]:
    """The input of the network that goes with what a checkpoint holds.

    Args:
      heard: spectrograms in dB, or embeddings.
      scaling: `minimum` and `maximum`, see `scale`, or `mean` and `spread`,
        see `standardise`.
    """
    return (standardise if "mean" in scaling else scale)(heard, **scaling)


class Estimator(nn.Module):
    """Seven strided convolutions, a 1 x 1 one, average pooling, linear.

    Each convolution is followed by a leaky ReLU of slope 0.1 and, but for
    the first and the 1 x 1 one, by batch normalisation; the linear layer by
    batch normalisation too (Combes et al. 2025, section 4; the network is
    that of Barkan et al., "InverSynth II", ISMIR 2023).

    Attributes:
      outputs: number of logits, the width of the parameter space.
      dropout: share of pooled features dropped in training.
      axis_name: mapped axis that batch statistics are shared over.
      dtype: compute type, that of weights and input when None.
    """

    outputs: int
    dropout: float = 0.3
    axis_name: str | None = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        spectrogram: Float[Array, "batch mels frames"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch width"]:
        """Estimates logits.

        Args:
          spectrogram: spectrograms in [-1, 1], see `scale`, of 128 mel bands
            and any number of frames from 1.
          train: whether to use batch statistics and dropout, which needs a
            random key named "dropout".

        Returns:
          Logits in table order, in the type of the parameters.
        """
        norm = functools.partial(BatchNorm, axis_name=self.axis_name)
        x = spectrogram[..., None]
        for i, features in enumerate(CHANNELS):
            size = 4 if i else 5
            x = nn.Conv(
                features,
                (size, size),
                kernel_init=_KERNEL,
                bias_init=uniform_bias(size * size * x.shape[-1]),
                dtype=self.dtype,
                conv_general_dilated=lambda x, kernel, *_, **__: (
                    strided_convolution(x, kernel)
                ),
                name=f"conv_{i}",
            )(x)
            x = nn.leaky_relu(x, _SLOPE)
            if i:
                flat = x.reshape(-1, features)
                flat = norm(name=f"norm_{i}")(flat, train=train)
                x = flat.reshape(x.shape)
        # In two dimensions, since the CPU backend's gradient of a product of
        # more is slower.
        pixels = nn.Dense(
            MIXED,
            kernel_init=_KERNEL,
            bias_init=uniform_bias(CHANNELS[-1]),
            dtype=self.dtype,
            name="mixer",
        )(x.reshape(-1, CHANNELS[-1]))
        pixels = nn.leaky_relu(pixels, _SLOPE)
        x = pixels.reshape(len(x), -1, MIXED).mean(1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(
            self.outputs,
            kernel_init=_KERNEL,
            bias_init=uniform_bias(MIXED),
            dtype=self.dtype,
            name="head",
        )(x)
        x = norm(
            name="head_norm", dtype=jnp.promote_types(x.dtype, jnp.float32)
        )(x, train=train)
        return x


@functools.lru_cache
def _places(space: ParameterSpace) -> list[np.ndarray]:
    """For each layout, `[modules, values]`: the logits of its modules."""
    slots, real = inputs.padded_slots(space)
    logit = [
        space.relaxed_from_logit[s[r]] for s, r in zip(slots, real, strict=True)
    ]
    return [
        np.array(
            [
                np.concatenate([logit[c] for c in space.module_columns[m]])
                for m in alike
            ]
        )
        for alike in space.layouts
    ]


class ModuleEstimator(nn.Module):
    """From an embedding to logits, module by module.

    Residual blocks read the embedding; each module takes its own mixture of
    what they say and adds a token of its own. All that makes logits of it is
    shared by the modules of a layout (`ParameterSpace.layouts`): exchanging
    tokens and mixtures of two operators exchanges their logits.

    Attributes:
      space: the parameter space.
      hidden: size of the residual blocks.
      blocks: number of residual blocks, of two dense layers each.
      token: size of what is known of a module.
      dropout: share of features dropped in training.
      noise: standard deviation of noise added to the input in training.
      dtype: compute type, that of weights and input when None.
    """

    space: ParameterSpace
    hidden: int = 512
    blocks: int = 3
    token: int = 128
    dropout: float = 0.0
    noise: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        embedding: Float[Array, "batch embedding"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch width"]:
        """Estimates logits.

        Args:
          embedding: embeddings, see `standardise`.
          train: whether to add noise and drop features, which needs a random
            key named "dropout".

        Returns:
          Logits in table order, in the type of the parameters.
        """
        dense = functools.partial(
            nn.Dense, kernel_init=KAIMING, dtype=self.dtype
        )
        x = embedding
        if train and self.noise:
            drawn = jax.random.normal(self.make_rng("dropout"), x.shape)
            x = x + self.noise * drawn.astype(x.dtype)
        x = dense(self.hidden, name="read")(x)
        for block in range(self.blocks):
            x = ResidualBlock(self.dtype, name=f"blocks_{block}")(x)
        x = nn.relu(layer_norm(x, "norm"))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)

        modules = len(self.space.module_names)
        own = nn.initializers.normal(1.0)
        tokens = self.param("tokens", own, (modules, self.token))
        mixtures = self.param(
            "mixtures", nn.initializers.orthogonal(), (modules, modules)
        )
        x = dense(modules * self.token, name="say")(x)
        x = x.reshape(len(x), modules, self.token)
        x = jnp.einsum("mk,bkf->bmf", mixtures.astype(x.dtype), x)
        x = x + tokens.astype(x.dtype)
        x = nn.relu(layer_norm(x, "module_norm"))
        places = _places(self.space)
        parts = []
        for number, (alike, table) in enumerate(
            zip(self.space.layouts, places, strict=True)
        ):
            y = nn.Dense(
                table.shape[1],
                kernel_init=LECUN,
                dtype=self.dtype,
                name=f"layout_{number}",
            )(x[:, np.array(alike)])
            parts.append(y.reshape(len(y), -1))
        order = np.argsort(np.concatenate([t.ravel() for t in places]))
        logits = jnp.concatenate(parts, axis=-1)[:, order]
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
