"""Audio models: clips/s, front end included, beside the matrix-product peak."""

import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmark import train as benchmark_train
from launch.runs import devices, embedding
from proxy import audio
from proxy.audio import efficientat

# The paper's embedding, its cheaper form, and the models without weights.
MODELS = (
    "mn04_mel",
    "mn04_scene_mel",
    "mel128",
    "mfcc40",
    "mstft",
    "transport640",
)
_DURATION = 5.0


def run(
    models: list[str] | None = None,
    seconds: float = 10.0,
    batch: int = 64,
) -> list[dict[str, Any]]:
    """Times the embedding of clips of 5 s that lie in memory.

    It is the embedding of `launch.precompute`, on all cores of a CPU or on
    one accelerator.

    EfficientAT runs with random weights, which take as long as the published
    ones and need no download. On an accelerator each EfficientAT model is
    timed in bfloat16 too, and the change this makes to the embedding is given.

    Args:
      models: names of audio models; a selection when None.
      seconds: time spent on each.
      batch: clips in a batch.

    Returns:
      A row for each: clips/s of the median batch; arithmetic of a clip in
      GFLOP (convolutions, FFTs and mel bands as written, taps over padding
      included), the rate this makes, and its share of the best matrix product
      of its compute type measured in the same run.

    Raises:
      ValueError: for an unknown model.
    """
    devices.keep_memory()
    chosen = [audio.get(name) for name in models or MODELS]
    peaks = {d: benchmark_train.peak(d) for d in benchmark_train.dtypes()}
    rows = []
    for model in chosen:
        dtypes = benchmark_train.dtypes() if model.weights else [jnp.float32]
        exact = None
        for dtype in dtypes:
            row, embeddings = _measure(
                model, dtype, batch, seconds, peaks[dtype]
            )
            if exact is None:
                exact = embeddings
            else:
                change = np.abs(embeddings - exact).sum() / np.abs(exact).sum()
                row["relative L1"] = float(change)
            rows.append(row)
    return rows


def _measure(
    model: audio.AudioModel,
    dtype: Any,
    batch: int,
    seconds: float,
    peak: float,
) -> tuple[dict[str, Any], np.ndarray]:
    variables: dict[str, Any] = {}
    options = {}
    if model.host is not None:
        raise ValueError(
            f"{model.name} runs in {model.host}, outside JAX: it cannot be "
            "timed here"
        )
    if model.init is not None:
        variables = dict(jax.jit(model.init)(jax.random.key(0)))
        options["dtype"] = dtype
    samples = round(_DURATION * model.sample_rate)
    clips = jax.random.uniform(
        jax.random.key(1), (batch, samples), minval=-0.5, maxval=0.5
    )
    embed = embedding.embedder(model, variables, **options)
    start = time.perf_counter()
    embeddings = np.asarray(embed(clips))
    compiled = time.perf_counter() - start
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(embed(clips))
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    row = {
        "model": model.name,
        "dtype": jnp.dtype(dtype).name,
        "batch": batch,
        "first call (s)": compiled,
        "ms/batch": 1e3 * median,
        "clips/s": batch / median,
    }
    if model.weights is None or model.weights in efficientat.WIDTHS:
        flops = flops_per_clip(model)
        row["GFLOP/clip"] = flops / 1e9
        row["GFLOP/s"] = flops * batch / median / 1e9
        row["share of peak"] = flops * batch / median / peak
    return row, embeddings


def flops_per_clip(model: audio.AudioModel) -> float:
    """Multiplications plus additions for one clip of 5 s.

    An FFT of n real points counts 2.5 n log2 n. The windowed form counts each
    of its distinct frames once, as it is computed.
    """
    samples = round(_DURATION * model.sample_rate)
    if model.weights is None:
        sizes = {"mstft": (512, 1024, 2048), "transport640": (1024,)}.get(
            model.name, (2048,)
        )
        mels = 0 if model.name == "mstft" else 128
        return sum(
            _spectrum(1 + samples // (size // 2), size, mels) for size in sizes
        )
    width = efficientat.WIDTHS[model.weights]
    frames = 1 + (samples - 1) // 320
    if "scene" in model.name:
        return _spectrum(frames, 1024, 128) + network_flops(width, 128, frames)
    windows = efficientat.windows(samples)
    # Eight rows of frames, one for each window, a few of them longer.
    distinct = 8 * windows + 8
    network = windows * network_flops(width, 128, 16)
    return _spectrum(distinct, 1024, 128) + network


def _spectrum(frames: int, size: int, mels: int) -> float:
    transform = 2.5 * size * math.log2(size)
    return frames * (transform + 2 * (size // 2 + 1) * mels)


def network_flops(width: float, mels: int, frames: int) -> float:
    """Multiplications plus additions of EfficientAT up to block 15.

    Args:
      width: The width multiplier.
      mels: Height of the input.
      frames: Width of the input.
    """
    table = efficientat.blocks(width)
    height, length = -(-mels // 2), -(-frames // 2)
    total = 9 * table[0].inputs * height * length
    for block in table:
        if block.expands:
            total += block.inputs * block.expanded * height * length
        height, length = -(-height // block.stride), -(-length // block.stride)
        taps = block.kernel**2 + block.outputs
        total += taps * block.expanded * height * length
        if block.squeeze:
            squeezed = efficientat.round_channels(block.expanded // 4)
            total += 2 * block.expanded * squeezed
    return 2 * total
