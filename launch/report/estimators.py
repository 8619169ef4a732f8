"""The page's section on sound matching: tables of players and of numbers."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.io import wavfile

from datasets import files
from datasets.presets import reading, writing
from launch.evaluate import comparison
from launch.evaluate import notes as table_notes
from launch.evaluate.comparison import ESTIMATOR, IN_DOMAIN, OUT_OF_DOMAIN
from launch.report import proxies
from launch.runs import noise, plots, tables
from proxy import spaces

SCHEDULES = {
    "ploss": (
        "PLoss",
        "the distance between predicted and true parameters alone, from the "
        "first step to the last.",
    ),
    "mix": (
        "Mix",
        "the parameter loss alone for a third of the training; over the next "
        "third the perceptual loss through the proxy joins it, five parts to "
        "half a one, and both stay.",
    ),
    "switch": (
        "Switch",
        "the parameter loss alone for a third of the training; over the next "
        "third the perceptual loss takes its place entirely.",
    ),
    "reversed_mix": (
        "Reversed Mix",
        "the perceptual loss first; the parameter loss joins it over the "
        "second third.",
    ),
    "reversed_switch": (
        "Reversed Switch",
        "the perceptual loss first; the parameter loss takes its place over "
        "the second third.",
    ),
    "perceptual": (
        "Perceptual",
        "the perceptual loss through the proxy alone.",
    ),
}
_COLUMNS = 10
_SHOWN = ("a_mean", "mstft", "mel", "mfcc")


def sections(
    runs: Mapping[pathlib.Path, dict[str, Any]],
    out: pathlib.Path,
    tick: Callable[[], Any],
) -> dict[str, Any]:
    """What the page says of sound matching.

    Args:
      runs: configs of matching runs by folder.
      out: folder of the page; sounds, pictures and presets go there.
      tick: called after each picture that is drawn.

    Returns:
      Fields of the template: "schedules", "notes", "players", "summaries"
      and "matching_pictures", empty without an evaluated run.

    Raises:
      ValueError: when runs of one synthesizer have other targets.
    """
    evaluated = [
        (run, config, files.read_json(file))
        for run, config in runs.items()
        if (file := run / "matching" / "evaluation.json").exists()
    ]
    order = list(SCHEDULES)
    evaluated.sort(
        key=lambda f: (
            f[1]["synth"],
            order.index(f[2]["schedule"]),
            f[2]["decoding"] != "hard",
            f[2]["decoding"],
            f[2]["seed"],
        )
    )
    _check_targets(evaluated)
    notes = []
    if any(content["stand_in"] for _, _, content in evaluated):
        notes.append(
            "There was no bank of hand-crafted presets: the in-domain targets, "
            "and what the estimators learned from, are synthetic presets, "
            "those of the targets held out."
        )
    outside = [f for f in evaluated if OUT_OF_DOMAIN in f[2]["sets"]]
    if evaluated and not outside:
        notes.append(
            "Out-of-domain sounds were not evaluated: launch.evaluate takes a "
            "folder of NSynth notes with --nsynth."
        )
    floors = dict.fromkeys(noise.of_run(run, "") for run, _, _ in evaluated)
    notes += [f"{text[0].upper()}{text[1:]}." for text in floors if text]
    players = []
    for synth in dict.fromkeys(config["synth"] for _, config, _ in evaluated):
        mine = [f for f in evaluated if f[1]["synth"] == synth]
        players.append(_players(mine, IN_DOMAIN, out, tick))
    if outside:
        players.append(_players(outside, OUT_OF_DOMAIN, out, tick))
    used = {content["schedule"] for _, _, content in evaluated}
    return {
        "schedules": [
            {"label": label, "text": text}
            for name, (label, text) in SCHEDULES.items()
            if name in used
        ],
        "notes": notes,
        "players": players,
        "summaries": _summaries(evaluated),
        "matching_pictures": _pictures(evaluated, out),
    }


def _check_targets(evaluated: Sequence[tuple]) -> None:
    first: dict[tuple[str, str], tuple[pathlib.Path, list[str]]] = {}
    for run, config, content in evaluated:
        for where, entry in content["sets"].items():
            key = (where, config["synth"])
            if where == OUT_OF_DOMAIN:
                key = (where, "")
            other, names = first.setdefault(key, (run, entry["names"]))
            if names != entry["names"]:
                raise ValueError(
                    f"{run} and {other} were evaluated on different "
                    f"{where} sounds; evaluate them together: python -m "
                    f"launch.evaluate --runs {other},{run}"
                )


def _label(config: dict[str, Any], content: dict[str, Any]) -> str:
    label = SCHEDULES[content["schedule"]][0]
    if content["decoding"] != "hard" and content["schedule"] != "ploss":
        label += f", {content['decoding'].replace('_', ' ')}"
    return f"{_synth(config)} {label}"


def _synth(config: dict[str, Any]) -> str:
    names = {"dexed": "Dexed", "diva": "Diva", "talnm": "TAL-NoiseMaker"}
    name: str = config["synth"]
    return names.get(name, name)


# Players ---------------------------------------------------------------------


def _players(
    evaluated: Sequence[tuple],
    where: str,
    out: pathlib.Path,
    tick: Callable[[], Any],
) -> dict[str, Any]:
    """A table: targets across, below them what each estimator made of them."""
    run, config, content = evaluated[0]
    entry = content["sets"][where]
    names, inside = entry["names"], where == IN_DOMAIN
    if inside:
        first = [int(i) for i in entry["audio"]][:_COLUMNS]
        chosen: list[int | None] = [*first]
        columns = [{"title": names[i], "source": ""} for i in first]
        title = f"In-domain: {_synth(config)}"
        note = "Sounds of presets that the estimators have not seen."
    else:
        chosen = table_notes.pick(names)
        columns = [
            {
                "title": f"{family} {source}",
                "source": "" if i is None else names[i],
            }
            for (family, source), i in zip(
                table_notes.COLUMNS, chosen, strict=True
            )
        ]
        title = "Out-of-domain: notes of other instruments"
        note = (
            "For each kind of instrument the note nearest to middle C; where "
            "the source was missing, another one of the same family, as the "
            "name below says."
        )
    synth = files.filename(config["synth"])
    place = f"sounds/{synth}" if inside else "sounds/notes"
    rows: dict[str, list[dict[str, Any] | None]] = {
        "Target": [
            _cell(run, entry["audio"], i, names, f"{place}/target", out, tick)
            for i in chosen
        ]
    }
    for run, config, content in evaluated:
        label = whole = _label(config, content)
        if inside:
            label = whole.removeprefix(f"{_synth(config)} ")
        if label in rows:  # of several seeds, the first is played
            continue
        method = content["sets"][where]["methods"][ESTIMATOR]
        plain = whole.lower().replace(" ", "_").replace(",", "")
        folder = f"{place}/{files.filename(plain)}"
        named = files.inside(run / "matching", method["presets"])
        presets = files.read_json(named, list)
        rows[label] = [
            _cell(run, method["audio"], i, names, folder, out, tick)
            for i in chosen
        ]
        for position, cell in zip(chosen, rows[label], strict=True):
            if cell:
                _add_preset(cell, position, out, config, method, presets)
    return {
        "title": title,
        "note": note,
        "columns": columns,
        "rows": [{"label": k, "cells": cells} for k, cells in rows.items()],
    }


def _cell(
    run: pathlib.Path,
    sounds: dict[str, str],
    position: int | None,
    names: Sequence[str],
    folder: str,
    out: pathlib.Path,
    tick: Callable[[], Any],
) -> dict[str, Any] | None:
    """A player and its picture; None where no sound was kept."""
    if position is None or str(position) not in sounds:
        return None
    file = f"{folder}/{position:03}"
    (out / folder).mkdir(parents=True, exist_ok=True)
    source = files.inside(run / "matching", sounds[str(position)])
    shutil.copyfile(source, out / f"{file}.wav")
    rate, samples = wavfile.read(source)
    clip = samples.astype(np.float32) / 32768
    plots.sounds({"": clip}, rate, out / f"{file}.png")
    tick()
    return {
        "name": names[position],
        "audio": f"{file}.wav",
        "picture": f"{file}.png",
        "distances": [],
        "files": [],
    }


def _add_preset(
    cell: dict[str, Any],
    position: Any,
    out: pathlib.Path,
    config: dict[str, Any],
    method: dict[str, Any],
    presets: Sequence[dict[str, Any]],
) -> None:
    """Adds the distances and the preset to download."""
    preset = presets[position]
    cell["distances"] = [
        (name, f"{method['distances'][name][position]:.2f}")
        for name in _SHOWN
        if name in method["distances"]
    ]
    file = cell["audio"].replace(".wav", ".json")
    (out / file).write_text(json.dumps([preset], indent=1) + "\n")
    cell["files"] = [("preset (JSON)", file)]
    if config["synth"] == "dexed":
        space = spaces.get("dexed")
        bank = reading.load([str(out / file)], space)
        if len(bank):
            voice = file.replace(".json", ".syx")
            message = writing.to_syx(bank.presets, [preset["name"]], space)
            (out / voice).write_bytes(message)
            cell["files"].append(("DX7 (.syx)", voice))


# Numbers ---------------------------------------------------------------------


def _summaries(evaluated: Sequence[tuple]) -> list[dict[str, Any]]:
    """Distances by schedule, a mean over seeds, beside the baselines."""
    parts = []
    for where in (IN_DOMAIN, OUT_OF_DOMAIN):
        baselines, count = {}, 0
        groups: dict[str, list[dict[str, Any]]] = {}
        for _, config, content in evaluated:
            if where not in content["sets"]:
                continue
            entry = content["sets"][where]
            count = len(entry["names"])
            for name, method in entry["methods"].items():
                if name == ESTIMATOR:
                    label = _label(config, content)
                    groups.setdefault(label, []).append(method)
                else:
                    baselines[f"{_synth(config)} {name}"] = [method]
        cells = [
            _numbers(label, methods)
            for label, methods in (*groups.items(), *baselines.items())
        ]
        if cells:
            head = ["method", "seeds", "a_mean", *comparison.DISTANCES]
            used = [i for i in range(len(head)) if any(c[i] for c in cells)]
            parts.append(
                {
                    "title": f"Distances, {where}: {count} sounds",
                    "note": "Means over sounds and seeds, smaller is better; "
                    "in brackets the 95 % interval over sounds.",
                    "head": [head[i] for i in used],
                    "rows": [
                        {"cells": [c[i] for i in used], "ours": c[0] in groups}
                        for c in cells
                    ],
                }
            )
    return parts


def _numbers(label: str, methods: Sequence[dict[str, Any]]) -> list[str]:
    sounds = np.mean([m["distances"]["a_mean"] for m in methods], axis=0)
    summary = comparison.bootstrap(sounds, 10_000, 42)
    cells = [label, str(len(methods)), tables.interval(summary)]
    for name in comparison.DISTANCES:
        values = [m["distances"].get(name, [np.nan]) for m in methods]
        mean = float(np.mean(values))
        cells.append("" if np.isnan(mean) else f"{mean:.3f}")
    return cells


def _pictures(
    evaluated: Sequence[tuple], out: pathlib.Path
) -> list[dict[str, str]]:
    """Copies training curves and distances of the runs."""
    pictures = []
    for i, (run, config, content) in enumerate(evaluated):
        label = f"{_label(config, content)}, seed {content['seed']}"
        for source in (
            run / "training.png",
            *sorted((run / "matching").glob("distances_*.png")),
        ):
            if source.exists():
                caption = f"{label}: {source.stem.replace('_', ' ')}"
                folder = f"matching/{i:02}"
                copy = proxies.copied(run, source, out, folder, caption)
                pictures.append(copy)
    return pictures
