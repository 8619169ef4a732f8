"""The page's section on sound matching: tables of players and of numbers."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy.io import wavfile

from datasets.presets import reading, writing
from launch.evaluate import estimator as evaluation
from launch.evaluate import notes as table_notes
from launch.runs import noise, plots
from proxy import spaces
from proxy.audio import spectral

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
    found = [
        (run, config, json.loads(file.read_text()))
        for run, config in runs.items()
        if (file := run / "matching" / "evaluation.json").exists()
    ]
    order = list(SCHEDULES)
    found.sort(
        key=lambda f: (
            f[1]["synth"],
            order.index(f[2]["schedule"]),
            f[2]["decoding"] != "hard",
            f[2]["decoding"],
            f[2]["seed"],
        )
    )
    _check_targets(found)
    notes = []
    if any(content["stand_in"] for _, _, content in found):
        notes.append(
            "There was no bank of hand-crafted presets: the in-domain targets, "
            "and what the estimators learned from, are synthetic presets, "
            "those of the targets held out."
        )
    outside = [f for f in found if evaluation.OUT_OF_DOMAIN in f[2]["sets"]]
    if found and not outside:
        notes.append(
            "Out-of-domain sounds were not evaluated: launch.evaluate takes a "
            "folder of NSynth notes with --nsynth."
        )
    floors = dict.fromkeys(noise.of_run(run, "") for run, _, _ in found)
    notes += [f"{text[0].upper()}{text[1:]}." for text in floors if text]
    players = []
    for synth in dict.fromkeys(config["synth"] for _, config, _ in found):
        mine = [f for f in found if f[1]["synth"] == synth]
        players.append(_players(mine, evaluation.IN_DOMAIN, out, tick))
    if outside:
        players.append(_players(outside, evaluation.OUT_OF_DOMAIN, out, tick))
    used = {content["schedule"] for _, _, content in found}
    return {
        "schedules": [
            {"label": label, "text": text}
            for name, (label, text) in SCHEDULES.items()
            if name in used
        ],
        "notes": notes,
        "players": players,
        "summaries": _summaries(found),
        "matching_pictures": _pictures(found, out),
    }


def _check_targets(found: Sequence[tuple]) -> None:
    first: dict[tuple[str, str], tuple[pathlib.Path, list[str]]] = {}
    for run, config, content in found:
        for where, entry in content["sets"].items():
            key = (where, config["synth"])
            if where == evaluation.OUT_OF_DOMAIN:
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
    found: Sequence[tuple],
    where: str,
    out: pathlib.Path,
    tick: Callable[[], Any],
) -> dict[str, Any]:
    """A table: targets across, below them what each estimator made of them."""
    run, config, content = found[0]
    entry = content["sets"][where]
    names, inside = entry["names"], where == evaluation.IN_DOMAIN
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
    place = f"sounds/{config['synth']}" if inside else "sounds/notes"
    seeds: dict[str, int] = {}
    rows = [
        {
            "label": "Target",
            "cells": [
                _cell(run, entry["audio"], i, names, f"{place}/target", out)
                for i in chosen
            ],
        }
    ]
    for run, config, content in found:
        label = _label(config, content)
        if label in seeds:  # of several seeds, the first is played
            continue
        seeds[label] = content["seed"]
        method = content["sets"][where]["methods"][evaluation.ESTIMATOR]
        folder = f"{place}/{label.lower().replace(' ', '_').replace(',', '')}"
        presets = json.loads((run / "matching" / method["presets"]).read_text())
        rows.append(
            {
                "label": label.removeprefix(f"{_synth(config)} ")
                if inside
                else label,
                "cells": [
                    _cell(
                        run,
                        method["audio"],
                        i,
                        names,
                        folder,
                        out,
                        (config, method, presets),
                    )
                    for i in chosen
                ],
            }
        )
    for row in rows:
        for cell in row["cells"]:
            if cell:
                draw_clip(out / cell["audio"], out / cell["picture"])
                tick()
    return {"title": title, "note": note, "columns": columns, "rows": rows}


def _cell(
    run: pathlib.Path,
    files: dict[str, str],
    position: int | None,
    names: Sequence[str],
    folder: str,
    out: pathlib.Path,
    prediction: tuple | None = None,
) -> dict[str, Any] | None:
    """A player and its picture; None where no sound was kept."""
    if position is None or str(position) not in files:
        return None
    audio = f"{folder}/{position:03}.wav"
    (out / folder).mkdir(parents=True, exist_ok=True)
    source = run / "matching" / files[str(position)]
    shutil.copyfile(source, out / audio)
    cell = {
        "name": names[position],
        "audio": audio,
        "picture": audio.replace(".wav", ".png"),
        "distances": [],
        "files": [],
    }
    if prediction is not None:
        _add_preset(cell, position, out, *prediction)
    return cell


def _add_preset(
    cell: Any,
    position: int,
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


def draw_clip(sound: pathlib.Path, path: pathlib.Path) -> None:
    """Draws the waveform and the mel spectrogram of a WAV file.

    Args:
      sound: a mono file of 16 bits.
      path: of the picture, 480 x 320.
    """
    rate, samples = wavfile.read(sound)
    clip = samples.astype(np.float32) / 32768
    size, hop = 1024, 512
    frames = np.lib.stride_tricks.sliding_window_view(
        np.pad(clip, size // 2), size
    )[::hop]
    power = np.abs(np.fft.rfft(frames * spectral.hann(size))) ** 2
    bank = spectral.mel_bank(
        96, sample_rate=rate, fft_size=size, low=20.0, high=rate / 2
    )
    level = 10 * np.log10(np.maximum(power @ bank, 1e-10))
    with plt.rc_context(plots.STYLE):
        figure, (top, below) = plt.subplots(
            2,
            figsize=(4.8, 3.2),
            dpi=100,
            sharex=True,
            gridspec_kw={
                "height_ratios": (1, 2),
                "left": 0.14,
                "right": 0.98,
                "bottom": 0.14,
                "top": 0.97,
            },
        )
        seconds = len(clip) / rate
        time = np.linspace(0, seconds, len(clip))
        top.fill_between(*_outline(time, clip), color="#0072B2", lw=0.3)
        top.set(ylim=(-1, 1), yticks=[-1, 0, 1], ylabel="amplitude")
        below.imshow(
            level.T,
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, level.shape[1]),
            vmin=level.max() - 80,
            vmax=level.max(),
            cmap="magma",
        )
        below.set(xlabel="seconds", ylabel="mel band")
        below.grid(visible=False)
        figure.savefig(path)
        plt.close(figure)


def _outline(time: np.ndarray, clip: np.ndarray) -> tuple[np.ndarray, ...]:
    """Least and greatest sample of about 480 pieces: quick to draw."""
    size = max(len(clip) // 480, 1)
    count = len(clip) // size
    pieces = clip[: count * size].reshape(count, size)
    return time[: count * size : size], pieces.min(1), pieces.max(1)


# Numbers ---------------------------------------------------------------------


def _summaries(found: Sequence[tuple]) -> list[dict[str, Any]]:
    """Distances by schedule, a mean over seeds, beside the baselines."""
    tables = []
    for where in (evaluation.IN_DOMAIN, evaluation.OUT_OF_DOMAIN):
        rows, baselines, count = [], {}, 0
        groups: dict[str, list[dict[str, Any]]] = {}
        for _, config, content in found:
            if where not in content["sets"]:
                continue
            entry = content["sets"][where]
            count = len(entry["names"])
            label = _label(config, content)
            for name, method in entry["methods"].items():
                if name == evaluation.ESTIMATOR:
                    groups.setdefault(label, []).append(method)
                else:
                    baselines[f"{_synth(config)} {name}"] = [method]
        for label, methods in (*groups.items(), *baselines.items()):
            rows.append(
                {"cells": _numbers(label, methods), "ours": label in groups}
            )
        head = ["method", "seeds", "a_mean", *_DISTANCES]
        used = [i for i in range(len(head)) if any(r["cells"][i] for r in rows)]
        for row in rows:
            row["cells"] = [row["cells"][i] for i in used]
        if rows:
            tables.append(
                {
                    "title": f"Distances, {where}: {count} sounds",
                    "note": "Means over sounds and seeds, smaller is better; "
                    "in brackets the 95 % interval over sounds.",
                    "head": [head[i] for i in used],
                    "rows": rows,
                }
            )
    return tables


_DISTANCES = ("stft", "mstft", "mel", "mfcc", "dtw_mfcc", "sot")


def _numbers(label: str, methods: Sequence[dict[str, Any]]) -> list[str]:
    sounds = np.mean([m["distances"]["a_mean"] for m in methods], axis=0)
    s = evaluation.bootstrap(sounds, 10_000, 42)
    cells = [
        label,
        str(len(methods)),
        f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]",
    ]
    for name in _DISTANCES:
        values = [m["distances"].get(name, [np.nan]) for m in methods]
        mean = float(np.mean(values))
        cells.append("" if np.isnan(mean) else f"{mean:.3f}")
    return cells


def _pictures(
    found: Sequence[tuple], out: pathlib.Path
) -> list[dict[str, str]]:
    """Copies training curves and distances of the runs."""
    pictures = []
    for i, (run, config, content) in enumerate(found):
        label = f"{_label(config, content)}, seed {content['seed']}"
        candidates = [(run / "training.png", f"{label}: training")]
        candidates += [
            (file, f"{label}: {file.stem.replace('_', ' ')}")
            for file in sorted((run / "matching").glob("distances_*.png"))
        ]
        for source, caption in candidates:
            if source.exists():
                target = out / "matching" / f"{i:02}_{source.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                file = str(target.relative_to(out))
                pictures.append({"file": file, "caption": caption})
    return pictures
