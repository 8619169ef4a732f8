"""How fast presets become sound, and shards: the bare engine, and ours."""

import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from datasets import drawing, engines, precompute
from datasets.engines import dexed
from datasets.spec import DataSpec, space_digest
from launch.benchmark import measure
from launch.benchmark import plugin as hosting
from launch.runs import embedding
from proxy import audio

_MODEL = "transport640"
# Presets of a data set that a rate is measured on, and turns: engines take
# turns, so that a machine that others use slows both.
_PRESETS = 256
_TURNS = 3
_BATCHES = 8


def run(
    seconds: float = 5.0, synth: str = "dexed", plugin: str = ""
) -> list[dict[str, Any]]:
    """Measures renders per second, of 5 s of audio at 32 kHz.

    The bare engine is dexed-py given ready DX7 voices; ours start from plug-in
    values and end with a faded clip and its level check. "Rendered,
    transport640, written" goes on to embeddings in shards, with presets all of
    which pass the level gate. "Drawn, rendered, transport640, written" is all
    of `launch.precompute`: uniform presets are drawn until they pass it, for
    which some are rendered in vain.

    Args:
      seconds: time for each of the measurements.
      synth: another synthesizer than Dexed's own engine, see
        `launch.benchmark.plugin`.
      plugin: path of its VST3 plug-in.

    Returns:
      One row a measurement: "what", "per second" (of wall-clock time), "per
      core" (per second of processor time), "unit", and "of limit", the share
      in percent of the bare engine's rate per core. Rates are those of the
      best of three turns.
    """
    if not engines.embedded(synth, plugin):
        return hosting.run(synth, plugin, seconds)
    import dexed as bare

    rate = audio.get(_MODEL).sample_rate
    settings = engines.RenderSettings(sample_rate=rate)
    one, batched = (
        engines.get("dexed", settings, engine=name)
        for name in ("dexed-py", "jax")
    )
    space = one.space
    # Presets that pass the level gate, as those of a data set.
    kept = drawing.render_rows(one, 0, "train", range(_PRESETS)).presets
    values = np.asarray(space.to_plugin(kept), np.float32)
    voices = [v.tobytes() for v in dexed.to_voices(values, space)]
    player = bare.DexedSynth(rate)._synth
    clips = np.empty((_PRESETS, settings.samples), np.float32)

    def render_bare(i: int) -> None:
        player.load_sysex(voices[i % _PRESETS])
        player.render(
            settings.note, settings.velocity, settings.hold, settings.duration
        )

    def render_one(i: int) -> None:
        engines.check_level(one.render(values[i % _PRESETS]), settings)

    def render_batch(i: int) -> None:
        batched.render_into(list(clips), values)

    def screen(i: int) -> None:
        one.surely_silent(values)

    def rates(
        work: Callable[[int], None], presets: int
    ) -> Callable[[], tuple[float, float]]:
        work(0)

        def measured() -> tuple[float, float]:
            found = measure.rate(work, seconds / _TURNS)
            return found[0] * presets, found[1] * presets

        return measured

    measurements = {
        "bare dexed-py": (rates(render_bare, 1), "renders"),
        "dexed-py": (rates(render_one, 1), "renders"),
        "JAX": (rates(render_batch, _PRESETS), "renders"),
        "silence told from envelopes": (rates(screen, _PRESETS), "presets"),
    }
    embed = embedding.embedder(audio.get(_MODEL), {})
    embed(clips[:_PRESETS])
    alone = rates(lambda _: embed(clips), _PRESETS)
    measurements[f"{_MODEL} alone"] = alone, "sounds"
    # So many that those do not weigh which are the last, and wait.
    count = _BATCHES * _PRESETS
    for way, given in (
        ("rendered", np.resize(kept, (count, space.num_used))),
        ("drawn, rendered", None),
    ):
        for name, engine in (("dexed-py", one), ("JAX", batched)):
            built = functools.partial(_precomputed, engine, embed, count, given)
            what = f"{way} ({name}), {_MODEL}, written"
            measurements[what] = built, "presets"
    best: dict[str, tuple[float, float]] = {}
    for _ in range(_TURNS):
        for what, (work, _) in measurements.items():
            best[what] = max(best.get(what, (0, 0)), work(), key=lambda r: r[1])
    return measure.rows(
        [(what, *best[what], unit) for what, (_, unit) in measurements.items()],
        best["bare dexed-py"][1],
    )


def _precomputed(
    renderer: engines.Renderer,
    embed: embedding.Embed,
    count: int,
    given: np.ndarray | None,
) -> tuple[float, float]:
    """Presets per second, and per second of processor time, into shards.

    Given ones, or, with None, those that are drawn until they are heard.
    """
    model = audio.get(_MODEL)
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
        embed_batch=64,
        source="synthetic" if given is None else "handcrafted",
    )
    rows = {}
    if given is not None:
        names = [f"preset {i}" for i in range(count)]
        rows = {"presets": {"train": given}, "names": {"train": names}}
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
