"""What the ranking study writes: JSON, tables and a heat map."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from launch.runs import plots
from launch.runs import tables as text

# Means over the 13 attributes of the paper's study on TAL-NoiseMaker (Combes,
# Weinzierl and Obermayer, JAES 73(9), 2025). Those of the mn family are of the
# embeddings with mel bands: the one that is known, mn04's, has 320 numbers.
PUBLISHED = {
    "mn20_mel": 0.976,
    "mn40_mel": 0.975,
    "mn30_mel": 0.966,
    "OpenL3, 6144": 0.966,
    "mn04_mel": 0.965,
    "OpenL3, 512": 0.963,
    "passt_s": 0.960,
    "audiomae": 0.958,
    "passt_l": 0.954,
    "clap": 0.953,
    "mel128": 0.921,
    "mfcc40": 0.913,
    "mstft": 0.880,
    "m2l": 0.879,
    "dac": 0.808,
}
_PAPER = "paper, TAL-NoiseMaker"

Summary = Mapping[str, Mapping[str, Any]]


def published(name: str) -> float | None:
    """The paper's mean of an audio model, None where it has none."""
    if name.startswith("openl3_"):
        return PUBLISHED.get(f"OpenL3, {name.rpartition('_')[2]}")
    return PUBLISHED.get(name)


def _cell(value: float | None, std: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ± {std:.3f}" if std is not None else "")


def _models_table(summary: Summary, form: str, *, others: bool) -> str:
    rows = [
        [
            name,
            _cell(entry["mean"], entry["std"]),
            _cell(entry["worst"]),
            entry["worst_attribute"],
            _cell(published(name)),
        ]
        for name, entry in sorted(
            summary.items(), key=lambda item: -item[1]["mean"]
        )
    ]
    if others:
        rows += [
            [name, "-", "-", "-", _cell(value)]
            for name, value in PUBLISHED.items()
            if not any(published(known) == value for known in summary)
        ]
    headers = ["model", "mean ± spread", "worst", "attribute", _PAPER]
    return text.markdown(rows, headers, form)


def _attributes_table(summary: Summary, form: str) -> str:
    names = list(summary)
    rows = []
    for attribute in summary[names[0]]["attributes"]:
        cells = [summary[name]["attributes"][attribute] for name in names]
        rows.append([attribute, *(_cell(c["mean"], c["std"]) for c in cells)])
    rows.append(["mean", *(_cell(summary[name]["mean"]) for name in names)])
    return text.markdown(rows, ["attribute", *names], form)


def tables(summary: Summary, form: str = "github", *, others: bool) -> str:
    """Both tables: models, and attributes by model.

    Args:
      summary: what `study.summary` returns.
      form: format of tabulate, "github" or "latex_booktabs".
      others: whether to list published models that were not ranked here.
    """
    models = _models_table(summary, form, others=others)
    return f"{models}\n\n{_attributes_table(summary, form)}\n"


def heat_map(summary: Summary, title: str, path: pathlib.Path) -> None:
    """Draws attributes by models, the mean and the spread in every cell."""
    names = sorted(summary, key=lambda name: -summary[name]["mean"])
    attributes = list(summary[names[0]]["attributes"])
    cells = [
        *(
            [summary[name]["attributes"][attribute] for name in names]
            for attribute in attributes
        ),
        [summary[name] for name in names],
    ]
    # Where no sweep counts there is None.
    means = np.array(
        [[cell["mean"] for cell in row] for row in cells], np.float64
    )
    low = min(0.8, np.floor(np.nanmin(means) * 10) / 10)
    with plt.rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(
            figsize=(2.2 + 1.15 * len(names), 1 + 0.33 * len(cells))
        )
        image = axes.imshow(
            means, vmin=low, vmax=1, cmap="viridis", aspect="auto"
        )
        for y, row in enumerate(cells):
            for x, cell in enumerate(row):
                if cell["mean"] is None:
                    continue
                dark = cell["mean"] < low + 0.6 * (1 - low)
                axes.text(
                    x,
                    y,
                    f"{cell['mean']:.3f} ± {cell['std']:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if dark else "black",
                )
        axes.axhline(len(attributes) - 0.5, color="white", lw=3)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        labels = [name.replace("_", " ") for name in attributes]
        axes.set_yticks(range(len(cells)), [*labels, "mean"])
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_title(title)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
        bar.set_label("Spearman's rank correlation")
        bar.outline.set_visible(False)
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)


def write(
    folder: pathlib.Path,
    result: Mapping[str, Any],
    summary: Summary,
    about: Mapping[str, Any],
) -> None:
    """Writes ranking.json, ranking.md, ranking.tex and ranking.png.

    Args:
      folder: folder of the files, created where missing.
      result: what `study.run` returns.
      summary: what `study.summary` makes of its scores.
      about: synthesizer, table and how it was played, for the JSON and the
        title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = about["synth"] == "talnm"
    document = {**about, **result, "summary": summary}
    document["published"] = {"synth": "talnm", "mean": PUBLISHED}
    document = json.dumps(document, indent=1) + "\n"
    (folder / "ranking.json").write_text(document)
    (folder / "ranking.md").write_text(tables(summary, others=others))
    latex = tables(summary, "latex_booktabs", others=others)
    (folder / "ranking.tex").write_text(latex.replace("±", r"$\pm$"))
    title = f"{about['synth']}: does distance follow the order of a sweep?"
    heat_map(summary, title, folder / "ranking.png")
