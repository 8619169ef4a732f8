"""What matching leaves behind: preset files, sounds, a picture, tables."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.io.wavfile
from jaxtyping import Float

from datasets import files
from datasets.presets import writing
from launch.match.search import BASELINE, Match
from launch.runs import plots, tables
from proxy.space import ParameterSpace

RESULT = "result.json"
# Distances of the tables; no stage looks at the last two.
_SHOWN = ("a_mean", "dtw_mfcc", "sot")
_LABELS = {
    "estimator": "estimator alone",
    BASELINE: "best of the 40 nearest (baseline)",
    "neighbours": "neighbours",
    "evolution": "+ evolution",
    "ranking": "+ ranking",
}


def write(
    folder: pathlib.Path,
    name: str,
    match: Match,
    target: Float[np.ndarray, " samples"],
    space: ParameterSpace,
    sample_rate: int,
    about: Mapping[str, Any],
    state: Callable[[Float[np.ndarray, " parameters"]], bytes | None],
) -> dict[str, Any]:
    """Writes all there is about a matched sound.

    Args:
      folder: folder of the files, made if missing.
      name: name of the sound.
      match: result of the search.
      target: the sound.
      space: parameters of the presets.
      sample_rate: samples per second of the sounds.
      about: further entries of the result.
      state: from plug-in values to the file that hosts load, or None; see
        `engines.Renderer.write_state`.

    Returns:
      The content of result.json, which is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write_sound(file: pathlib.Path, sound: np.ndarray) -> None:
        # Floats, which keep what exceeds full scale.
        scipy.io.wavfile.write(file, sample_rate, np.float32(sound))

    write_sound(folder / "target.wav", target)
    for i, (preset, clip) in enumerate(
        zip(match.presets, match.clips, strict=True)
    ):
        file = folder / f"match-{i + 1}"
        write_sound(file.with_suffix(".wav"), clip)
        title = f"{name[:7]} {i + 1}"
        for suffix in (".json", ".syx")[: 1 + (space.name == "dexed")]:
            writing.save(file.with_suffix(suffix), preset[None], [title], space)
        # Of a plug-in that saves none, the other files are left.
        with contextlib.suppress(ValueError):
            saved = state(np.asarray(space.to_plugin(preset), np.float32))
            if saved is not None:
                file.with_suffix(".vstpreset").write_bytes(saved)
    pair = {name: target, f"match of {name}": match.clips[0]}
    plots.sounds(pair, sample_rate, folder / "match.png")
    candidates = [
        {
            "preset": f"match-{i + 1}",
            "distances": {k: float(v[i]) for k, v in match.distances.items()},
        }
        for i in range(len(match.presets))
    ]
    result = {
        "name": name,
        **about,
        "renders": match.renders,
        "seconds": round(match.seconds, 2),
        "interrupted": match.interrupted,
        "candidates": candidates,
        "stages": match.stages,
    }
    text = json.dumps(result, indent=1) + "\n"
    files.write_atomically(folder / RESULT, text)
    return result


# Tables ----------------------------------------------------------------------


def _shown(distances: Mapping[str, float]) -> list[str]:
    """The distances of a table's row."""
    return [
        f"{distances[name]:.{1 if name == 'dtw_mfcc' else 3}f}"
        for name in _SHOWN
    ]


def candidates(result: Mapping[str, Any]) -> str:
    """The ranked presets of one sound as a table."""
    rows = [
        [entry["preset"], *_shown(entry["distances"])]
        for entry in result["candidates"]
    ]
    return tables.markdown(rows, ["preset", *_SHOWN])


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each stage contributes, on average over result.json files.

    Returns:
      By stage: mean of each distance over the sounds that every stage was
      run on, share of the baseline where there is one, mean number of
      renders and seconds until then; and the number of sounds.
    """
    by_stage = [{s["stage"]: s for s in r["stages"]} for r in results]
    common = set.intersection(*map(set, by_stage)) if by_stage else set()
    rows: dict[str, Any] = {}
    for stage in _LABELS:
        if stage not in common:
            continue
        entries = [stages[stage] for stages in by_stage]

        def mean(values: Iterable[float]) -> float:
            return float(np.mean(list(values)))

        rows[stage] = {
            "distances": {
                name: mean(e["distances"][name] for e in entries)
                for name in entries[0]["distances"]
            },
            "renders": mean(e["renders"] for e in entries),
            "seconds": mean(e["seconds"] for e in entries),
        }
    return {"sounds": len(results), "stages": rows}


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as a Markdown table."""
    stages = summary["stages"]
    base = stages.get(BASELINE)
    rows = []
    for stage, entry in stages.items():
        ratio = ""
        if base is not None:
            a, b = (e["distances"]["a_mean"] for e in (entry, base))
            ratio = f"{a / b - 1:+.1%}"
        rows.append(
            [
                _LABELS[stage],
                *_shown(entry["distances"]),
                ratio,
                f"{entry['renders']:,.0f}",
                f"{entry['seconds']:.1f}",
            ]
        )
    headers = [f"mean of {summary['sounds']} sounds", *_SHOWN]
    headers += ["a_mean to baseline", "renders", "seconds"]
    return tables.markdown(rows, headers)
