"""EfficientAT: MobileNetV3 for audio tagging, as frozen embedding functions.

Network and front end follow Schmid, Koutini and Widmer, "Efficient
Large-Scale Audio Tagging Via Transformer-to-CNN Knowledge Distillation"
(ICASSP 2023, https://github.com/fschmid56/EfficientAT); the embeddings follow
its HEAR wrapper (windows of 160 ms every 50 ms).

The variables are a Flax tree `{"params": ..., "batch_stats": ...}`; made by
`init`, or from published weights by `proxy.published`. Everything is in
evaluation mode: the model is frozen, BatchNorm is folded into the convolutions
before it.

Two forms of the convolutions give the same numbers:

* `"convolution"`: `lax.conv_general_dilated` over `[batch, height, width,
  channels]`, which is right for accelerators;
* `"shift"`: for CPUs, where XLA's depthwise convolution is 10 to 100 times
  slower than its arithmetic. The batch is the last axis, `[channels, height,
  width, batch]`: a 1x1 convolution is one large matrix product, and a
  depthwise one a sum of shifted products, each a contiguous vector operation
  over the batch. Taps that would meet nothing but padding are left out, and on
  the narrow maps of a 160 ms window those are the majority.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from proxy.audio import spectral

SAMPLE_RATE = 32_000
MELS = 128
CLASSES = 527

WIDTHS = {
    "mn01": 0.1,
    "mn02": 0.2,
    "mn04": 0.4,
    "mn05": 0.5,
    "mn10": 1.0,
    "mn20": 2.0,
    "mn30": 3.0,
    "mn40": 4.0,
}

# Blocks whose means make the embedding, low to high level.
TAPS = (5, 11, 13, 15)

WINDOW, HOP = 5120, 1600  # 160 ms and 50 ms
_FFT, _FRAME, _STEP = 1024, 800, 320
_WINDOW_FRAMES = 16
# The first and last frames of a window that reach beyond it and so see its
# reflection; the others are frames of the whole clip.
_EARLY, _LATE = 2, 15

Variables = Mapping[str, Any]
Form = Literal["shift", "convolution"]


@dataclasses.dataclass(frozen=True)
class Block:
    """One inverted residual block, channels already scaled by the width."""

    inputs: int
    expanded: int
    outputs: int
    kernel: int
    stride: int
    squeeze: bool
    hard_swish: bool

    @property
    def expands(self) -> bool:
        """Whether a 1x1 convolution comes before the depthwise one."""
        return self.expanded != self.inputs

    @property
    def residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.inputs == self.outputs


# MobileNetV3-Large: inputs, kernel, expanded, outputs, squeeze-excitation,
# hard-swish, stride.
_LARGE = (
    (16, 3, 16, 16, False, False, 1),
    (16, 3, 64, 24, False, False, 2),
    (24, 3, 72, 24, False, False, 1),
    (24, 5, 72, 40, True, False, 2),
    (40, 5, 120, 40, True, False, 1),
    (40, 5, 120, 40, True, False, 1),
    (40, 3, 240, 80, False, True, 2),
    (80, 3, 200, 80, False, True, 1),
    (80, 3, 184, 80, False, True, 1),
    (80, 3, 184, 80, False, True, 1),
    (80, 3, 480, 112, True, True, 1),
    (112, 3, 672, 112, True, True, 1),
    (112, 5, 672, 160, True, True, 2),
    (160, 5, 960, 160, True, True, 1),
    (160, 5, 960, 160, True, True, 1),
)


def round_channels(channels: float | int) -> int:
    """Nearest multiple of 8, at least 8, not below 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


@functools.cache
def blocks(width: float) -> tuple[Block, ...]:
    """The 15 blocks of the network of that width multiplier."""

    def scaled(channels):
        return round_channels(channels * width)

    return tuple(
        Block(
            inputs=scaled(inputs),
            expanded=scaled(expanded),
            outputs=scaled(outputs),
            kernel=kernel,
            stride=stride,
            squeeze=squeeze,
            hard_swish=hard_swish,
        )
        for inputs, kernel, expanded, outputs, squeeze, hard_swish, stride in (
            _LARGE
        )
    )


def dimension(width: float, *, mel: bool = False) -> int:
    """Length of the embedding: 192 for mn04, 320 with mel averages."""
    outputs = [blocks(width)[tap - 1].outputs for tap in TAPS]
    return sum(outputs) + (MELS if mel else 0)


def shapes(width: float) -> dict[str, Any]:
    """The variable tree with shapes in place of arrays.

    Kernels are `[inputs, outputs]` for 1x1 convolutions and dense layers,
    `[height, width, channels]` for depthwise ones (and the stem, which has
    one input channel).
    """
    params: dict[str, Any] = {}
    statistics: dict[str, Any] = {}

    def normalised(kernel):
        vector = kernel[-1:]
        return (
            {"kernel": kernel, "scale": vector, "bias": vector},
            {"mean": vector, "var": vector},
        )

    def dense(inputs, outputs):
        return {"kernel": (inputs, outputs), "bias": (outputs,)}

    table = blocks(width)
    params["stem"], statistics["stem"] = normalised((3, 3, table[0].inputs))
    for number, block in enumerate(table, 1):
        layers = {
            "depthwise": (block.kernel, block.kernel, block.expanded),
            "project": (block.expanded, block.outputs),
        }
        if block.expands:
            layers["expand"] = (block.inputs, block.expanded)
        pairs = {name: normalised(shape) for name, shape in layers.items()}
        name = f"block_{number:02d}"
        params[name] = {layer: pair[0] for layer, pair in pairs.items()}
        statistics[name] = {layer: pair[1] for layer, pair in pairs.items()}
        if block.squeeze:
            squeezed = round_channels(block.expanded // 4)
            params[name]["squeeze"] = dense(block.expanded, squeezed)
            params[name]["excite"] = dense(squeezed, block.expanded)
    inputs = table[-1].outputs
    features, hidden = 6 * inputs, round_channels(1280 * width)
    params["tail"], statistics["tail"] = normalised((inputs, features))
    params["hidden"] = dense(features, hidden)
    params["logits"] = dense(hidden, CLASSES)
    return {"params": params, "batch_stats": statistics}


def init(key: PRNGKeyArray, width: float) -> dict[str, Any]:
    """Random variables: He-normal kernels, BatchNorm as the identity."""

    def leaf(path, shape):
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.ones(shape)
        if name in ("bias", "mean"):
            return jnp.zeros(shape)
        label = "/".join(str(part.key) for part in path)
        fan_in = int(np.prod(shape[:-1]))
        salt = int.from_bytes(label.encode(), "little") % (2**31 - 1)
        noise = jax.random.normal(jax.random.fold_in(key, salt), shape)
        return noise * np.sqrt(2 / fan_in)

    return jax.tree_util.tree_map_with_path(
        leaf, shapes(width), is_leaf=lambda node: isinstance(node, tuple)
    )


def width_of(variables: Variables) -> float:
    """The width multiplier that variables belong to.

    Raises:
      ValueError: when their shapes are those of no published width.
    """
    ours = jax.tree.map(jnp.shape, dict(variables))
    for width in WIDTHS.values():
        if ours == shapes(width):
            return width
    raise ValueError(
        "These variables are of no known EfficientAT width: load them with "
        f"datasets.weights.published (one of {', '.join(WIDTHS)})."
    )


def fold(variables: Variables) -> dict[str, Any]:
    """Folds BatchNorm (eps 1e-3) into kernels and biases.

    Returns:
      The parameter tree with every layer as `{"kernel", "bias"}`.
    """

    def layer(params, statistics):
        if "kernel" not in params:
            return {
                name: layer(child, statistics.get(name, {}))
                for name, child in params.items()
            }
        if "scale" not in params:
            return dict(params)
        scale = params["scale"] * lax.rsqrt(statistics["var"] + 1e-3)
        return {
            "kernel": params["kernel"] * scale,
            "bias": params["bias"] - statistics["mean"] * scale,
        }

    return layer(variables["params"], variables["batch_stats"])


# Front end


def _bank() -> np.ndarray:
    return spectral.mel_bank(
        MELS,
        sample_rate=SAMPLE_RATE,
        fft_size=_FFT,
        low=0.0,
        high=15_000.0,
        scale="kaldi",
    )


def _log_mel(
    spectrum: Complex[Array, "batch frames bins"],
) -> Float[Array, "mels batch frames"]:
    """Scaled log mel bands of a spectrum."""
    bank = _bank()
    # Above 15 kHz there is nothing to sum.
    bins = int(np.flatnonzero(bank.any(axis=1))[-1]) + 1
    power = spectral.power(spectrum)[..., :bins]
    bands = jnp.dot(power, bank[:bins], precision="highest")
    return jnp.moveaxis((jnp.log(bands + 1e-5) + 4.5) / 5, -1, 0)


def front_end(
    audio: Float[Array, "batch samples"],
) -> Float[Array, "batch mels frames"]:
    """Log mel spectrogram of a whole clip, as the network sees it.

    Pre-emphasis [-0.97, 1] without padding; STFT of 1,024 points, hop 320,
    centred and reflect-padded, symmetric Hann window of 800 samples; power;
    128 Kaldi mel bands from 0 to 15,000 Hz; log(x + 1e-5); (x + 4.5) / 5.

    Args:
      audio: clips at 32 kHz, in [-1, 1].

    Returns:
      `[batch, 128, 1 + (samples - 1) // 320]`; -1.4026 on silence.

    Raises:
      ValueError: for clips of less than 514 samples.
    """
    return jnp.moveaxis(_clip_bands(audio), 0, 1)


def _clip_bands(
    audio: Float[Array, "batch samples"],
) -> Float[Array, "mels batch frames"]:
    """`front_end` with the mel bands first."""
    audio = spectral.pre_emphasis(audio)
    samples = audio.shape[-1]
    if samples <= _FFT // 2:
        raise ValueError(
            f"A clip of {samples + 1} samples is too short for EfficientAT: "
            f"give at least {_FFT // 2 + 2} samples at 32 kHz."
        )
    window = spectral.hann(_FRAME, periodic=False)
    spectrum = spectral.stft(audio, window, fft_size=_FFT, hop=_STEP)
    return _log_mel(spectrum)


def windows(samples: int) -> int:
    """Number of 160 ms windows of a clip: 101 for 5 s at 32 kHz."""
    return 1 + samples // HOP


def windowed_front_end(
    audio: Float[Array, "batch samples"],
) -> Float[Array, "mels batch windows frames"]:
    """`front_end` of every 160 ms window, every 50 ms, mel bands first.

    The clip is reflect-padded by half a window on both sides. Each window has
    its own pre-emphasis and its own reflected ends. As the hop of the windows
    is a multiple of the STFT's, 13 of the 16 frames of a window are frames of
    the padded clip as well, and are computed once for all windows that share
    them; only the three that reach over an end are computed for each window.

    Args:
      audio: clips at 32 kHz, more than 2,560 samples.

    Returns:
      `[128, batch, 1 + samples // 1600, 16]`.

    Raises:
      ValueError: for clips too short to be reflected by half a window.
    """
    samples = audio.shape[-1]
    if samples <= WINDOW // 2:
        raise ValueError(
            f"A clip of {samples} samples is too short for windows of 160 ms: "
            f"give more than {WINDOW // 2} samples at 32 kHz."
        )
    pad = ((0, 0), (WINDOW // 2, WINDOW // 2))
    padded = spectral.pre_emphasis(jnp.pad(audio, pad, mode="reflect"))
    half, count, step = _FRAME // 2, windows(samples), HOP // _STEP

    # Frames inside a window. Frame j of window w is centred on sample
    # 1600 w + 320 j of the padded clip, so frame j + 5 of a window is frame j
    # of the next: five interleaved rows of frames hold them all, and the
    # frames j of all windows are consecutive in row j % 5.
    inside = range(_EARLY, _LATE)
    rows, where = [], {}
    for first in inside[:step]:
        members = inside[first - _EARLY :: step]
        for shift, j in enumerate(members):
            where[j] = len(rows), shift
        begin = padded[:, first * _STEP - half :]
        row = spectral.frames(begin, _FFT, HOP)
        rows.append(row[:, : count + len(members) - 1])

    # Frames over the ends see the window's reflection about its first or last
    # sample.
    length = WINDOW - 1
    early, late = _STEP + _FFT - half, _LATE * _STEP - half
    tail = late + _FFT - length
    starts = spectral.frames(padded, early, HOP)[:, :count]
    ends = spectral.frames(padded[:, late:], length - late, HOP)[:, :count]
    mirrored = jnp.concatenate([starts[..., half:0:-1], starts], axis=-1)
    edges = {
        0: mirrored[..., :_FFT],
        1: mirrored[..., _STEP:],
        _LATE: jnp.concatenate([ends, ends[..., -2 : -2 - tail : -1]], axis=-1),
    }
    for j, row in edges.items():
        where[j] = len(rows), 0
        rows.append(row)

    # A frame is 800 samples. Where they lie in the transform changes phases
    # only, not power: put them first and silence the rest.
    window = spectral.hann(_FRAME, periodic=False)
    window = np.pad(window, (0, _FFT - _FRAME))
    bands = _log_mel(jnp.fft.rfft(jnp.concatenate(rows, axis=1) * window))
    begins = np.cumsum([0] + [row.shape[1] for row in rows])
    columns = []
    for j in range(_WINDOW_FRAMES):
        row, shift = where[j]
        at = begins[row] + shift
        columns.append(bands[:, :, at : at + count])
    return jnp.stack(columns, axis=-1)


# Network
#
# A layout names the axes of a map: channels, height (mel bands), width
# (frames) and n, the batch. The shifted form has the longer of width and batch
# last, so that its vector operations run over many consecutive numbers.


def _layout(form: Form | None, frames: int, batch: int) -> str:
    if form is None:
        form = "shift" if jax.default_backend() == "cpu" else "convolution"
    if form == "convolution":
        return "nhwc"
    return "chwn" if batch >= frames else "chnw"


def _arrange(x, source, target):
    return jnp.transpose(x, [source.index(axis) for axis in target])


def _column(vector, layout):
    """A vector over channels in the shape that broadcasts over a map."""
    return vector.reshape([-1 if axis == "c" else 1 for axis in layout])


def _activate(x, hard_swish):
    return jax.nn.hard_swish(x) if hard_swish else jax.nn.relu(x)


def _pointwise(x, layer, layout):
    equation = f"{layout},cd->{layout.replace('c', 'd')}"
    # On accelerators float32 products are not exact by default; who wants
    # them faster asks for bfloat16.
    y = jnp.einsum(equation, x, layer["kernel"], precision="highest")
    return y + _column(layer["bias"], layout)


def _mean(x, layout):
    """Means over the map, `[batch, channels]` in float32."""
    axes = layout.index("h"), layout.index("w")
    means = jnp.mean(x, axis=axes, dtype=jnp.float32)
    return means if layout == "nhwc" else means.T


# Positions of a map up to which the shifted form is written out.
_WRITTEN_OUT = 8


def _taps(x, kernel, stride, axis, limit):
    """What each tap of a kernel meets along one axis.

    Returns:
      A list of steps, each a list of (tap, slice of x) that sum to one part of
      the output. Up to `limit` positions, a step is one of them, and taps that
      meet padding are left out; otherwise all positions are one step, over
      zero padding.
    """
    size, padding = x.shape[axis], kernel // 2
    outputs = -(-size // stride)
    if outputs <= limit:
        return [
            [
                (tap, lax.slice_in_dim(x, at, at + 1, axis=axis))
                for tap in range(kernel)
                if 0 <= (at := stride * position + tap - padding) < size
            ]
            for position in range(outputs)
        ]
    widths = [(0, 0)] * x.ndim
    widths[axis] = (padding, padding)
    x = jnp.pad(x, widths)
    span = stride * (outputs - 1) + 1
    return [
        [
            (tap, lax.slice_in_dim(x, tap, tap + span, stride, axis))
            for tap in range(kernel)
        ]
    ]


def _shifted(x, kernel, stride, layout):
    """Depthwise convolution as a sum of shifted products."""
    size, (height, width) = kernel.shape[0], map(layout.index, "hw")
    rows = []
    across = -(-x.shape[width] // stride)
    for row_taps in _taps(x, size, stride, height, _WRITTEN_OUT // across):
        met = [
            (i, _taps(part, size, stride, width, _WRITTEN_OUT))
            for i, part in row_taps
        ]
        columns = []
        for step in range(len(met[0][1])):
            terms = [
                _column(kernel[i, j], layout) * part
                for i, steps in met
                for j, part in steps[step]
            ]
            columns.append(functools.reduce(jnp.add, terms))
        rows.append(jnp.concatenate(columns, axis=width))
    return jnp.concatenate(rows, axis=height)


def _depthwise(x, layer, stride, layout):
    """Each channel with its own kernel; a single input channel with all."""
    kernel = layer["kernel"]
    if layout == "nhwc":
        pad = (kernel.shape[0] // 2,) * 2
        y = lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (stride, stride),
            (pad, pad),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
            precision="highest",
        )
    else:
        y = _shifted(x, kernel, stride, layout)
    return y + _column(layer["bias"], layout)


def _squeeze_excite(x, squeeze, excite, layout):
    z = _mean(x, layout).astype(x.dtype)
    z = jnp.dot(z, squeeze["kernel"], precision="highest") + squeeze["bias"]
    z = jax.nn.relu(z)
    z = jnp.dot(z, excite["kernel"], precision="highest") + excite["bias"]
    # Fused into the product with the map, the sigmoid would be computed anew
    # for every position of it.
    z = lax.optimization_barrier(jax.nn.sigmoid(z))
    z = z if layout == "nhwc" else z.T
    return x * jnp.expand_dims(z, (layout.index("h"), layout.index("w")))


def _block(x, params, block, layout):
    y = x
    if block.expands:
        y = _pointwise(y, params["expand"], layout)
        y = _activate(y, block.hard_swish)
    y = _depthwise(y, params["depthwise"], block.stride, layout)
    y = _activate(y, block.hard_swish)
    if block.squeeze:
        y = _squeeze_excite(y, params["squeeze"], params["excite"], layout)
    y = _pointwise(y, params["project"], layout)
    return x + y if block.residual else y


def _means(folded, mel, width, layout):
    """Means of the maps of stem, blocks and tail, one after the other.

    The input has one channel, its axes in the order of the layout.

    Yields:
      `[batch, channels]` in float32.
    """
    x = jax.nn.hard_swish(_depthwise(mel, folded["stem"], 2, layout))
    yield _mean(x, layout)
    for number, block in enumerate(blocks(width), 1):
        x = _block(x, folded[f"block_{number:02d}"], block, layout)
        yield _mean(x, layout)
    tail = _pointwise(x, folded["tail"], layout)
    yield _mean(jax.nn.hard_swish(tail), layout)


def map_means(
    variables: Variables,
    mel: Float[Array, "batch mels frames"],
    *,
    form: Form | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Float[Array, "batch _"], ...]:
    """Channel means of all maps of the network.

    Args:
      variables: variables of a network of any width.
      mel: what `front_end` returns.
      form: how to convolve; None for "shift" on a CPU and "convolution"
        elsewhere, as `jax.default_backend()` says.
      dtype: the network computes in it; means are taken in float32.

    Returns:
      17 arrays `[batch, channels]`: the stem, blocks 1 to 15, and the tail,
      whose means are the features the classifier takes.
    """
    batch, _, frames = mel.shape
    layout = _layout(form, frames, batch)
    folded = jax.tree.map(lambda leaf: leaf.astype(dtype), fold(variables))
    x = _arrange(mel.astype(dtype)[None], "cnhw", layout)
    return tuple(_means(folded, x, width_of(variables), layout))


def classify(
    variables: Variables,
    features: Float[Array, "batch features"],
) -> Float[Array, "batch classes"]:
    """Logits of the 527 AudioSet classes (the published `mlp` head).

    Args:
      variables: variables of a network of any width.
      features: the last of `map_means`.

    Returns:
      Logits; a sigmoid makes them probabilities, several may be high.
    """
    hidden, logits = (variables["params"][k] for k in ("hidden", "logits"))
    # Not in the reduced precision that accelerators take by default.
    x = jnp.dot(features, hidden["kernel"], precision="highest")
    x = jax.nn.hard_swish(x + hidden["bias"])
    x = jnp.dot(x, logits["kernel"], precision="highest")
    return x + logits["bias"]


def _embed(variables, mel, form, dtype):
    """Returns a function from `[mels, batch, frames]` to embeddings."""
    width = width_of(variables)
    folded = jax.tree.map(lambda leaf: leaf.astype(dtype), fold(variables))

    def embed(bands):
        _, batch, frames = bands.shape
        layout = _layout(form, frames, batch)
        x = _arrange(bands.astype(dtype)[None], "chnw", layout)
        # What follows the last tap is never computed.
        first = itertools.islice(_means(folded, x, width, layout), TAPS[-1] + 1)
        parts = [means for number, means in enumerate(first) if number in TAPS]
        if mel:
            parts.insert(0, jnp.mean(bands, axis=-1).T)
        return jnp.concatenate(parts, axis=-1)

    return embed


def _embed_windows(variables, mel, form, dtype):
    """Returns a function from clips to the embeddings of their windows."""
    network = _embed(variables, mel, form, dtype)

    def embed(clips):
        bands = windowed_front_end(clips)
        batch, count = bands.shape[1:3]
        rows = network(bands.reshape(MELS, batch * count, -1))
        return rows.reshape(batch, count, -1)

    return embed


def embed_windows(
    variables: Variables,
    audio: Float[Array, "batch samples"],
    *,
    mel: bool = False,
    form: Form | None = None,
    dtype: Any = jnp.float32,
    at_once: int | None = None,
) -> Float[Array, "batch windows embedding"]:
    """One embedding for every window of 160 ms, every 50 ms.

    Args:
      variables: variables of a network of any width.
      audio: clips at 32 kHz in [-1, 1], more than 2,560 samples.
      mel: whether to put the 128 averages of the mel bands first.
      form: how to convolve; None for "shift" on a CPU and "convolution"
        elsewhere, as `jax.default_backend()` says.
      dtype: the network computes in it (bfloat16 suits accelerators); front
        end, means and embedding are float32.
      at_once: clips worked on together, see `spectral.by_clip`.

    Returns:
      `[batch, 1 + samples // 1600, embedding]`: for each window the means of
      blocks 5, 11, 13 and 15 over their map.

    Raises:
      ValueError: for clips too short, or variables of no known width.
    """
    windows = _embed_windows(variables, mel, form, dtype)
    return spectral.by_clip(windows, audio, at_once, on_cpu=2)


def embed(
    variables: Variables,
    audio: Float[Array, "batch samples"],
    *,
    mel: bool = False,
    form: Form | None = None,
    dtype: Any = jnp.float32,
    at_once: int | None = None,
) -> Float[Array, "batch embedding"]:
    """The embedding of the paper: the average of `embed_windows`.

    Arguments and errors are those of `embed_windows`.

    Returns:
      `[batch, embedding]`: 192 numbers for mn04, 320 with mel averages.
    """
    windows = _embed_windows(variables, mel, form, dtype)

    def embed_clips(clips):
        return windows(clips).mean(axis=1)

    return spectral.by_clip(embed_clips, audio, at_once, on_cpu=2)


def embed_scene(
    variables: Variables,
    audio: Float[Array, "batch samples"],
    *,
    mel: bool = False,
    form: Form | None = None,
    dtype: Any = jnp.float32,
    at_once: int | None = None,
) -> Float[Array, "batch embedding"]:
    """The cheaper form: one pass over the whole clip.

    No substitute for `embed`, and not comparable with it: a space of its own.
    Arguments, errors and dimension are those of `embed`.
    """
    network = _embed(variables, mel, form, dtype)

    def embed_clips(clips):
        return network(_clip_bands(clips))

    return spectral.by_clip(embed_clips, audio, at_once, on_cpu=2)
