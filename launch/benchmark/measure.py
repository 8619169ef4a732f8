"""What stages are measured with: clocks, and the arithmetic of functions."""

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


def rate(
    work: Callable[[int], Any], seconds: float, threads: int = 1
) -> tuple[float, float]:
    """Calls of `work(i)` per second, and per second of processor time."""
    calls = [0] * threads
    stop = time.perf_counter() + seconds

    def loop(thread: int) -> None:
        while not calls[thread] or time.perf_counter() < stop:
            work(calls[thread] * threads + thread)
            calls[thread] += 1

    started, used = time.perf_counter(), time.process_time()
    more = range(1, threads)
    workers = [threading.Thread(target=loop, args=(i,)) for i in more]
    for worker in workers:
        worker.start()
    # Plug-ins are made anew in the main thread only.
    loop(0)
    for worker in workers:
        worker.join()
    total = sum(calls)
    return (
        total / (time.perf_counter() - started),
        total / (time.process_time() - used),
    )


def rows(
    rates: Iterable[tuple[str, float, float, str]], limit: float
) -> list[dict[str, Any]]:
    """Rows of a table of rates beside the limit of the rate per core.

    Args:
      rates: what was measured, its rate per second, per core, and its unit.
      limit: the greatest rate per core.
    """
    head = ("what", "per second", "per core", "unit", "of limit")
    return [
        dict(zip(head, (*rate, 100 * (rate[2] / limit)), strict=True))
        for rate in rates
    ]


def _times(step: Callable[[], Any], seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(step())
        times.append(time.perf_counter() - start)
    return times


def median(step: Callable[[], Any], seconds: float) -> float:
    """Median time of a compiled step, of three at least, in seconds."""
    return statistics.median(_times(step, seconds))


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
      dtype: compute type of the product.
      seconds: time spent on it.
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(a, a))
    return 2 * size**3 / min(_times(lambda: multiply(a, a), seconds))


def flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Arithmetic of a function's matrix products, convolutions and FFTs.

    Args:
      function: a function that JAX can trace.
      *arguments: what it is called with; arrays or their shapes.

    Returns:
      Multiplications plus additions; taps over padding count, and an FFT of n
      real points counts 2.5 n log2 n. Loops count as often as they run, of
      several branches the costliest counts.
    """
    return _flops(jax.make_jaxpr(function)(*arguments))


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, shapes = eqn.primitive.name, [v.aval.shape for v in eqn.invars]
        size = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * size * math.prod(shapes[0][i] for i in contracted)
        elif name == "conv_general_dilated":
            features = eqn.params["dimension_numbers"].rhs_spec[0]
            kernel = math.prod(shapes[1]) // shapes[1][features]
            total += 2 * size * kernel
        elif name == "fft":
            points = math.prod(eqn.params["fft_lengths"])
            count = math.prod(shapes[0]) // shapes[0][-1]
            total += count * 2.5 * points * math.log2(points)
        else:
            inner = [
                p
                for value in eqn.params.values()
                for p in (value if isinstance(value, tuple | list) else [value])
                if isinstance(p, core.Jaxpr | core.ClosedJaxpr)
            ]
            counts = [_flops(j) for j in inner]
            if name == "cond":
                total += max(counts)
            else:
                total += sum(counts) * eqn.params.get("length", 1)
    return total
