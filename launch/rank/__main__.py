"""Ranks audio models by how well distances tell the order of a sweep.

    python -m launch.rank --synth dexed --models mel128,mn04,transport640

One parameter of a preset moves in 20 steps; the 20 sounds are embedded and
ranked by L1 distance to the first and to the last; Spearman's correlation
with the true order, averaged over presets and attributes, is a model's score.
Writes ranking.json, ranking.md, ranking.tex and ranking.png. Scores are noted
as they are found, so an interrupted study goes on with the same command.
Sweeps with a step that is silent or too loud do not count, and are named.

What other studies may do in another way: --isolation (whether the plug-in is
made anew between renders), --rate (rendering at another rate than the model's,
with resampling after it), --duration, --ends (which distances are averaged).
"""

import dataclasses
import pathlib

from absl import flags

from datasets import engines
from launch import cli
from launch.rank import output, study
from launch.rank import table as sweeping
from launch.runs import devices
from proxy import spaces

_SYNTH = flags.DEFINE_string(
    "synth", "dexed", "Synthesizer: dexed, diva, talnm."
)
_MODELS = flags.DEFINE_list(
    "models",
    ["mel128", "mfcc40", "mstft", "transport640"],
    "Audio models, separated by commas.",
)
_TABLE = flags.DEFINE_string(
    "table",
    None,
    "JSON file of sweeps; the project's own table of the synthesizer if none.",
)
_PRESETS = flags.DEFINE_string(
    "presets", None, "JSON file of the base presets that the table names."
)
_WEIGHTS = flags.DEFINE_multi_string(
    "weights",
    [],
    "Weights instead of downloaded ones: FILE when all models that need some "
    "take the same, else MODEL=FILE, once for each.",
)
_PLUGIN = flags.DEFINE_string(
    "plugin", "", "Path of the synthesizer's VST3 plug-in."
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the results; runs/rank_SYNTH."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Rendering threads; 0: one per core."
)
_ISOLATION = flags.DEFINE_enum(
    "isolation",
    None,
    ["reset", "process", "none"],
    "Render contract of a plug-in (default: the synthesizer's).",
)
_RATE = flags.DEFINE_integer(
    "rate", 0, "To render at, in Hz, and resample from; 0: the model's own."
)
_DURATION = flags.DEFINE_float(
    "duration", None, "Seconds of a render (default: the table's)."
)
_ENDS = flags.DEFINE_list(
    "ends", ["first", "last"], "Steps that distances are measured to."
)


def main() -> None:
    """Runs the command."""
    print(devices.describe(), flush=True)
    models = list(dict.fromkeys(_MODELS.value))
    if not models:
        raise ValueError("--models names no audio model")
    space = spaces.get(_SYNTH.value)
    table = sweeping.load(_SYNTH.value, _TABLE.value)
    presets = sweeping.load_presets(_PRESETS.value) if _PRESETS.value else {}
    sweeps = sweeping.sweeps(table, space, presets)
    files = study.weight_files(_WEIGHTS.value, models)

    protocol = study.Protocol(_RATE.value, tuple(_ENDS.value))

    def played(rate: int) -> engines.RenderSettings:
        settings = sweeping.settings(table, rate)
        if _DURATION.value is None:
            return settings
        return dataclasses.replace(settings, duration=_DURATION.value)

    def renderer(rate: int) -> engines.Renderer:
        host = {"isolation": _ISOLATION.value}
        return engines.get(
            _SYNTH.value, played(rate), plugin=_PLUGIN.value, host=host
        )

    # A plug-in that is missing is told before weights are downloaded.
    renderer(44_100)
    loaded = study.load_models(models, files)
    folder = pathlib.Path(_OUT.value or f"runs/rank_{_SYNTH.value}")
    result = study.run(
        sweeps,
        loaded,
        renderer,
        folder / "scores.jsonl",
        # In one process, so that the table alone tells what follows what.
        workers=1 if _ISOLATION.value == "none" else _WORKERS.value,
        protocol=protocol,
    )
    summary = study.summary(result["scores"])
    about = {
        "synth": _SYNTH.value,
        "table": _TABLE.value or f"configs/ranking/{_SYNTH.value}.py",
        "steps": len(sweeps[0].values),
        "sweeps": len(sweeps),
        "counted": len(sweeps) - len(result["unfit"]),
        "seconds": played(44_100).duration,
        "protocol": dataclasses.asdict(protocol),
    }
    output.write(folder, result, summary, about)
    print()
    print(output.tables(summary, others=_SYNTH.value == "talnm"))
    for where, reason in result["unfit"].items():
        print(f"not counted: {where}: {reason}")
    for where, reason in result["alike"].items():
        print(f"counted all the same: {where}: {reason}")
    print(f"wrote ranking.json, .md, .tex and .png to {folder}")


if __name__ == "__main__":
    cli.run(main)
