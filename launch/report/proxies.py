"""The page's sections on proxies and on audio models."""

import importlib.util
import json
import pathlib
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

from launch.evaluate import proxy as evaluate_proxy
from launch.runs import noise, plots

_POINTS = 400


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
    found = []
    for run, config in runs.items():
        file = run / "evaluation.json"
        if not file.exists():
            continue
        content = json.loads(file.read_text())
        folder = f"{len(found):02}_{config['name']}"
        pictures = _pictures(run, folder, out)
        pictures += _maps(run, folder, out, tick)
        rows, best = _rows(content["results"], config["encoder"])
        if content["bank"]:
            bank = f"hand-crafted presets of {content['bank']}"
        else:
            bank = "no bank of hand-crafted presets: synthetic ones alone"
        if config["init"]:
            bank += f"; fine-tuned from {config['init']}"
        bank += noise.of_run(run, "; ")
        found.append(
            {
                "title": f"{config['name']}: {config['encoder']} on "
                f"{config['audio_model']}, {config['synth']}",
                "note": f"{config['num_train']:,} synthetic training presets, "
                f"{config['epochs']} epochs; {bank}.",
                "head": [
                    "presets",
                    "model",
                    *(title for title, _, _ in evaluate_proxy.COLUMNS),
                ],
                "rows": rows,
                "pictures": pictures,
                "best": best,
            }
        )
    return sorted(found, key=lambda f: -f["best"])


def _rows(
    results: dict[str, Any], encoder: str
) -> tuple[list[dict[str, Any]], float]:
    rows, best = [], 0.0
    for where, models in results.items():
        for name, model in models.items():
            cells = [f"{where}, {model['subset']:,}", name]
            for _, metric, digits in evaluate_proxy.COLUMNS:
                value = model["metrics"][metric]
                text = f"{value['mean']:.{digits}f}"
                if metric.startswith("mrr/") and model["repeats"] > 1:
                    text += f" ± {value['std']:.{digits}f}"
                cells.append(text)
            rows.append({"cells": cells, "ours": name == encoder})
        best = (
            best or (models[encoder]["metrics"]["mrr/preset_to_audio"]["mean"])
        )
    return rows, best


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
    found = []
    for name, caption in _CAPTIONS.items():
        source = run / f"{name}.png"
        if source.exists():
            found.append(_copied(source, out, f"proxies/{folder}", caption))
    return found


def _copied(
    source: pathlib.Path, out: pathlib.Path, folder: str, caption: str
) -> dict[str, str]:
    target = out / folder / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return {"file": f"{folder}/{source.name}", "caption": caption}


def _maps(
    run: pathlib.Path, folder: str, out: pathlib.Path, tick: Callable[[], Any]
) -> list[dict[str, str]]:
    """Draws UMAPs of the embeddings that the run kept."""
    found = []
    if importlib.util.find_spec("umap") is None:
        return found  # the run's own picture of principal axes is there
    for file in sorted(run.glob("embeddings_*.npz")):
        with np.load(file) as kept:
            audio, predicted = kept["audio"], kept["predicted"]
        place = f"proxies/{folder}/umap_{file.stem.split('_', 1)[1]}.png"
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        what = file.stem.split("_", 1)[1].replace("_", "-")
        draw_umap(audio[:_POINTS], predicted[:_POINTS], out / place)
        caption = (
            f"UMAP of true and predicted embeddings, {what} presets; a line "
            "joins the two of a preset"
        )
        found.append({"file": place, "caption": caption})
        tick()
    return found


def draw_umap(
    audio: Float[np.ndarray, "samples embedding"],
    predicted: Float[np.ndarray, "samples embedding"],
    path: pathlib.Path,
) -> None:
    """Draws true and predicted embeddings in one plane.

    McInnes, Healy, Melville, "UMAP: Uniform Manifold Approximation and
    Projection", 2018; fitted to both at once, with a fixed seed.

    Args:
      audio: g(s(x)).
      predicted: f(x), same order.
      path: of the picture.
    """
    both = np.concatenate([audio, predicted])
    neighbours = min(15, len(both) - 1)
    with warnings.catch_warnings():
        # It tells of TensorFlow, which is not wanted.
        warnings.simplefilter("ignore")
        import umap

        fitted = umap.UMAP(
            n_neighbors=neighbours,
            metric="manhattan",
            random_state=0,
            n_jobs=1,
            init="pca",
        )
        a, p = np.split(np.asarray(fitted.fit_transform(both)), 2)
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(5, 5))
        axes.plot([a[:, 0], p[:, 0]], [a[:, 1], p[:, 1]], color="0.75", lw=0.5)
        axes.scatter(*a.T, s=8, color="#0072B2", label="sound, g(s(x))")
        axes.scatter(*p.T, s=8, color="#D55E00", label="preset, f(x)")
        axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
        axes.legend()
        figure.savefig(path, bbox_inches="tight")
        plt.close(figure)


def rankings(
    runs: Sequence[pathlib.Path], out: pathlib.Path
) -> list[dict[str, str]]:
    """Copies the pictures of rankings of audio models.

    Args:
      runs: folders that `launch.rank` wrote.
      out: folder of the page.

    Returns:
      Files and captions.
    """
    return [
        _copied(
            picture,
            out,
            f"models/{i:02}",
            f"{run.name}: {picture.stem.replace('_', ' ')}",
        )
        for i, run in enumerate(runs)
        for picture in sorted(run.glob("*.png"))
    ]
