"""Pictures of a run, saved where people look: in its directory."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

from launch.runs import metrics

matplotlib.use("Agg")

STYLE: dict[Any, Any] = {
    "figure.dpi": 120,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
# Okabe and Ito's palette, told apart by colour-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    return path


def training_curves(run: pathlib.Path) -> pathlib.Path:
    """Draws loss and validation against steps from the run's metrics.

    Args:
      run: the run directory.

    Returns:
      The picture, `training.png`.
    """
    records = list(metrics.read(run))

    def series(name):
        kept = [(r["step"], r[name]) for r in records if name in r]
        return np.array(kept).reshape(-1, 2).T

    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
        for name, label, color in (
            ("loss", "training", _COLORS[0]),
            ("l1", "validation", _COLORS[1]),
        ):
            left.plot(*series(name), color=color, label=label)
        left.set(xlabel="step", ylabel="L1 per dimension")
        left.set_ylim(bottom=0)
        left.legend()
        right.plot(*series("mrr"), color=_COLORS[1])
        right.set(xlabel="step", ylabel="mean reciprocal rank", ylim=(0, 1))
        right.set_title("validation retrieval")
        left.set_title("embedding loss")
        return _save(figure, run / "training.png")


def matching_curves(run: pathlib.Path) -> pathlib.Path:
    """Draws losses and validation of an estimator against steps.

    Args:
      run: the run directory.

    Returns:
      The picture, `training.png`.
    """
    records = list(metrics.read(run))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
        for i, name in enumerate(("numerical", "binary", "perceptual")):
            kept = [(r["step"], r[name]) for r in records if name in r]
            # A space may have no switches, and their loss is zero.
            if any(value for _, value in kept):
                left.plot(*np.array(kept).T, color=_COLORS[i], label=name)
        left.set(xlabel="step", title="training losses, unweighted")
        left.set_ylim(bottom=0)
        left.legend()
        kept = [(r["step"], r["a_mean"]) for r in records if "a_mean" in r]
        right.plot(*np.array(kept).reshape(-1, 2).T, "o-", color=_COLORS[1])
        right.set(xlabel="step", ylabel="a_mean")
        right.set_title("validation, rendered")
        return _save(figure, run / "training.png")


def distance_bars(
    summaries: Mapping[str, Mapping[str, float]],
    title: str,
    path: pathlib.Path,
) -> pathlib.Path:
    """Draws mean distances with their intervals, least on top.

    Args:
      summaries: by method, "mean", "low" and "high".
      title: what was matched.
      path: where to save the picture.

    Returns:
      The path.
    """
    ordered = sorted(summaries.items(), key=lambda item: -item[1]["mean"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 0.6 + 0.35 * len(ordered)))
        for place, (_, s) in enumerate(ordered):
            axes.plot([s["low"], s["high"]], [place] * 2, color=_COLORS[0])
            axes.plot(s["mean"], place, "o", color=_COLORS[0])
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="a_mean, with 95 % interval")
        axes.set_title(title)
        return _save(figure, path)


def rank_histogram(
    ranks: Mapping[str, Float[np.ndarray, " samples"]],
    candidates: int,
    title: str,
    path: pathlib.Path,
) -> pathlib.Path:
    """Draws how far down the list the right sound was found.

    Args:
      ranks: by model, ranks in [1, candidates].
      candidates: length of the list.
      title: what was ranked.
      path: where to save the picture.

    Returns:
      The path.
    """
    top = int(np.ceil(np.log2(candidates)))
    # Bins of ranks 1, 2, 3-4, 5-8, ...; tied ranks may be halves.
    edges = np.concatenate([[0.75], 2.0 ** np.arange(top + 1) + 0.25])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 3))
        width = 0.8 / len(ranks)
        for i, (name, found) in enumerate(ranks.items()):
            share = np.histogram(found, edges)[0] / len(found)
            place = np.arange(len(share)) + (i + 0.5) * width - 0.4
            axes.bar(place, share, width, label=name, color=_COLORS[i % 5])
        labels = ["1"] + [
            f"{2**k // 2 + 1}-{2**k}" if k > 1 else "2"
            for k in range(1, top + 1)
        ]
        axes.set_xticks(range(len(labels)), labels)
        axes.tick_params(axis="x", rotation=45)
        axes.set(xlabel=f"rank among {candidates:,}", ylabel="share of presets")
        axes.grid(axis="x", visible=False)
        axes.set_title(title)
        axes.legend()
        return _save(figure, path)


def embedding_map(
    audio: Float[np.ndarray, "samples embedding"],
    predicted: Float[np.ndarray, "samples embedding"],
    title: str,
    path: pathlib.Path,
    *,
    shown: int = 400,
) -> pathlib.Path:
    """Draws true and predicted embeddings on their two main axes.

    A line joins each preset's prediction to the embedding of its sound.

    Args:
      audio: g(s(x)).
      predicted: f(x), same order.
      title: what is shown.
      path: where to save the picture.
      shown: how many presets are drawn at most; the axes are fitted to all.

    Returns:
      The path.
    """
    mean = audio.mean(0)
    _, spread, axes_of = np.linalg.svd(audio - mean, full_matrices=False)
    share = (spread**2 / max((spread**2).sum(), 1e-30))[:2]
    a, p = ((x[:shown] - mean) @ axes_of[:2].T for x in (audio, predicted))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5, 5))
        axes.plot([a[:, 0], p[:, 0]], [a[:, 1], p[:, 1]], color="0.75", lw=0.5)
        axes.scatter(*a.T, s=8, color=_COLORS[0], label="sound, g(s(x))")
        axes.scatter(*p.T, s=8, color=_COLORS[1], label="preset, f(x)")
        axes.set(
            xlabel=f"first principal axis ({share[0]:.0%})",
            ylabel=f"second principal axis ({share[1]:.0%})",
        )
        axes.set_title(title)
        axes.legend()
        return _save(figure, path)
