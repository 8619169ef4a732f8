"""How fast a VST3 plug-in renders: by itself, and hosted by us."""

import re
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from datasets import drawing, engines
from datasets.engines.vst3 import binding as vst3_binding
from datasets.engines.vst3 import engine as vst3
from launch.benchmark import measure

_PRESETS = 32


def processor_time() -> float:
    """Seconds of processor time, ours and that of processes that ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _bare(
    renderer: vst3.PluginRenderer, values: Float[np.ndarray, "batch parameters"]
) -> Callable[[int], Any]:
    """A loop's body that sets a preset and has pedalboard render it."""
    import pedalboard
    from pedalboard import _pedalboard

    # As our workers do: else it reads the texts of every MIDI controller.
    ignored = getattr(_pedalboard, "PARAMETER_NAME_REGEXES_TO_IGNORE", None)
    if ignored is not None:
        ignored.add(re.compile(""))
    plugin: Any = pedalboard.VST3Plugin(
        renderer.pool.path,
        initialization_timeout=renderer.pool.contract.warm_up,
    )
    with renderer.pool.lend() as worker:
        names = [p["name"] for p in worker.info["parameters"]]
    positions = vst3_binding.bind(renderer.space, names).positions
    settings = renderer.settings
    start, end = settings.note_on, settings.note_on + settings.hold
    messages = [
        (bytes([0x90, settings.note, settings.velocity]), start),
        (bytes([0x80, settings.note, 0]), end),
    ]

    def render(i: int) -> None:
        parameters = plugin._parameters
        for row, place in positions.items():
            parameters[place].raw_value = float(values[i % len(values), row])
        plugin.process(
            messages, settings.duration, settings.sample_rate, 2, 8192, True
        ).mean(axis=0)

    return render


def run(synth: str, plugin: str, seconds: float) -> list[dict[str, Any]]:
    """Measures renders per second, of 5 s of audio at 44.1 kHz.

    Bare is a loop that sets a preset's parameters and has pedalboard make the
    plug-in anew and render; ours is a worker process under the synthesizer's
    render contract, up to a faded clip and its level check. What it takes to
    load the plug-in is left out.

    Args:
      synth: name of the plug-in's space.
      plugin: path of the plug-in; when empty, the environment variable's.
      seconds: time for each of the measurements.

    Returns:
      Rows as `launch.benchmark.render.run` gives them.
    """
    settings = engines.RenderSettings()
    renderer = vst3.get(synth, settings, plugin)
    space, values = renderer.space, []
    for row in range(20 * _PRESETS):
        preset = drawing.draw(space, 0, "benchmark", [row])[0, 0]
        given = np.asarray(space.to_plugin(preset))
        sound = next(engines.render_many(renderer, [given]))
        if not isinstance(sound, engines.RenderError):
            values.append(given)
        if len(values) == _PRESETS:
            break
    if not values:
        raise ValueError(f"{renderer.version}: no random preset gave a sound")

    def render(i: int) -> None:
        sound = renderer.render(values[i % len(values)])
        engines.check_level(sound, settings)

    renderer.close()
    before = processor_time()
    render(0)
    renderer.close()
    loading = processor_time() - before

    bare = _bare(renderer, np.stack(values))
    bare(0)
    rates = [("bare pedalboard", *measure.rate(bare, seconds))]
    for workers in dict.fromkeys((1, engines.usable_cores())):
        before, opened = processor_time(), renderer.pool.started
        render(0)
        wall, _ = measure.rate(render, seconds, workers)
        renderer.close()
        calls = round(wall * seconds) + 1
        opened = renderer.pool.started - opened
        used = processor_time() - before - loading * opened
        one = "worker" if workers == 1 else "workers"
        what = f"our host, {workers} {one}"
        rates.append((what, wall, calls / max(used, 1e-9)))
    named = [
        (f"{what}, {renderer.title}", wall, core, "renders")
        for what, wall, core in rates
    ]
    return measure.rows(named, rates[0][2])
