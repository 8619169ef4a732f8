"""Training steps of the estimator: sounds/s without and with a proxy.

The peer to run in turns with it is the paper's network in PyTorch: batches of
64 spectrograms of 128 x 313, Dexed, and as proxy a transformer with 1,072
outputs whose weights stay fixed.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from launch.benchmark import train as benchmark_train
from launch.runs import devices
from matching import estimator, losses, schedules
from proxy import encoders, optimizer, spaces

_DIMENSION = 1072
# Case, what the proxy is fed, whether clips are turned into spectrograms.
_CASES = (
    ("parameter", None, False),
    ("perceptual", "hard", False),
    ("perceptual, relaxed", "relaxed", False),
    ("spectrogram + parameter", None, True),
)


def run(
    seconds: float = 10.0, batch: int = 64, space: str = "dexed"
) -> list[dict[str, Any]]:
    """Times one optimizer step of the estimator.

    Args:
      seconds: time spent on each case.
      batch: sounds in a step.
      space: the synthesizer.

    Returns:
      A row for each case: the parameter loss alone; with the perceptual loss
      through a frozen `tfm`, decoded as in the paper and relaxed; and the
      parameter loss with the spectrograms computed from 5 s clips. Each with
      batch, median time of a step (ms), sounds/s, the rate of convolutions
      and matrix products (GFLOP/s; the spectrograms' are not counted), and
      its share of the best matrix product measured in the same run.
    """
    devices.keep_memory()
    peak = benchmark_train.peak()
    return [_measure(*case, seconds, batch, space, peak) for case in _CASES]


def network_flops(outputs: int, frames: int = 313) -> int:
    """Multiplications plus additions of the estimator, for one sound.

    Args:
      outputs: its logits.
      frames: width of the spectrogram.
    """
    height, width, channels, products = 128, frames, 1, 0
    for i, features in enumerate(estimator.CHANNELS):
        size = 4 if i else 5
        height, width = (
            (height + 4 - size) // 2 + 1,
            (width + 4 - size) // 2 + 1,
        )
        products += height * width * size**2 * channels * features
        channels = features
    products += height * width * channels * estimator.MIXED
    return 2 * (products + estimator.MIXED * outputs)


def _step_flops(space: Any, proxy: Any, variables: Any) -> int:
    """Arithmetic of a training step, for one sound."""
    # Forward, input gradients but the first layer's, and weight gradients.
    first = 2 * 64 * 157 * 5**2 * estimator.CHANNELS[0]
    total = 3 * network_flops(space.width) - first
    if proxy is not None:
        preset = jnp.zeros((1, space.width))
        # The proxy is frozen: forward and input gradients only.
        forward = jax.make_jaxpr(proxy.apply)(variables, preset)
        total += 2 * benchmark_train.product_flops(forward)
    return total


def _measure(
    name: str,
    mode: str | None,
    from_audio: bool,
    seconds: float,
    batch: int,
    space_name: str,
    peak: float,
) -> dict[str, Any]:
    space = spaces.get(space_name)
    network = estimator.Estimator(space.width)
    update = optimizer.adamw(1e-4, weight_decay=0.01)
    keys = jax.random.split(jax.random.key(0), 6)
    data = {"preset": space.sample(keys[0], (batch,))}
    proxy = variables = None
    if mode is not None:
        proxy = encoders.build("tfm", space, _DIMENSION)
        init = jax.jit(proxy.init)
        variables = init(keys[1], jnp.zeros((1, space.width)))
        data["embedding"] = jax.random.normal(keys[2], (batch, _DIMENSION))
    shape = (batch, 160_000) if from_audio else (batch, 128, 313)
    data["sound"] = jax.random.uniform(keys[3], shape, minval=-1.0)
    # Both weights at once, as in the middle of `mix`.
    schedule = schedules.get("ploss" if proxy is None else "mix", 1)
    step = losses.train_step(
        network,
        space,
        update,
        schedule,
        proxy,
        mode=mode or "hard",
        label_smoothing=0.02,
    )

    def from_sound(state, data, key, variables):
        sound = data["sound"]
        if from_audio:
            decibels = estimator.spectrogram(sound)
            sound = estimator.scale(decibels, -80.0, 40.0)
        return step(state, {**data, "spectrogram": sound}, key, variables)

    compiled = jax.jit(from_sound, donate_argnums=0)
    state = losses.init_state(network, update, keys[4])
    times: list[float] = []
    # The first two steps compile and warm up.
    while len(times) < 5 or sum(times[2:]) < seconds:
        start = time.perf_counter()
        state, metrics = compiled(state, data, keys[5], variables)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    median = statistics.median(times[2:])
    flops = batch * _step_flops(space, proxy, variables)
    return {
        "case": name,
        "batch": batch,
        "ms": round(1e3 * median, 1),
        "sounds/s": round(batch / median, 1),
        "GFLOP/s": round(flops / median / 1e9, 1),
        "share of peak": round(flops / median / peak, 3),
    }
