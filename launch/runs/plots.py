"""Pictures of a run, saved where people look: in its directory."""

import io
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.ticker import LogLocator, NullLocator

from launch.runs import metrics
from matching import distances

matplotlib.use("Agg")

STYLE: dict[Any, Any] = {
    "figure.dpi": 120,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    # Names from outside may hold dollar signs.
    "text.parse_math": False,
}
# Okabe and Ito's palette, told apart by colour-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
# Presets in a map of embeddings.
_SHOWN = 400


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
    return path


def _curve(axes: Any, records: list[Any], name: str, *args, **style) -> None:
    """Draws a metric against steps where it was measured."""
    kept = [(r["step"], r[name]) for r in records if name in r]
    axes.plot(*np.array(kept).reshape(-1, 2).T, *args, **style)


def training_curves(run: pathlib.Path) -> pathlib.Path:
    """Draws a proxy's loss and validation, `training.png` of the run."""
    records = list(metrics.read(run))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
        _curve(left, records, "loss", color=_COLORS[0], label="training")
        _curve(left, records, "l1", color=_COLORS[1], label="validation")
        left.set(xlabel="step", ylabel="L1 per dimension")
        left.set(title="embedding loss", ylim=(0, None))
        left.legend()
        _curve(right, records, "mrr", color=_COLORS[1])
        right.set(xlabel="step", ylabel="mean reciprocal rank", ylim=(0, 1))
        right.set_title("validation retrieval")
        return _save(figure, run / "training.png")


def matching_curves(run: pathlib.Path) -> pathlib.Path:
    """Draws an estimator's losses and validation, likewise."""
    records = list(metrics.read(run))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
        for i, name in enumerate(("numerical", "binary", "perceptual")):
            # A space may have no switches, and their loss is zero.
            if any(r.get(name) for r in records):
                _curve(left, records, name, color=_COLORS[i], label=name)
        left.set(xlabel="step", title="training losses, unweighted")
        left.set_ylim(bottom=0)
        left.legend()
        _curve(right, records, "a_mean", "o-", color=_COLORS[1])
        right.set(xlabel="step", ylabel="a_mean")
        right.set_title("validation, rendered")
        return _save(figure, run / "training.png")


def size_curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    path: pathlib.Path,
) -> pathlib.Path:
    """Draws retrieval against the number of presets trained on.

    Args:
      panels: by what was tested, and by line, numbers of presets and mean
        reciprocal ranks; of several with the same number, the mean is drawn.
      path: where to save the picture; returned.
    """
    names = list(
        dict.fromkeys(name for lines in panels.values() for name in lines)
    )
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1,
            len(panels),
            figsize=(3.2 * len(panels), 3),
            sharey=True,
            squeeze=False,
        )
        for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
            for name, points in lines.items():
                place = names.index(name)
                sizes = sorted({size for size, _ in points})
                axes.plot(
                    sizes,
                    [np.mean([y for x, y in points if x == s]) for s in sizes],
                    "os^Dv"[place % 5] + "-",
                    color=_COLORS[place % 5],
                    label=name,
                )
            axes.set(xscale="log", yscale="log", title=title)
            axes.set(xlabel="synthetic presets trained on")
            # Plain numbers, as math is not parsed here.
            shown = {size for p in lines.values() for size, _ in p}
            axes.set_xticks(sorted(shown), [f"{x:,}" for x in sorted(shown)])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter("{x:g}")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
        grid[0][0].set(ylabel="MRR, audio to preset")
        figure.legend(
            *grid[0][0].get_legend_handles_labels(),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.02),
            ncols=2,
        )
        return _save(figure, path)


def distance_bars(
    summaries: Mapping[str, Mapping[str, float]],
    title: str,
    path: pathlib.Path,
) -> pathlib.Path:
    """Draws mean distances with their intervals, least on top.

    Args:
      summaries: numbers "mean", "low" and "high" by method.
      title: what was matched.
      path: where to save the picture; returned.
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
      ranks: ranks in [1, candidates] by model.
      candidates: length of the list.
      title: what was ranked.
      path: where to save the picture; returned.
    """
    top = int(np.ceil(np.log2(candidates)))
    # Bins of ranks 1, 2, 3-4, 5-8, ...; tied ranks may be halves.
    edges = np.concatenate([[0.75], 2.0 ** np.arange(top + 1) + 0.25])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6, 3))
        width = 0.8 / len(ranks)
        for i, (name, of_model) in enumerate(ranks.items()):
            share = np.histogram(of_model, edges)[0] / len(of_model)
            place = np.arange(len(share)) + (i + 0.5) * width - 0.4
            axes.bar(place, share, width, label=name, color=_COLORS[i % 5])
        labels = ["1", "2"][: top + 1]
        labels += [f"{2**k // 2 + 1}-{2**k}" for k in range(2, top + 1)]
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
    umap: bool = False,
) -> pathlib.Path:
    """Draws true and predicted embeddings in one plane, at most 400 presets.

    A line joins each preset's prediction to the embedding of its sound.

    Args:
      audio: embeddings g(s(x)) of the presets' sounds.
      predicted: predictions f(x), in the same order.
      title: what is shown.
      path: where to save the picture; returned.
      umap: whether the plane is UMAP's rather than that of the sounds' two
        principal axes, which are fitted to all of them.
    """
    if umap:
        a, p = _umap(audio[:_SHOWN], predicted[:_SHOWN])
        labels = ["UMAP 1", "UMAP 2"]
    else:
        mean = audio.mean(0)
        _, spread, axes_of = np.linalg.svd(audio - mean, full_matrices=False)
        share = (spread**2 / max((spread**2).sum(), 1e-30))[:2]
        a, p = ((x[:_SHOWN] - mean) @ axes_of[:2].T for x in (audio, predicted))
        labels = [
            f"{which} principal axis ({part:.0%})"
            for which, part in zip(("first", "second"), share, strict=True)
        ]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5, 5))
        axes.plot([a[:, 0], p[:, 0]], [a[:, 1], p[:, 1]], color="0.75", lw=0.5)
        axes.scatter(*a.T, s=8, color=_COLORS[0], label="sound, g(s(x))")
        axes.scatter(*p.T, s=8, color=_COLORS[1], label="preset, f(x)")
        axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
        if umap:
            axes.set(xticks=[], yticks=[])
        axes.legend()
        return _save(figure, path)


def _umap(audio: np.ndarray, predicted: np.ndarray) -> list[np.ndarray]:
    """McInnes, Healy, Melville, 2018; fitted to both, with a fixed seed."""
    both = np.concatenate([audio, predicted])
    with warnings.catch_warnings():
        # It tells of TensorFlow, which is not wanted.
        warnings.simplefilter("ignore")
        import umap

        fitted = umap.UMAP(
            n_neighbors=min(15, len(both) - 1),
            metric="manhattan",
            random_state=0,
            n_jobs=1,
            init="pca",
        )
        return np.split(np.asarray(fitted.fit_transform(both)), 2)


def sounds(
    clips: Mapping[str, Float[np.ndarray, " samples"]],
    sample_rate: int,
    path: pathlib.Path,
) -> pathlib.Path:
    """Draws waveforms and mel spectrograms beside each other.

    Args:
      clips: sounds of equal length by title.
      sample_rate: samples per second.
      path: where to save the picture, 480 x 320 pixels for each sound;
        returned.
    """
    batch = np.stack(list(clips.values()))
    mels = np.asarray(distances.kaldi_decibels(jnp.asarray(batch), sample_rate))
    seconds = batch.shape[1] / sample_rate
    height = max(np.abs(batch).max() * 1.05, 1e-3)
    # Least and greatest sample of about 480 pieces: quick to draw.
    size = max(batch.shape[1] // 480, 1)
    pieces = batch[:, : batch.shape[1] // size * size]
    pieces = pieces.reshape(len(batch), -1, size)
    time = np.linspace(0, seconds, pieces.shape[1])
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(
            2,
            len(batch),
            figsize=(4.8 * len(batch), 3.2),
            dpi=100,
            sharex=True,
            squeeze=False,
            height_ratios=(1, 2),
        )
        # Fixed, as to work the margins out takes as long as the drawing.
        count = len(batch)
        figure.subplots_adjust(
            0.14 / count, 0.14, 1 - 0.02 / count, 0.92, wspace=0.2
        )
        for i, title in enumerate(clips):
            wave, mel = axes[:, i]
            wave.fill_between(
                time, pieces[i].min(1), pieces[i].max(1), color=_COLORS[0]
            )
            wave.set(ylim=(-height, height), title=title, ylabel="amplitude")
            mel.imshow(
                mels[i].T,
                origin="lower",
                aspect="auto",
                extent=(0, seconds, 0, mels.shape[2]),
                vmin=mels.max() - 80,
                vmax=mels.max(),
                cmap="magma",
            )
            mel.set(xlabel="seconds", ylabel="mel band, 80 dB")
        figure.savefig(path)
        plt.close(figure)
    return path


def mel(
    clip: Float[np.ndarray, " samples"],
    sample_rate: int,
    loudest: float | None = None,
) -> bytes:
    """Draws a mel spectrogram alone, for a page that has its own axes.

    Args:
      clip: the sound, more than 513 samples.
      sample_rate: samples per second.
      loudest: level of the brightest colour, in dB as of
        `distances.kaldi_decibels`, 80 dB above the darkest; the clip's own
        when left out.

    Returns:
      A PNG file, one pixel for each of 128 bands and each frame.
    """
    levels = np.asarray(
        distances.kaldi_decibels(jnp.asarray(clip[None]), sample_rate)
    )[0]
    top = float(levels.max()) if loudest is None else loudest
    file = io.BytesIO()
    matplotlib.image.imsave(
        file,
        levels.T,
        vmin=top - 80,
        vmax=top,
        cmap="magma",
        origin="lower",
        format="png",
    )
    return file.getvalue()
