"""Scores a proxy beside two baselines, on synthetic and real presets.

Retrieval is one-versus-all among `config.evaluation.subset` presets, repeated
over random subsets (mean and spread), in both directions. The baselines, the
mean embedding and ridge regression on the one-hot preset, are fitted on the
same training data.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float

from datasets import loader
from launch import Config
from launch.runs import (
    build,
    checkpoints,
    data,
    making,
    noise,
    opened,
    plots,
    tables,
)
from proxy import linear, retrieval, spaces
from proxy import splits as proxy_splits

Predict = Callable[[Float[np.ndarray, "samples parameters"]], np.ndarray]
_TOP = (1, 5, 10)
# Its queries are a part of what is ranked.
FAR = "queries: no near copies"
# Embeddings kept for the page, and those that a picture's axes are fitted to.
_KEPT = 1024
_DRAWN = 4096
# Mean absolute difference of embeddings that are one sound's, unless the noise
# of a plug-in is more. Dexed's two engines: 6e-7 at most, in 48 voices.
_ALIKE = 1e-4
_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@jax.jit
def _rank(predicted: jax.Array, audio: jax.Array) -> dict[str, Any]:
    """Ranks of a whole subset by distance, and the gap between its kinds."""
    return {
        "ranks": {
            metric: retrieval.one_vs_all(predicted, audio, metric)._asdict()
            for metric in ("l1", "cosine")
        },
        "l1": jnp.abs(predicted - audio).mean(1),
        "gap": {
            "centroid_distance": retrieval.centroid_distance(audio, predicted),
            "separability": retrieval.separability(audio, predicted),
        },
    }


_ceiling = jax.jit(retrieval.ceiling, static_argnames="most")


def _score(found: dict[str, Any], count: int, query: Any) -> dict[str, Any]:
    """Every metric of those presets of a subset of `count` that `query`."""
    asked = (found["ranks"], found["l1"])
    by_distance, l1 = jax.tree.map(lambda x: jnp.asarray(x[query]), asked)
    scores = {}
    for name, ranks in by_distance["l1"].items():
        scores[f"mrr/{name}"] = retrieval.mean_reciprocal_rank(ranks)
        for top in _TOP[1:]:
            scores[f"mrr@{top}/{name}"] = retrieval.mean_reciprocal_rank(
                ranks, top
            )
        share = retrieval.normalized(ranks, count)
        scores[f"mean_normalized_rank/{name}"] = share.mean()
        scores[f"median_normalized_rank/{name}"] = np.median(share)
    for metric, by_metric in by_distance.items():
        for name, ranks in by_metric.items():
            for top in _TOP:
                key = f"recall@{top}_{metric}/{name}"
                scores[key] = retrieval.recall(ranks, top)
    return {**scores, "l1": l1.mean(), **found["gap"]}


def _drawn(count: int, subset: int, seed: int) -> np.ndarray:
    """Rows of a random subset, ascending."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.permutation(count)[:subset])


def ceiling(
    columns: loader.Columns, alike: float, *, subset: int, seed: int
) -> dict[str, float]:
    """What a perfect proxy would find in the first gallery of `score`.

    Args:
      columns: "embedding", g(s(x)).
      alike: mean absolute difference of embeddings of sounds that are alike.
      subset: see `score`.
      seed: see `score`.

    Returns:
      See `retrieval.ceiling`; "gallery", the number of sounds; "within", the
      difference.
    """
    count = len(columns["embedding"])
    chosen = _drawn(count, subset, seed)
    audio = jnp.asarray(columns["embedding"][chosen])
    found = {k: float(v) for k, v in _ceiling(audio, most=alike).items()}
    return {"gallery": len(chosen), "within": alike, **found}


def _limits(ceilings: dict[str, dict[str, float]]) -> str:
    """A line to print."""
    return "; ".join(
        f"{where}: {found['alike']:.1%} of {found['gallery']:,} sounds have "
        f"another within {found['within']:g}, at best R@1 "
        f"{found['recall@1']:.3f}, MRR {found['mrr']:.3f}"
        for where, found in ceilings.items()
    )


def score(
    predict: Predict,
    columns: loader.Columns,
    *,
    subset: int,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Scores predictions over random subsets.

    Each subset is read and predicted by itself, so that memory does not grow
    with the number of presets.

    Args:
      predict: the function f from presets to embeddings.
      columns: "preset" and "embedding", g(s(x)), in the same order; "query",
        where there is one, tells which look for their partners among all and
        are counted; the modality gap stays that of all.
      subset: number of presets in a subset, at most all of them.
      repeats: number of subsets; one when a subset is everything.
      seed: subset i is drawn with seed + i.

    Returns:
      "metrics" (name to mean and standard deviation over subsets), "ranks"
      (of the first subset, preset to audio), "subset", "repeats" and "count".
    """
    count = len(columns["preset"])
    subset = min(subset, count)
    repeats = repeats if subset < count else 1
    kept, first = [], None
    for i in tqdm.trange(
        repeats, desc="subsets", leave=False, disable=repeats == 1
    ):
        chosen = _drawn(count, subset, seed + i)
        preset, audio = (columns[k][chosen] for k in ("preset", "embedding"))
        loader.release(columns)
        found = jax.device_get(_rank(predict(preset), audio))
        query = columns["query"][chosen] if "query" in columns else ...
        kept.append(_score(found, subset, query))
        ranks = found["ranks"]["l1"]["preset_to_audio"]
        first = ranks if first is None else first
    metrics = {
        name: {
            "mean": float(np.mean([k[name] for k in kept])),
            "std": float(np.std([k[name] for k in kept])),
        }
        for name in kept[0]
    }
    return {
        "metrics": metrics,
        "ranks": first,
        "subset": subset,
        "repeats": repeats,
        "count": count,
    }


def test_sets(
    config: Config,
    dataset: data.Dataset,
    seen: data.Source | None = None,
) -> dict[str, loader.Columns]:
    """What a run is tested on.

    "synthetic" is the test split where there is one, and "hand-crafted", with
    a bank, its test split, whatever was learned from. `FAR` is the same once
    more: among all of those, presets look for their partners that are no near
    copies of training presets (`proxy.splits.near_copies`): those of `seen`, or
    of the same bank.

    Raises:
      ValueError: when the bank is so small that its test split is empty.
    """
    sets: dict[str, loader.Columns] = {}
    if dataset.synthetic is not None:
        sets["synthetic"] = dataset.synthetic.columns("test")
    if dataset.handcrafted is not None:
        crafted = dataset.handcrafted
        if "test" not in crafted.splits:
            raise ValueError(
                f"{config.presets}: too few presets for a test split; give "
                "another bank, or none"
            )
        held_out = sets["hand-crafted"] = crafted.columns("test")
        seen = seen or crafted
        if "train" in seen.splits:
            far = ~proxy_splits.near_copies(
                held_out["preset"], seen.columns("train")["preset"]
            )
            if 1 < far.sum() < len(far):
                sets[FAR] = {**held_out, "query": far}
    return sets


def fit_baselines(config: Config, dataset: data.Dataset) -> dict[str, Predict]:
    """Fits the baselines on the training split, block by block.

    It is that of the synthetic presets, where there are any. The penalty of
    ridge regression is the best of five on the validation split, by L1.
    """
    space = spaces.get(config.synth)
    moments = jax.jit(
        lambda preset, y: linear.moments(space.to_relaxed(preset), y)
    )
    total: Any = None
    if dataset.synthetic is not None:
        source = dataset.synthetic
        columns = data.synthetic_columns(config, source)
    else:
        source = data.training_source(config.source, dataset)
        columns = source.columns("train")
    for _, block in loader.blocks(columns, 16_384):
        part = moments(block["preset"], block["embedding"])
        # Double precision: millions of rows would wear out single floats.
        part = jax.tree.map(lambda x: np.asarray(x, np.float64), part)
        total = part if total is None else jax.tree.map(np.add, total, part)

    def fit(solve: Callable[..., Any], *args: float) -> Any:
        with jax.enable_x64(True):
            model = solve(jax.tree.map(jnp.asarray, total), *args)
        return jax.tree.map(np.float32, model)

    def predictor(model: linear.Linear) -> Predict:
        apply = jax.jit(
            lambda preset: linear.apply(model, space.to_relaxed(preset))
        )
        return lambda presets: np.asarray(apply(np.asarray(presets)))

    held_out = source.columns("validation")
    tried = [predictor(fit(linear.fit_ridge, p)) for p in _PENALTIES]
    errors = [
        np.abs(f(held_out["preset"]) - held_out["embedding"]).mean()
        for f in tried
    ]
    return {
        "mean embedding": predictor(fit(linear.fit_mean)),
        "ridge regression": tried[int(np.argmin(errors))],
    }


def _trained_on(
    config: Config, dataset: data.Dataset, step: int
) -> dict[str, int]:
    """How many presets of each kind; none before the first step."""
    if not step:
        return {"synthetic": 0, "handcrafted": 0}
    used = {"synthetic": dataset.synthetic, "handcrafted": dataset.handcrafted}
    if config.source != "both":
        used = {config.source: used[config.source]}
    counts = {name: s.spec.rows("train") for name, s in used.items() if s}
    if "synthetic" in counts:
        counts["synthetic"] = config.get("train_rows") or counts["synthetic"]
    return {"synthetic": 0, "handcrafted": 0, **counts}


# Columns of the printed table: title, metric, number of decimals.
_COLUMNS = (
    ("MRR p>a", "mrr/preset_to_audio", 4),
    ("MRR a>p", "mrr/audio_to_preset", 4),
    ("R@1 p>a", "recall@1_l1/preset_to_audio", 3),
    ("R@1 a>p", "recall@1_l1/audio_to_preset", 3),
    ("R@10 p>a", "recall@10_l1/preset_to_audio", 3),
    ("R@10 a>p", "recall@10_l1/audio_to_preset", 3),
    ("norm. rank", "mean_normalized_rank/preset_to_audio", 4),
    ("L1", "l1", 4),
    ("centroids", "centroid_distance", 3),
    ("told apart", "separability", 3),
)
HEADERS = ("presets", "model", *(title for title, _, _ in _COLUMNS))


def rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The cells of a table below `HEADERS`, a row for each model.

    Args:
      results: scores by data ("synthetic", "hand-crafted"), by model.
    """
    cells = []
    for where, models in results.items():
        for name, scores in models.items():
            cells.append([f"{where}, {scores['subset']:,}", name])
            for _, metric, digits in _COLUMNS:
                value = scores["metrics"][metric]
                cell = f"{value['mean']:.{digits}f}"
                if metric.startswith("mrr/") and scores["repeats"] > 1:
                    cell += f" ± {value['std']:.{digits}f}"
                cells[-1].append(cell)
    return cells


def table(results: dict[str, dict[str, Any]], bank: str) -> str:
    """The results as a Markdown table.

    Args:
      results: scores by data ("synthetic", "hand-crafted"), by model.
      bank: where the hand-crafted presets came from, "" when there are none:
        their row says so.
    """
    cells = rows(results)
    if "hand-crafted" not in results:
        cells.append([data.NO_BANK])
    text = tables.markdown(cells, HEADERS)
    return f"{text}\nhand-crafted presets: {bank}" if bank else text


def evaluate(
    run: str, which: str, presets: str | None
) -> tuple[dict[str, Any], str]:
    """Scores a run and writes the results into it.

    Args:
      run: the run directory, or `pretrained:NAME`.
      which: "best" or "last" checkpoint.
      presets: banks in place of the config's, or None.

    Returns:
      The results by data and model, and the bank they used, "" for none.
    """
    proxy = opened.open_proxy(run, which)
    config, state, step = proxy.config, proxy.state, proxy.step
    folder = checkpoints.place(run)
    tested = dataset = making.of_run(folder, config)
    if presets is not None:
        config.presets = presets
        tested = data.Dataset(dataset.synthetic, making.crafted(config))
    print(f"{run}: {which} checkpoint, step {step:,}{noise.of_run(folder)}")
    predict = build.predictor(config)
    models: dict[str, Predict] = {
        **fit_baselines(config, dataset),
        config.encoder: lambda x: predict(state, x),
    }
    results: dict[str, dict[str, Any]] = {}
    ceilings: dict[str, dict[str, float]] = {}
    floor = noise.find(folder)
    alike = max(_ALIKE, noise.worst(floor).get("embedding", 0) if floor else 0)
    protocol = dict(config.evaluation)
    for where, columns in test_sets(
        config, tested, dataset.handcrafted
    ).items():
        scores = results[where] = {
            name: score(model, columns, **protocol)
            for name, model in models.items()
        }
        found = {name: s.pop("ranks") for name, s in scores.items()}
        if where == FAR:
            continue
        ceilings[where] = ceiling(
            columns, alike, subset=protocol["subset"], seed=protocol["seed"]
        )
        audio = np.array(columns["embedding"][:_DRAWN])
        predicted = models[config.encoder](columns["preset"][:_DRAWN])
        slug = where.replace(" ", "_").replace("-", "_")
        plots.rank_histogram(
            found,
            scores[config.encoder]["subset"],
            f"{config.name}: sound of a preset, {where}",
            folder / f"ranks_{slug}.png",
        )
        plots.embedding_map(
            audio,
            predicted,
            f"{config.name}: {where}",
            folder / f"embeddings_{slug}.png",
        )
        # For the page: some of them, not the ten thousands there may be.
        np.savez_compressed(
            folder / f"embeddings_{slug}.npz",
            audio=audio[:_KEPT],
            predicted=predicted[:_KEPT],
        )
    content = {"checkpoint": which, "step": step, "results": results}
    content["bank"] = config.presets
    content["ceiling"] = ceilings
    print(f"ceiling: {_limits(ceilings)}")
    content["trained_on"] = _trained_on(config, dataset, step)
    text = json.dumps(content, indent=1) + "\n"
    (folder / "evaluation.json").write_text(text)
    return results, config.presets
