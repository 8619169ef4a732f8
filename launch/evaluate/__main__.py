"""Scores a trained proxy beside baselines, on synthetic and real presets.

    python -m launch.evaluate --run runs/quickstart

Retrieval is one-versus-all among `config.evaluation.subset` presets, repeated
over random subsets (mean and spread), in both directions. The baselines, the
mean embedding and ridge regression on the one-hot preset, are fitted on the
same training data. Writes evaluation.json and pictures into the run.

`--run pretrained:dexed` is the proxy that comes with the project.

An estimator is scored by the sound of its predictions instead, and several
of them are compared, see `launch.evaluate.estimator`:

    python -m launch.evaluate --run runs/dexed_match_mix --nsynth FOLDER
    python -m launch.evaluate --runs RUN,RUN --nsynth FOLDER --out DIR
"""

import json
import pathlib

from absl import flags

from launch import cli
from launch.evaluate import comparison, estimator, proxy
from launch.runs import checkpoints, devices, noise, plots
from matching import distances

_RUN = flags.DEFINE_string("run", None, "Run directory.")
_RUNS = flags.DEFINE_list("runs", None, "Runs of estimators, to compare.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ["best", "last"], "Which checkpoint to score."
)
_PRESETS = flags.DEFINE_string(
    "presets", None, "File or folder of banks, in place of config.presets."
)
_NSYNTH = flags.DEFINE_string(
    "nsynth", "", "Estimators: folder in NSynth's format, out of domain."
)
_FAMILIES = flags.DEFINE_list("families", [], "Of its notes, only these.")
_SOURCES = flags.DEFINE_list("sources", [], "Of its notes, only these.")
_PITCHES = flags.DEFINE_string(
    "pitches", None, "Of its notes, only these MIDI notes, e.g. 48,60-72."
)
_LIMIT = flags.DEFINE_integer(
    "limit",
    0,
    "Estimators: sounds of each set, a random part; 0 for all.",
    lower_bound=0,
)
_EXPORT = flags.DEFINE_integer(
    "export",
    16,
    "Estimators: sounds of each set written as WAV files.",
    lower_bound=0,
)
_DISTANCES = flags.DEFINE_list(
    "distances",
    list(distances.names()),
    "Estimators: which to measure besides a_mean.",
)
_OUT = flags.DEFINE_string(
    "out", "runs/comparison", "Where the comparison of --runs is written."
)


def _evaluate_estimators(runs: list[str]) -> None:
    pitches = _PITCHES.value
    options = estimator.Options(
        nsynth=_NSYNTH.value,
        families=_FAMILIES.value,
        sources=_SOURCES.value,
        pitches=cli.ranges("pitches", pitches) if pitches else None,
        limit=_LIMIT.value,
        export=_EXPORT.value,
        distances=_DISTANCES.value,
    )
    results = estimator.evaluate(runs, options)
    for run, content in results.items():
        print(f"\n{run}\n\n{comparison.table(content)}{noise.of_run(run)}")
        print(f"\nwrote evaluation.json, sounds and pictures to {run}/matching")
    if len(runs) == 1:
        return
    compared = comparison.compare(results)
    folder = pathlib.Path(_OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(compared) + "\n")
    for where, entry in compared.items():
        plots.distance_bars(
            {k: g["summary"] for k, g in entry["groups"].items()},
            f"{where}: mean over seeds",
            folder / f"comparison_{estimator.slug(where)}.png",
        )
    remark = comparison.stand_in(results[runs[0]])
    print(f"\n{comparison.comparison_table(compared)}{remark}")
    print(f"\nwrote comparison.json and pictures to {folder}")


def main() -> None:
    """Runs the command."""
    runs = _RUNS.value or ([_RUN.value] if _RUN.value else [])
    if not runs:
        raise ValueError("--run is missing; see --help")
    print(devices.describe(), flush=True)
    if _RUNS.value or checkpoints.read_config(runs[0]).kind == "estimator":
        _evaluate_estimators(runs)
        return
    results, bank = proxy.evaluate(runs[0], _CHECKPOINT.value, _PRESETS.value)
    print(f"\n{proxy.table(results, bank)}")
    folder = checkpoints.place(runs[0])
    print(f"\nwrote evaluation.json and pictures to {folder}")


if __name__ == "__main__":
    cli.run(main)
