"""What matching leaves behind: preset files, sounds, a picture, tables."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import scipy.io.wavfile
import tabulate
from jaxtyping import Float

from datasets.presets import bank
from launch.match.search import BASELINE, Match
from matching import distances
from proxy.space import ParameterSpace

matplotlib.use("Agg")

RESULT = "result.json"
# Of the summary, and which of them no stage looks at.
SHOWN = ("a_mean", "dtw_mfcc", "sot")
_ROWS = (
    ("estimator", "estimator alone"),
    (BASELINE, "best of the 40 nearest (baseline)"),
    ("neighbours", "neighbours"),
    ("gradient", "+ gradient"),
    ("evolution", "+ evolution"),
    ("ranking", "+ ranking"),
)


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
      folder: made if missing.
      name: of the sound.
      match: what was found.
      target: the sound.
      space: of the presets.
      sample_rate: of the sounds.
      about: further entries of the result.
      state: from plug-in values to the file that hosts load, or None; see
        `engines.Renderer.write_state`.

    Returns:
      The content of result.json, which is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = [f"match {i + 1}" for i in range(len(match.presets))]
    _write_sound(folder / "target.wav", target, sample_rate)
    for i, (preset, clip) in enumerate(
        zip(match.presets, match.clips, strict=True)
    ):
        file = folder / f"match-{i + 1}"
        _write_sound(file.with_suffix(".wav"), clip, sample_rate)
        title = f"{name[:7]} {i + 1}"
        for suffix in (
            (".json", ".syx") if space.name == "dexed" else (".json",)
        ):
            bank.save(file.with_suffix(suffix), preset[None], [title], space)
        # Of a plug-in that saves none, the other files are left.
        with contextlib.suppress(ValueError):
            saved = state(np.asarray(space.to_plugin(preset), np.float32))
            if saved is not None:
                file.with_suffix(".vstpreset").write_bytes(saved)
    picture(folder / "match.png", target, match.clips[0], sample_rate, name)
    candidates = [
        {
            "preset": f"match-{i + 1}",
            "distances": {k: float(v[i]) for k, v in match.distances.items()},
        }
        for i in range(len(labels))
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
    path = folder / RESULT
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)
    return result


def _write_sound(
    path: pathlib.Path, sound: Float[np.ndarray, " samples"], sample_rate: int
) -> None:
    # Floats, which keep what exceeds full scale.
    scipy.io.wavfile.write(path, sample_rate, np.asarray(sound, np.float32))


def picture(
    path: pathlib.Path,
    target: Float[np.ndarray, " samples"],
    found: Float[np.ndarray, " samples"],
    sample_rate: int,
    title: str,
) -> None:
    """Draws waveform and mel spectrogram of a target and its match.

    Args:
      path: where to.
      target: a sound.
      found: another of the same length.
      sample_rate: of both.
      title: name of the sound.
    """
    pair = jnp.stack([target, found])
    mels = np.asarray(distances.kaldi_decibels(pair, sample_rate))
    top = mels.max()
    seconds = pair.shape[1] / sample_rate
    figure, axes = plt.subplots(
        2, 2, figsize=(9, 4.5), sharex=True, height_ratios=(1, 2)
    )
    for column, label in enumerate((title, "match")):
        wave, mel = axes[:, column]
        time = np.arange(pair.shape[1]) / sample_rate
        wave.plot(time, pair[column], lw=0.4, color="#0072B2")
        height = max(np.abs(pair).max() * 1.05, 1e-3)
        wave.set(ylim=(-height, height), title=label)
        image = mel.imshow(
            mels[column].T,
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, mels.shape[2]),
            vmin=top - 80,
            vmax=top,
            cmap="magma",
        )
        mel.set(xlabel="seconds", xlim=(0, seconds))
    axes[0, 0].set_ylabel("amplitude")
    axes[1, 0].set_ylabel("mel band")
    figure.colorbar(image, ax=axes[1, :], label="dB", pad=0.02)
    figure.colorbar(image, ax=axes[0, :], pad=0.02).remove()
    figure.savefig(path, bbox_inches="tight", dpi=110)
    plt.close(figure)


# Tables ----------------------------------------------------------------------


def candidates(result: Mapping[str, Any]) -> str:
    """The ranked presets of one sound as a table."""
    rows = [
        [entry["preset"], *(entry["distances"][n] for n in SHOWN)]
        for entry in result["candidates"]
    ]
    return tabulate.tabulate(
        rows, ["preset", *SHOWN], tablefmt="github", floatfmt=".3f"
    )


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each stage contributes, on average over sounds.

    Args:
      results: contents of result.json files.

    Returns:
      By stage: mean of each distance over the sounds that every stage was
      run on, share of the baseline where there is one, mean number of
      renders and seconds until then; and the number of sounds.
    """
    found = [{s["stage"]: s for s in r["stages"]} for r in results]
    common = set.intersection(*map(set, found)) if found else set()
    rows: dict[str, Any] = {}
    for stage, _ in _ROWS:
        if stage not in common:
            continue
        entries = [stages[stage] for stages in found]
        rows[stage] = {
            "distances": {
                name: float(np.mean([e["distances"][name] for e in entries]))
                for name in entries[0]["distances"]
            },
            "renders": float(np.mean([e["renders"] for e in entries])),
            "seconds": float(np.mean([e["seconds"] for e in entries])),
        }
    return {"sounds": len(results), "stages": rows}


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as a Markdown table."""
    stages = summary["stages"]
    base = stages.get(BASELINE)
    rows = []
    for stage, label in _ROWS:
        if stage not in stages:
            continue
        found = stages[stage]["distances"]
        cells: list[Any] = [label]
        for name in SHOWN:
            digits = 1 if name == "dtw_mfcc" else 3
            cells.append(f"{found[name]:.{digits}f}")
        if base is not None:
            ratio = found["a_mean"] / base["distances"]["a_mean"]
            cells.append(f"{ratio - 1:+.1%}")
        cells += [
            f"{stages[stage]['renders']:,.0f}",
            f"{stages[stage]['seconds']:.1f}",
        ]
        rows.append(cells)
    headers = [f"mean of {summary['sounds']} sounds", *SHOWN]
    headers += ["a_mean to baseline"] if base is not None else []
    return tabulate.tabulate(
        rows,
        [*headers, "renders", "seconds"],
        tablefmt="github",
        disable_numparse=True,
    )
