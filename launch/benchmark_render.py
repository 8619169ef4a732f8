"""How fast presets become sound: the bare engine, and ours."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from datasets import engines, precompute
from datasets.engines import dexed

_PRESETS = 64


def _rate(
    work: Callable[[int], Any], seconds: float, threads: int = 1
) -> tuple[float, float]:
    """Calls of `work(i)` per second, and per second of processor time."""
    calls = [0] * threads
    stop = time.perf_counter() + seconds

    def loop(thread: int) -> None:
        while time.perf_counter() < stop:
            work(calls[thread] * threads + thread)
            calls[thread] += 1

    started, used = time.perf_counter(), time.process_time()
    workers = [threading.Thread(target=loop, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    total = sum(calls)
    return (
        total / (time.perf_counter() - started),
        total / (time.process_time() - used),
    )


def run(seconds: float = 5.0) -> list[dict[str, Any]]:
    """Measures renders per second, of 5 s of audio at 44.1 kHz.

    The bare engine is dexed-py given ready DX7 voices; ours starts from
    plug-in values and ends with a faded clip and its level check.

    Args:
      seconds: time for each of the measurements.

    Returns:
      One row a measurement: "what", "per second" (of wall-clock time), "per
      core" (per second of processor time), and "unit".
    """
    import dexed as bare

    renderer = engines.get("dexed")
    settings, space = renderer.settings, renderer.space
    rng = np.random.default_rng(0)
    uniform = rng.random((_PRESETS, space.num_used), np.float32)
    values = np.asarray(space.to_plugin(space.from_uniform(uniform)))
    voices = [v.tobytes() for v in dexed.to_voices(values, space)]
    synth = bare.DexedSynth(settings.sample_rate)._synth

    def render_bare(i: int) -> None:
        synth.load_sysex(voices[i % _PRESETS])
        synth.render(
            settings.note, settings.velocity, settings.hold, settings.duration
        )

    def render_ours(i: int) -> None:
        audio = renderer.render(values[i % _PRESETS])
        engines.check_level(audio, settings)

    def screen(i: int) -> None:
        engines.surely_silent(renderer, values)

    cores = precompute.usable_cores()
    measurements = [
        ("bare dexed-py", render_bare, 1, 1),
        ("our Dexed engine", render_ours, 1, 1),
        (f"our Dexed engine, {cores} threads", render_ours, cores, 1),
        ("silence told from envelopes", screen, 1, _PRESETS),
    ]
    rows = []
    for what, work, threads, presets in measurements:
        work(0)
        wall, processor = _rate(work, seconds, threads)
        rows.append(
            {
                "what": what,
                "per second": wall * presets,
                "per core": processor * presets,
                "unit": "renders" if presets == 1 else "presets",
            }
        )
    return rows
