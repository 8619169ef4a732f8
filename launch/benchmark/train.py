"""Training steps per encoder: presets/s beside the matrix-product peak."""

from typing import Any

import jax
import jax.numpy as jnp

from launch.benchmark import measure
from launch.runs import devices
from proxy import encoders as zoo
from proxy import objective, optimizer, spaces

# The paper's encoders and batch sizes.
PAPER = ("mlp_oh", "hn_oh", "hn_pt", "hn_ptgru", "tfm")
_BATCH = {"tfm": 256}
# Micro-batches that make one step: what one of 64 presets leaves behind
# stays in a CPU's cache, and without batch statistics the sum is the same.
_ACCUMULATE = {"tfm": 4}
_DIMENSION = 192
_COMPILATION = "/jax/core/compile/backend_compile_duration"


def run(
    encoders: list[str] | None = None,
    seconds: float = 10.0,
    batch: int | None = None,
    space: str = "dexed",
) -> list[dict[str, Any]]:
    """Times the training step of each encoder at the paper's size.

    On an accelerator in bfloat16, too.

    Args:
      encoders: names of encoders; the paper's five when None.
      seconds: time spent on each encoder.
      batch: number of presets in a step; the paper's when None.
      space: name of the synthesizer.

    Returns:
      A row for each: compute type, batch, compile time (s), median time of a
      step (ms), presets/s, rate of the matrix products (GFLOP/s) and its share
      of the peak measured just before, and compilations after the first step.
    """
    return [
        _measure(name, space, batch or _BATCH.get(name, 512), seconds, dtype)
        for name in encoders or PAPER
        for dtype in measure.dtypes()
    ]


def prepare(
    name: str,
    batch: int,
    space_name: str = "dexed",
    dtype: Any = jnp.float32,
) -> tuple[Any, Any, dict[str, Any]]:
    """A training step as `launch.train` maps it over the devices.

    Args:
      name: name of an encoder, which has the paper's size.
      batch: number of presets in a step.
      space_name: name of the synthesizer.
      dtype: compute type; parameters are float32.

    Returns:
      The compiled step, its first state, and a batch of random data.
    """
    space = spaces.get(space_name)
    mesh = devices.mesh()
    accumulate = _ACCUMULATE.get(name, 1)
    elsewhere = jax.default_backend() != "cpu"
    if elsewhere or batch % (accumulate * mesh.size):
        accumulate = 1
    devices.check_batch(batch, mesh)
    encoder = zoo.build(
        name, space, _DIMENSION, axis_name=devices.AXIS, dtype=dtype
    )
    update = optimizer.adamw(1e-3)
    step = objective.train_step(
        encoder, space, update, axis_name=devices.AXIS, accumulate=accumulate
    )
    state = objective.init_state(
        encoder, update, jax.random.key(0), space.width
    )
    data = {
        "preset": space.sample(jax.random.key(1), (batch,)),
        "embedding": jax.random.normal(jax.random.key(2), (batch, _DIMENSION)),
    }
    return (
        devices.map_step(step, mesh),
        devices.place(state, devices.replicated(mesh)),
        devices.place(data, devices.split(mesh)),
    )


def _measure(
    name: str, space_name: str, batch: int, seconds: float, dtype: Any
) -> dict[str, Any]:
    mapped, state, data = prepare(name, batch, space_name, dtype)
    number = len(jax.devices())
    ceiling = measure.peak(dtype)
    flops = number * measure.flops(mapped, state, data)
    compilations: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        del kwargs
        if event == _COMPILATION:
            compilations.append(duration_secs)

    def advance() -> Any:
        nonlocal state
        state, metrics = mapped(state, data)
        return state, metrics

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(advance())
        first = sum(compilations)
        compilations.clear()
        median = measure.median(advance, seconds)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return {
        "encoder": name,
        "dtype": jnp.dtype(dtype).name,
        "batch": batch,
        "compile s": round(first, 2),
        "ms": round(1e3 * median, 1),
        "presets/s": round(batch / median, 1),
        "GFLOP/s": round(flops / median / 1e9, 1),
        "share of peak": round(flops / median / ceiling, 3),
        "recompiled": len(compilations),
    }
