"""How fast presets become sound, and shards: the bare engine, and ours."""

import tempfile
import time
from typing import Any

import numpy as np

from datasets import drawing, engines, precompute
from datasets.engines import dexed
from datasets.spec import DataSpec, space_digest
from launch.benchmark import measure
from launch.benchmark import plugin as hosting
from launch.runs import embedding
from proxy import audio

_PRESETS = 64


def run(
    seconds: float = 5.0, synth: str = "dexed", plugin: str = ""
) -> list[dict[str, Any]]:
    """Measures renders per second, of 5 s of audio at 44.1 kHz.

    The bare engine is dexed-py given ready DX7 voices; ours starts from
    plug-in values and ends with a faded clip and its level check. "Rendered,
    mel128, written" goes on to embeddings in shards, with the same presets,
    all of which pass the level gate. "Drawn, rendered, mel128, written" is
    all of `launch.precompute`: uniform presets are drawn until they pass it,
    for which some are rendered in vain.

    Args:
      seconds: time for each of the measurements.
      synth: another synthesizer than Dexed's own engine, see
        `launch.benchmark.plugin`.
      plugin: path of its VST3 plug-in.

    Returns:
      One row a measurement: "what", "per second" (of wall-clock time), "per
      core" (per second of processor time), "unit", and "of limit", the share
      in percent of the bare engine's rate per core.
    """
    if not engines.embedded(synth, plugin):
        return hosting.run(synth, plugin, seconds)
    import dexed as bare

    renderer = engines.get("dexed")
    settings, space = renderer.settings, renderer.space
    # Presets that pass the level gate, as those of a data set.
    kept = drawing.render_rows(renderer, 0, "train", range(_PRESETS)).presets
    values = np.asarray(space.to_plugin(kept))
    voices = [v.tobytes() for v in dexed.to_voices(values, space)]
    player = bare.DexedSynth(settings.sample_rate)._synth

    def render_bare(i: int) -> None:
        player.load_sysex(voices[i % _PRESETS])
        player.render(
            settings.note, settings.velocity, settings.hold, settings.duration
        )

    def render_ours(i: int) -> None:
        audio = renderer.render(values[i % _PRESETS])
        engines.check_level(audio, settings)

    def screen(i: int) -> None:
        renderer.surely_silent(values)

    cores = engines.usable_cores()
    measurements = [
        ("bare dexed-py", render_bare, 1, 1),
        ("our Dexed engine", render_ours, 1, 1),
        (f"our Dexed engine, {cores} threads", render_ours, cores, 1),
        ("silence told from envelopes", screen, 1, _PRESETS),
    ]
    rates = []
    for what, work, threads, presets in measurements:
        work(0)
        wall, processor = measure.rate(work, seconds, threads)
        unit = "renders" if presets == 1 else "presets"
        rates.append((what, wall * presets, processor * presets, unit))
    bare_rate = rates[0][2]
    blocks = max(1, round(seconds * cores * bare_rate / 2 / _PRESETS))
    for what, given in (
        ("rendered, mel128, written", np.tile(kept, (blocks, 1))),
        ("drawn, rendered, mel128, written", None),
    ):
        built = _precomputed(renderer, blocks * _PRESETS, given)
        rates.append((what, *built, "presets"))
    return measure.rows(rates, bare_rate)


def _precomputed(
    renderer: engines.Renderer, count: int, given: np.ndarray | None
) -> tuple[float, float]:
    """Presets per second, and per second of processor time, into shards.

    Given ones, or, with None, those that are drawn until they are heard.
    """
    model = audio.get("mel128")
    spec = DataSpec(
        name="benchmark",
        synth=renderer.name,
        synth_version=renderer.version,
        space=space_digest(renderer.space),
        parameters=renderer.space.num_used,
        audio_model=model.name,
        audio_weights="",
        embedding=model.dimension,
        settings=renderer.settings,
        seed=0,
        splits=(("train", count),),
        shard_size=count,
        embed_batch=_PRESETS,
        source="synthetic" if given is None else "handcrafted",
    )
    rows = {}
    if given is not None:
        names = [f"preset {i}" for i in range(count)]
        rows = {"presets": {"train": given}, "names": {"train": names}}
    embed = embedding.embedder(model, {})
    # Compiles.
    embed(np.zeros((_PRESETS, spec.samples), np.float32))
    with tempfile.TemporaryDirectory() as directory:
        started, used = time.perf_counter(), hosting.processor_time()
        precompute.build(
            spec,
            directory,
            lambda: renderer,
            lambda: embed,
            progress=False,
            **rows,
        )
        return (
            count / (time.perf_counter() - started),
            count / (hosting.processor_time() - used),
        )
