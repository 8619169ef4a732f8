"""Audio models: clips/s, front end included, beside the matrix-product peak."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmark import measure
from launch.runs import embedding
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
      seconds: time spent on each model.
      batch: number of clips in a batch.

    Returns:
      A row for each: clips/s of the median batch; arithmetic of a clip in
      GFLOP, see `measure.flops`, the rate this makes, and its share of the
      best matrix product of its compute type measured in the same run.

    Raises:
      ValueError: for an unknown model.
    """
    chosen = [audio.get(name) for name in models or MODELS]
    peaks = {d: measure.peak(d) for d in measure.dtypes()}
    rows = []
    for model in chosen:
        dtypes = measure.dtypes() if model.weights else [jnp.float32]
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
    median = measure.median(lambda: embed(clips), seconds)
    flops = flops_per_clip(model, variables, samples)
    row = {
        "model": model.name,
        "dtype": jnp.dtype(dtype).name,
        "batch": batch,
        "first call (s)": compiled,
        "ms/batch": 1e3 * median,
        "clips/s": batch / median,
        "GFLOP/clip": flops / 1e9,
        "GFLOP/s": flops * batch / median / 1e9,
        "share of peak": flops * batch / median / peak,
    }
    return row, embeddings


def flops_per_clip(
    model: audio.AudioModel, variables: Any, samples: int
) -> float:
    """Multiplications plus additions for one clip.

    Args:
      model: an audio model that runs in JAX.
      variables: weights of the model, or the shapes of them.
      samples: length of the clip.
    """
    options = {}
    if model.weights in efficientat.WIDTHS:
        # The form for CPUs multiplies and adds without any product.
        options["form"] = "convolution"
    clip = jax.ShapeDtypeStruct((1, samples), jnp.float32)
    embed = functools.partial(model.embed, **options)
    return measure.flops(embed, variables, clip)
