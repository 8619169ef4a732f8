"""Measures every stage on this machine, beside its physical limit.

    python -m launch.benchmark                     # every stage
    python -m launch.benchmark render audio        # some of them
    python -m launch.benchmark render --synth=NAME --plugin=PATH
    python -m launch.benchmark train --encoders hn_oh,tfm
    python -m launch.benchmark memory --sizes=4096,16384
    python -m launch.benchmark faults --count=2000
    python -m launch.benchmark gradient --voices=BANK

Stages: render (presets to sound and to shards), audio (sound to embedding),
loader (shards to batches), train (batches to parameters), matching (the
estimator). Prints a table for each and, with --json, writes the same to a
file, so that two machines or two commits compare. Every rate stands beside its
share of the stage's physical limit: the bare engine's rate per core, the best
matrix product measured in the same run, or the memory's bandwidth. Each stage
runs in a process of its own, so that its peak memory is its own, too. The
stages memory, gradient and faults take minutes and only run when they are
named. Memory runs the commands themselves on the quickstart at several sizes.
Gradient compares the gradients of Dexed's engine and of the pretrained proxy
with what the engine does. Faults damages files of every kind at random, kills
commands at random moments and resumes them, and fails when that ends in
anything but what is right or one clear error.
Absolute figures drift on a shared machine: run it in turns with what it is
compared to.
"""

import concurrent.futures
import json
import multiprocessing
import pathlib
from typing import Any

from absl import flags

from launch import cli
from launch.benchmark import stages
from proxy import unknown

_SECONDS = flags.DEFINE_float("seconds", 10.0, "Time spent on each case.")
_ENCODERS = flags.DEFINE_list(
    "encoders", None, "Encoders of the train stage; all of the paper's."
)
_MODELS = flags.DEFINE_list("models", None, "Audio models of the audio stage.")
_BATCH = flags.DEFINE_integer(
    "batch", None, "Batch size in place of each stage's own.", lower_bound=1
)
_SYNTH = flags.DEFINE_string(
    "synth", None, "Synthesizer of the render stage (default: Dexed)."
)
_PLUGIN = flags.DEFINE_string(
    "plugin", None, "Path of its VST3 plug-in; else the environment's."
)
_SIZES = flags.DEFINE_list(
    "sizes", None, "Numbers of presets of the memory stage, ascending."
)
_COUNT = flags.DEFINE_integer(
    "count", 2000, "Damaged files of each kind in faults.", lower_bound=0
)
_KILLS = flags.DEFINE_integer(
    "kills", 10, "Times that faults kills each command.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the damages and moments of faults.")
_KINDS = flags.DEFINE_list(
    "kinds", None, "Kinds of files, and commands, of faults; all of them."
)
_VOICES = flags.DEFINE_string(
    "voices", None, "A file of DX7 voices, of the gradient stage."
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")


def _options(stage: str) -> dict[str, Any]:
    """The flags that a stage understands and that were given."""
    given = {
        "render": {"synth": _SYNTH.value, "plugin": _PLUGIN.value},
        "audio": {"models": _MODELS.value, "batch": _BATCH.value},
        "train": {"encoders": _ENCODERS.value, "batch": _BATCH.value},
        "faults": {
            "count": _COUNT.value,
            "seed": _SEED.value,
            "times": _KILLS.value,
            "kinds": _KINDS.value,
        },
        "memory": {"presets": _SIZES.value and list(map(int, _SIZES.value))},
        "gradient": {"voices": _VOICES.value, "batch": _BATCH.value},
    }.get(stage, {})
    options = {k: v for k, v in given.items() if v is not None}
    return {"seconds": _SECONDS.value, **options}


def main(words: list[str]) -> None:
    """Runs the command: stages one after the other, and their tables."""
    known = (*stages.STAGES, *stages.ON_DEMAND)
    for word in words:
        if word not in known:
            raise ValueError(unknown("stage", word, known))
    if "gradient" in words and not _VOICES.value:
        raise ValueError("the gradient stage needs --voices=FILE")
    results: dict[str, dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    for stage in words or stages.STAGES:
        with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
            work = process.submit(stages.run_stage, stage, _options(stage))
            result = work.result()
        if not results:
            print(result["devices"])
        print(stages.show(stage, result), flush=True)
        results[stage] = result
    if _JSON.value:
        text = json.dumps(results, indent=1) + "\n"
        pathlib.Path(_JSON.value).write_text(text)
    faults = results.get("faults", {}).get("rows", [])
    if wrong := sum(row["anything else"] for row in faults):
        raise RuntimeError(f"{wrong} faults end in anything else; see above")


if __name__ == "__main__":
    cli.run(main, arguments=True)
