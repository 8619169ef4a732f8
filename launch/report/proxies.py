"""The page's sections on proxies and on audio models."""

import importlib.util
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from datasets import files
from launch.evaluate import proxy
from launch.runs import noise, plots

# Presets that are learned from, and what the page calls them.
_KINDS = {"synthetic": "synthetic", "handcrafted": "hand-crafted"}


def sections(
    runs: Mapping[pathlib.Path, dict[str, Any]],
    out: pathlib.Path,
    tick: Callable[[], Any],
) -> list[dict[str, Any]]:
    """What the page says of each proxy.

    Args:
      runs: configs of proxies' runs by folder.
      out: folder of the page; pictures are copied there.
      tick: called after each picture that is drawn.

    Returns:
      For each evaluated run a title, a table and pictures, the best at
      synthetic retrieval first.
    """
    entries = []
    for run, config in runs.items():
        file = run / "evaluation.json"
        if not file.exists():
            continue
        content = files.read_json(file)
        folder = f"{len(entries):02}_{files.filename(config['name'])}"
        pictures = _pictures(run, folder, out)
        pictures += _maps(run, folder, out, tick)
        ours = config["encoder"]
        first = next(iter(content["results"].values()))[ours]["metrics"]
        if content["bank"]:
            bank = f"hand-crafted presets of {content['bank']}"
        else:
            bank = "no bank of hand-crafted presets: synthetic ones alone"
        if config["init"]:
            bank += f"; fine-tuned from {config['init']}"
        bank += noise.of_run(run, "; ")
        # Evaluations of before do not say it.
        seen = content.get("trained_on", {"synthetic": config["num_train"]})
        counts = [
            f"{seen[kind]:,} {title} presets"
            for kind, title in _KINDS.items()
            if seen.get(kind)
        ]
        learned = "trained elsewhere"
        if counts:
            learned = f"trained on {' and '.join(counts)}"
            learned += f", {config['epochs']} epochs"
        entries.append(
            {
                "title": f"{config['name']}: {ours} on "
                f"{config['audio_model']}, {config['synth']}",
                "note": f"{learned}; {bank}.",
                "head": proxy.HEADERS,
                "rows": [
                    {"cells": cells, "ours": cells[1] == ours}
                    for cells in proxy.rows(content["results"])
                ],
                "pictures": pictures,
                "best": first["mrr/preset_to_audio"]["mean"],
            }
        )
    return sorted(entries, key=lambda entry: -entry["best"])


_CAPTIONS = {
    "training": "Training: loss and validation against steps",
    "ranks_synthetic": "Rank of the right sound, synthetic presets",
    "ranks_hand_crafted": "Rank of the right sound, hand-crafted presets",
    "embeddings_synthetic": "Principal axes of embeddings, synthetic presets",
    "embeddings_hand_crafted": "Principal axes of embeddings, hand-crafted "
    "presets",
}


def _pictures(
    run: pathlib.Path, folder: str, out: pathlib.Path
) -> list[dict[str, str]]:
    """Copies the pictures that the run has."""
    return [
        copied(run, source, out, f"proxies/{folder}", caption)
        for name, caption in _CAPTIONS.items()
        if (source := run / f"{name}.png").exists()
    ]


def copied(
    run: pathlib.Path,
    source: pathlib.Path,
    out: pathlib.Path,
    folder: str,
    caption: str,
) -> dict[str, str]:
    """Copies a run's picture into a folder of the page.

    Args:
      run: folder of the run.
      source: the picture.
      out: folder of the page.
      folder: where in it the picture goes.
      caption: what to say of it.

    Returns:
      Fields of the template.

    Raises:
      ValueError: the picture is a link to something outside the run.
    """
    source = files.inside(run, str(source.relative_to(run)))
    name = f"{files.filename(source.stem)}.png"
    (out / folder).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, out / folder / name)
    return {"file": f"{folder}/{name}", "caption": caption}


def _maps(
    run: pathlib.Path, folder: str, out: pathlib.Path, tick: Callable[[], Any]
) -> list[dict[str, str]]:
    """Draws UMAPs of the embeddings that the run kept."""
    pictures = []
    if importlib.util.find_spec("umap") is None:
        return pictures  # the run's own picture of principal axes is there
    for file in sorted(run.glob("embeddings_*.npz")):
        with np.load(files.inside(run, file.name)) as kept:
            audio, predicted = kept["audio"], kept["predicted"]
        what = files.filename(file.stem.removeprefix("embeddings_"))
        place = f"proxies/{folder}/umap_{what}.png"
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        plots.embedding_map(audio, predicted, "", out / place, umap=True)
        caption = (
            "UMAP of true and predicted embeddings, "
            f"{what.replace('_', '-')} presets; a line joins the two of a "
            "preset"
        )
        pictures.append({"file": place, "caption": caption})
        tick()
    return pictures


def rankings(
    runs: Sequence[pathlib.Path], out: pathlib.Path
) -> list[dict[str, str]]:
    """Copies the pictures of rankings of audio models, see `launch.rank`."""
    return [
        copied(
            run,
            picture,
            out,
            f"models/{i:02}",
            f"{run.name}: {picture.stem.replace('_', ' ')}",
        )
        for i, run in enumerate(runs)
        for picture in sorted(run.glob("*.png"))
    ]
