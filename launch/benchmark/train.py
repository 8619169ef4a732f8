"""Training steps per encoder: presets/s beside the matrix-product peak."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

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
      encoders: names; the paper's five when None.
      seconds: time spent on each.
      batch: presets in a step; the paper's when None.
      space: the synthesizer.

    Returns:
      A row for each: compute type, batch, compile time (s), median time of a
      step (ms), presets/s, rate of the matrix products (GFLOP/s) and its share
      of the peak measured just before, and compilations after the first step.
    """
    devices.keep_memory()
    return [
        _measure(name, space, batch or _BATCH.get(name, 512), seconds, dtype)
        for name in encoders or PAPER
        for dtype in dtypes()
    ]


def dtypes() -> list[Any]:
    """Compute types worth timing here: bfloat16 is slower on CPUs."""
    if jax.default_backend() == "cpu":
        return [jnp.float32]
    return [jnp.float32, jnp.bfloat16]


def peak(dtype: Any = jnp.float32, seconds: float = 1.0) -> float:
    """Best rate of a square matrix product here, in FLOP/s.

    Its size fills the device; its values are random, since zeros and ones
    take an accelerator less power and let it run faster.

    Args:
      dtype: of the product.
      seconds: time spent on it.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, a))
    return 2 * size**3 / min(_times(lambda: multiply(a, a), seconds))


def _times(step: Callable[[], Any], seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(step())
        times.append(time.perf_counter() - start)
    return times


def product_flops(jaxpr: Any) -> int:
    """Arithmetic of all matrix products in a traced function.

    Args:
      jaxpr: the function, as `jax.make_jaxpr` gives it; loops count as often
        as they run, of several branches the costliest counts.

    Returns:
      Multiplications plus additions.
    """
    total = 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            depth = math.prod(left[i] for i in contracted)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
            continue
        inner = [
            p
            for value in eqn.params.values()
            for p in (value if isinstance(value, tuple | list) else (value,))
            if isinstance(p, core.Jaxpr | core.ClosedJaxpr)
        ]
        counts = [product_flops(j) for j in inner]
        if eqn.primitive.name == "cond":
            total += max(counts)
        else:
            total += sum(counts) * eqn.params.get("length", 1)
    return total


def prepare(
    name: str,
    batch: int,
    space_name: str = "dexed",
    dtype: Any = jnp.float32,
) -> tuple[Any, Any, dict[str, Any]]:
    """A training step as `launch.train` maps it over the devices.

    Args:
      name: of an encoder, at the paper's size.
      batch: presets in a step.
      space_name: the synthesizer.
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
    ceiling = peak(dtype)
    flops = number * product_flops(jax.make_jaxpr(mapped)(state, data))
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
        median = statistics.median(_times(advance, seconds))
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
