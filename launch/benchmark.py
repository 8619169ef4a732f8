"""Measures every stage on this machine, beside its physical limit.

    python -m launch.benchmark                     # every stage
    python -m launch.benchmark render audio        # some of them
    python -m launch.benchmark train --encoders hn_oh,tfm

Stages: render (presets to sound), audio (sound to embedding), loader (shards
to batches), train (batches to parameters), matching (the estimator). Prints a
table and, with --json, writes the same to a file, so that two machines or two
commits compare. Absolute figures drift on a shared machine: run it in turns
with what it is compared to.
"""

import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import tabulate
from absl import flags

from launch import cli, devices

_SECONDS = flags.DEFINE_float("seconds", 10.0, "Time spent on each case.")
_ENCODERS = flags.DEFINE_list(
    "encoders", None, "Encoders of the train stage; all of the paper's."
)
_MODELS = flags.DEFINE_list("models", None, "Audio models of the audio stage.")
_BATCH = flags.DEFINE_integer(
    "batch", None, "Batch size in place of each stage's own.", lower_bound=1
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

STAGES = ("render", "audio", "loader", "train", "matching")


def _options(stage: str) -> dict[str, Any]:
    """The flags that a stage understands and that were given."""
    given = {
        "audio": {"models": _MODELS.value, "batch": _BATCH.value},
        "train": {"encoders": _ENCODERS.value, "batch": _BATCH.value},
    }.get(stage, {})
    options = {k: v for k, v in given.items() if v is not None}
    return {"seconds": _SECONDS.value, **options}


def benchmark(stages: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Runs stages one after the other and prints each one's table.

    Args:
      stages: names among `STAGES`.

    Returns:
      The rows of each stage.

    Raises:
      ValueError: when a stage is unknown.
    """
    unknown = [s for s in stages if s not in STAGES]
    if unknown:
        raise ValueError(
            f"unknown stages {', '.join(unknown)} (known: {', '.join(STAGES)})"
        )
    results = {}
    for stage in stages:
        module = importlib.import_module(f"launch.benchmark_{stage}")
        run: Callable[..., list[dict[str, Any]]] = module.run
        results[stage] = run(**_options(stage))
        print(f"\n{stage}")
        print(
            tabulate.tabulate(
                results[stage],
                headers="keys",
                tablefmt="github",
                floatfmt=",.4g",
                intfmt=",",
            ),
            flush=True,
        )
    return results


def main(stages: list[str]) -> None:
    """Runs the command."""
    print(devices.describe(), flush=True)
    results = benchmark(stages or list(STAGES))
    if _JSON.value:
        text = json.dumps(results, indent=1) + "\n"
        pathlib.Path(_JSON.value).write_text(text)


if __name__ == "__main__":
    cli.run(main, arguments=True)
