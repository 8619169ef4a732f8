"""The paper's estimator, a convolutional network from sound to logits.

It reads a mel spectrogram and gives one logit per numerical or binary
parameter and one per category. They follow the used parameters in table order,
a categorical parameter taking as many places as it has categories;
`matching.decode` reads them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from matching import distances
from matching.convolution import strided_convolution
from proxy.encoders.mlp import uniform_bias
from proxy.encoders.norm import BatchNorm

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
