"""The paper's estimator, a convolutional network from sound to logits.

It reads a mel spectrogram and gives one logit per numerical or binary
parameter and one per category. They follow the used parameters in table order,
a categorical parameter taking as many places as it has categories;
`matching.decode` reads them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from matching import distances
from proxy.encoders.norm import BatchNorm

SAMPLE_RATE = 32_000
CHANNELS = (8, 16, 32, 64, 128, 256, 512)
MIXED = 2048
_PADDING = 2
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


# Strided convolution ---------------------------------------------------------


def _output_size(size: int, kernel: int) -> int:
    return (size + 2 * _PADDING - kernel) // 2 + 1


def _convolve(x, kernel, strides=(2, 2), padding=((_PADDING, _PADDING),) * 2):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolve_one_channel(x, kernel):
    """Convolution of one channel, one tap of the kernel after the other.

    The compiler makes a single loop of them that keeps the sums of an
    output's features in a register; a product of matrices this thin would
    spend its time on copying patches.
    """
    height, width = x.shape[1:3]
    size = kernel.shape[0]
    rows, columns = _output_size(height, size), _output_size(width, size)
    x = jnp.pad(x, ((0, 0), (_PADDING,) * 2, (_PADDING,) * 2, (0, 0)))
    y = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    for i in range(size):
        for j in range(size):
            seen = x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
            y += seen.astype(y.dtype) * kernel[i, j, 0]
    return y.astype(x.dtype)


def _convolve_in_pairs(x, kernel):
    """Convolution of two neighbouring columns at a time.

    Twice the features, for half as many products with zero: the compiler has
    a fast way only for more than 16.
    """
    width, size, features = x.shape[2], kernel.shape[0], kernel.shape[-1]
    columns = _output_size(width, size)
    pairs = -(-columns // 2)
    empty = [(0, 0)] * 2
    both = [
        jnp.pad(kernel, [(0, 0), shift, *empty]) for shift in ((0, 2), (2, 0))
    ]
    right = 4 * (pairs - 1) + size + 2 - _PADDING - width
    y = _convolve(
        x,
        jnp.concatenate(both, -1),
        (2, 4),
        ((_PADDING, _PADDING), (_PADDING, right)),
    )
    return y.reshape(*y.shape[:2], 2 * pairs, features)[:, :, :columns]


def _forward(x, kernel):
    def on_cpu(x, kernel):
        if x.shape[-1] == 1 and kernel.shape[0] <= 5:
            return _convolve_one_channel(x, kernel)
        if 8 < kernel.shape[-1] <= 16 and x.shape[-1] <= 16:
            return _convolve_in_pairs(x, kernel)
        return _convolve(x, kernel)

    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=_convolve)


def _phases(kernel):
    """Splits a kernel into the parts that see each phase of the stride.

    Returns:
      `[half, row phase, half, column phase, channels, features]`.
    """
    odd = kernel.shape[0] % 2
    kernel = jnp.pad(kernel, ((0, odd), (0, odd), (0, 0), (0, 0)))
    half = kernel.shape[0] // 2
    return kernel.reshape(half, 2, half, 2, *kernel.shape[2:])


def _from_phases(phases, shape):
    """`[batch, rows, columns, 2, 2, channels]`, put together and cut."""
    batch, rows, columns, _, _, channels = phases.shape
    image = phases.transpose(0, 1, 3, 2, 4, 5)
    image = image.reshape(batch, 2 * rows, 2 * columns, channels)
    return image[:, : shape[1], : shape[2]]


def _input_gradient_by_phase(shape, kernel, cotangent):
    """Gradient of the input, all four phases of the stride in one convolution.

    Input pixels of one phase (row and column parity) see every other row and
    column of the kernel, so their gradient is a convolution without stride;
    the four have the same input and become one with four times the channels.
    """
    batch, _, _, channels = shape
    phases = _phases(kernel)[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    half, _, out = phases.shape[:3]
    phases = phases.reshape(half, half, out, 4 * channels)
    # What is left of an image's first or below its last pixel is not needed.
    padding = [
        (half - 2, -(-n // 2) - m + 1)
        for n, m in zip(shape[1:3], cotangent.shape[1:3], strict=True)
    ]
    gradient = _convolve(cotangent, phases, (1, 1), padding)
    rows, columns = gradient.shape[1:3]
    return _from_phases(
        gradient.reshape(batch, rows, columns, 2, 2, channels), shape
    )


def _input_gradient_by_patch(shape, kernel, cotangent):
    """Gradient of the input: that of every patch, added where they overlap."""
    phases = _phases(kernel)
    half, _, _, _, channels, out = phases.shape
    batch, rows, columns, _ = cotangent.shape
    patches = cotangent.reshape(-1, out) @ phases.reshape(-1, out).T
    patches = patches.reshape(batch, rows, columns, half, 2, half, 2, channels)
    # The image starts at the second block of 2 x 2.
    height, width = (-(-n // 2) for n in shape[1:3])
    gradient = jnp.zeros((), patches.dtype)
    for i in range(half):
        for j in range(half):
            part = patches[:, :, :, i, :, j]
            shift = [(i - 1, height - rows - i + 1)]
            shift += [(j - 1, width - columns - j + 1)]
            padding = [(0, 0), *shift, *[(0, 0)] * 3]
            gradient += jax.lax.pad(
                part,
                jnp.zeros((), part.dtype),
                [(low, high, 0) for low, high in padding],
            )
    return _from_phases(gradient, shape)


@jax.custom_vjp
def strided_convolution(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels features"],
) -> Float[Array, "batch rows columns features"]:
    """Convolution (cross-correlation) of stride 2 with 2 zeros all around.

    XLA's CPU backend is fast at the convolution and at its kernel's gradient
    but not at its input's, which it makes a convolution over an image spread
    out with zeros: up to 50 times slower than the ways used here.

    Args:
      x: images, channels last.
      kernel: square kernels.

    Returns:
      `[batch, (height + 4 - size) // 2 + 1, ..., features]`.
    """
    return _forward(x, kernel)


def _strided_forward(x, kernel):
    return _forward(x, kernel), (x, kernel)


def _strided_backward(saved, cotangent):
    x, kernel = saved
    _, to_kernel = jax.vjp(lambda k: _convolve(x, k), kernel)

    def on_cpu(kernel, cotangent):
        # Many channels on few pixels: one product is faster.
        few_channels = kernel.shape[2] < 256
        way = (
            _input_gradient_by_phase
            if few_channels
            else _input_gradient_by_patch
        )
        return way(x.shape, kernel, cotangent)

    def elsewhere(kernel, cotangent):
        _, to_input = jax.vjp(lambda y: _convolve(y, kernel), x)
        return to_input(cotangent)[0]

    to_x = jax.lax.platform_dependent(
        kernel, cotangent, cpu=on_cpu, default=elsewhere
    )
    return to_x, to_kernel(cotangent)[0]


strided_convolution.defvjp(_strided_forward, _strided_backward)


@jax.custom_vjp
def rectified_convolution(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels features"],
    bias: Float[Array, " features"],
) -> Float[Array, "batch rows columns features"]:
    """`strided_convolution`, a bias and a leaky ReLU of slope 0.1.

    The gradient reads the sign of the output; left to itself, the compiler
    would keep what the ReLU saw as well, or convolve again for it.

    Args:
      x: images, channels last.
      kernel: square kernels.
      bias: of each feature.

    Returns:
      As `strided_convolution`.
    """
    return nn.leaky_relu(strided_convolution(x, kernel) + bias, _SLOPE)


def _rectified_forward(x, kernel, bias):
    y = rectified_convolution(x, kernel, bias)
    return y, (x, kernel, y)


def _rectified_backward(saved, cotangent):
    x, kernel, y = saved
    inner = jnp.where(y >= 0, cotangent, _SLOPE * cotangent)
    to_x, to_kernel = _strided_backward((x, kernel), inner)
    return to_x, to_kernel, inner.sum((0, 1, 2))


rectified_convolution.defvjp(_rectified_forward, _rectified_backward)


# The network -----------------------------------------------------------------


def _uniform_bias(fan_in: int):
    """PyTorch's default for biases: uniform within 1/√fan_in."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Convolution(nn.Module):
    """`rectified_convolution` with its weights.

    Attributes:
      features: channels of the output.
      size: side of the kernel.
      dtype: compute type, that of weights and input when None.
    """

    features: int
    size: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns features"]:
        """Applies the layer."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", _KERNEL, shape)
        bias = self.param(
            "bias", _uniform_bias(int(np.prod(shape[:-1]))), (self.features,)
        )
        dtype = self.dtype or jnp.result_type(x, kernel)
        x, kernel, bias = (a.astype(dtype) for a in (x, kernel, bias))
        return rectified_convolution(x, kernel, bias)


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
            x = Convolution(
                features, 4 if i else 5, dtype=self.dtype, name=f"conv_{i}"
            )(x)
            if i:
                flat = x.reshape(-1, features)
                flat = norm(name=f"norm_{i}")(flat, train=train)
                x = flat.reshape(x.shape)
        # In two dimensions, since the CPU backend's gradient of a product of
        # more is slower.
        pixels = nn.Dense(
            MIXED,
            kernel_init=_KERNEL,
            bias_init=_uniform_bias(CHANNELS[-1]),
            dtype=self.dtype,
            name="mixer",
        )(x.reshape(-1, CHANNELS[-1]))
        pixels = nn.leaky_relu(pixels, _SLOPE)
        x = pixels.reshape(len(x), -1, MIXED).mean(1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(
            self.outputs,
            kernel_init=_KERNEL,
            bias_init=_uniform_bias(MIXED),
            dtype=self.dtype,
            name="head",
        )(x)
        x = norm(
            name="head_norm", dtype=jnp.promote_types(x.dtype, jnp.float32)
        )(x, train=train)
        return x
