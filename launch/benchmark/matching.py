"""Training steps of the estimator: sounds/s without and with a proxy.

The peer to run in turns with it is the paper's network in PyTorch: batches of
64 spectrograms of 128 x 313, Dexed, and as proxy a transformer with 1,072
outputs whose weights stay fixed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from launch.benchmark import measure
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
      batch: number of sounds in a step.
      space: name of the synthesizer.

    Returns:
      A row for each case: the parameter loss alone; with the perceptual loss
      through a frozen `tfm`, decoded as in the paper and relaxed; and the
      parameter loss with the spectrograms computed from 5 s clips. Each with
      batch, median time of a step (ms), sounds/s, the rate of its arithmetic
      (GFLOP/s, see `measure.flops`), and its share of the best matrix product
      measured in the same run.
    """
    peak = measure.peak()
    return [_measure(*case, seconds, batch, space, peak) for case in _CASES]


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
        return step(state, {**data, "heard": sound}, key, variables)

    compiled = jax.jit(from_sound, donate_argnums=0)
    state = losses.init_state(network, update, keys[4])
    flops = measure.flops(from_sound, state, data, keys[5], variables)

    def advance():
        nonlocal state
        state, metrics = compiled(state, data, keys[5], variables)
        return state, metrics

    # The first two steps compile and warm up.
    for _ in range(2):
        jax.block_until_ready(advance())
    median = measure.median(advance, seconds)
    return {
        "case": name,
        "batch": batch,
        "ms": round(1e3 * median, 1),
        "sounds/s": round(batch / median, 1),
        "GFLOP/s": round(flops / median / 1e9, 1),
        "share of peak": round(flops / median / peak, 3),
    }
