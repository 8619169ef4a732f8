"""Proxies side by side: what each saw, what it cost, and what it finds.

A run has a row for each set of presets that it was tested on: all of them in
proxies.csv, the main ones as Markdown, and MRR against the number of synthetic
presets as a picture.
"""

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from datasets import files
from launch import Config
from launch.benchmark import measure
from launch.evaluate import proxy
from launch.runs import build, checkpoints, metrics, plots, tables
from proxy import audio, objective, spaces

CSV, CURVE = "proxies.csv", "curve.png"
# Columns of the CSV: name, and metric of an evaluation.
_METRICS = {
    "mrr_preset_to_audio": "mrr/preset_to_audio",
    "mrr_audio_to_preset": "mrr/audio_to_preset",
    "recall1_preset_to_audio": "recall@1_l1/preset_to_audio",
    "recall1_audio_to_preset": "recall@1_l1/audio_to_preset",
    "recall10_preset_to_audio": "recall@10_l1/preset_to_audio",
    "recall10_audio_to_preset": "recall@10_l1/audio_to_preset",
    "l1": "l1",
}
# Columns of the Markdown table: title, name in the CSV, format.
_SHOWN = (
    ("tested on", "tested_on", ""),
    ("encoder", "encoder", ""),
    ("prior", "prior", ""),
    ("synthetic", "synthetic", ","),
    ("hand-crafted", "handcrafted", ","),
    ("steps", "steps", ","),
    ("MRR p>a", "mrr_preset_to_audio", ".4f"),
    ("MRR a>p", "mrr_audio_to_preset", ".4f"),
    ("R@1 a>p", "recall1_audio_to_preset", ".3f"),
    ("R@10 a>p", "recall10_audio_to_preset", ".3f"),
    ("L1", "l1", ".3f"),
)


def flop(config: Config) -> float:
    """Arithmetic of a training step, see `benchmark.measure.flops`.

    Args:
      config: the experiment of a proxy.

    Returns:
      Multiplications plus additions of a batch, there and back.
    """
    space = spaces.get(config.synth)
    dimension = audio.get(config.audio_model).dimension
    step = objective.train_step(
        build.encoder(config),
        space,
        build.gradient_transformation(config),
        **build.step_options(config),
    )
    batch = {
        "preset": np.zeros((config.batch, space.num_used), np.float32),
        "embedding": np.zeros((config.batch, dimension), np.float32),
    }
    return measure.flops(step, build.empty_state(config), batch)


def _training(run: pathlib.Path, batch: int) -> dict[str, float]:
    """Steps of a run, and their seconds without compiling and validation.

    As a clock counts them, whatever else the machine did.
    """
    step, seconds = 0, 0.0
    for record in metrics.read(run):
        if "presets_per_second" in record:
            presets = (record["step"] - step) * batch
            seconds += presets / record["presets_per_second"]
            step = record["step"]
    return {"steps": step, "seconds": round(seconds, 1)}


def _prior(shares: Config) -> str:
    parts = [f"{name} {share:g}" for name, share in shares.items() if share]
    return " + ".join(parts).removesuffix(" 1")


def rows(runs: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
    """What is known of evaluated proxies.

    Args:
      runs: directories of runs; those of estimators are left out.

    Returns:
      For each run and set of presets that it was tested on the columns of the
      CSV: "run", "init" (the run it started from), "encoder", "prior", "seed",
      "synthetic" and "handcrafted" (presets trained on), "steps", "seconds"
      (of these), "flop" (of these), "tested_on", "gallery" (presets ranked),
      and the means of metrics.
    """
    found = []
    for run in runs:
        config = checkpoints.read_config(run)
        if config.kind != "proxy":
            continue
        content = files.read_json(run / "evaluation.json")
        cost: dict[str, Any] = _training(run, config.batch)
        about = {
            "run": config.name,
            "init": config.init,
            "encoder": config.encoder,
            "prior": _prior(config.prior),
            "seed": config.seed,
            **content["trained_on"],
            **cost,
            "flop": f"{flop(config) * cost['steps']:.4g}",
        }
        for where, models in content["results"].items():
            scores = models[config.encoder]
            found.append(
                {
                    **about,
                    "tested_on": where,
                    "gallery": scores["subset"],
                    **{
                        column: round(scores["metrics"][name]["mean"], 5)
                        for column, name in _METRICS.items()
                    },
                }
            )
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """The main columns as Markdown; they depend on results alone.

    Args:
      found: what `rows` returned.
    """
    ordered = sorted(found, key=lambda row: row["tested_on"])
    cells = [[format(row[k], form) for _, k, form in _SHOWN] for row in ordered]
    return tables.markdown(cells, [title for title, _, _ in _SHOWN])


def write(
    found: Sequence[dict[str, Any]], out: pathlib.Path
) -> pathlib.Path | None:
    """Writes the CSV, and the curve where numbers of presets differ.

    Args:
      found: what `rows` returned.
      out: the folder.

    Returns:
      The picture, if there is one.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    files.write_atomically(out / CSV, text.getvalue())
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in found:
        tuned = not row["synthetic"] or row["init"]
        if not tuned and row["tested_on"] != proxy.FAR:
            lines = panels.setdefault(row["tested_on"], {})
            line = lines.setdefault(f"{row['encoder']}, {row['prior']}", [])
            line.append((row["synthetic"], row["mrr_audio_to_preset"]))
    sizes = {x for p in panels.values() for line in p.values() for x, _ in line}
    if len(sizes) < 2:
        return None
    return plots.size_curves(panels, out / CURVE)
