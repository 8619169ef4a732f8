"""Comparisons of estimators, with intervals and tests over sounds."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from launch.runs import data, tables

IN_DOMAIN, OUT_OF_DOMAIN = "in-domain", "out-of-domain"
ESTIMATOR = "estimator"
DISTANCES = ("stft", "mstft", "mel", "mfcc", "dtw_mfcc", "sot")
_PARAMETERS = ("numerical_mae", "binary_accuracy", "categorical_accuracy")


def bootstrap(
    values: Float[np.ndarray, " sounds"], resamples: int, seed: int
) -> dict[str, float]:
    """Mean and the 95 % interval of it over resampled sounds."""
    low = high = values.mean()
    if len(values) > 1:
        # Named `rng` from SciPy 1.15 on, which takes the old name, too.
        source: Any = {"random_state": np.random.default_rng(seed)}
        low, high = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=resamples,
            batch=100,
            method="percentile",
            **source,
        ).confidence_interval
    return {
        "mean": float(values.mean()),
        "low": float(low),
        "high": float(high),
    }


def _p_value(one: Any, other: Any) -> float:
    """Of Wilcoxon's signed-rank test."""
    difference = np.asarray(one) - np.asarray(other)
    if not difference.any():
        return 1.0
    tested: Any = stats.wilcoxon(difference)
    return float(f"{tested.pvalue:.2g}")


def table(content: dict[str, Any]) -> str:
    """A run's evaluation.json as a Markdown table."""
    rows = []
    for where, entry in content["sets"].items():
        ours = entry["methods"][ESTIMATOR]["distances"]["a_mean"]
        for name, method in entry["methods"].items():
            summary = method["summary"]
            p = ""
            if name != ESTIMATOR:
                p = f"{_p_value(ours, method['distances']['a_mean']):.2g}"
            means = {n: s["mean"] for n, s in summary.items()}
            means |= method.get("parameters", {})
            rows.append(
                [
                    f"{where}, {len(ours)}",
                    name,
                    tables.interval(summary["a_mean"]),
                    p,
                    *(
                        f"{means[n]:.3f}" if n in means else ""
                        for n in (*DISTANCES, *_PARAMETERS)
                    ),
                ]
            )
    headers = ["sounds", "method", "a_mean [95 %]", "p", *DISTANCES]
    text = tables.markdown(rows, [*headers, *_PARAMETERS])
    for where, entry in content["sets"].items():
        if count := entry.get("near_copies"):
            text += (
                f"\n{where}: without {count:,} near copies of training presets"
            )
    return f"{text}{stand_in(content)}"


def stand_in(content: dict[str, Any]) -> str:
    """Says so where synthetic presets stand in for hand-crafted ones."""
    if not content["stand_in"]:
        return ""
    return (
        f"\n{data.NO_BANK}: in-domain sounds and baselines are held-out "
        "synthetic presets"
    )


def compare(results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Compares runs by schedule and decoding, from the content of each's JSON.

    Where they differ in what they hear or in `num_train`, by that as well.

    Returns:
      By set, "groups": {label: runs, seeds' means of a_mean, per-sound
      a_mean over seeds, summary} and "pairs": {"A - B": difference with its
      interval, p, n}. Baselines are groups, too.
    """
    compared: dict[str, Any] = {}
    differing = [
        field
        for field in ("hears", "num_train")
        if len({content.get(field) for content in results.values()}) > 1
    ]
    for where in next(iter(results.values()))["sets"]:
        groups: dict[str, Any] = {}
        baselines: dict[str, Any] = {}
        for run, content in results.items():
            label = content["schedule"]
            if label != "ploss":
                label += f", {content['decoding']}"
            for field in differing:
                label += f", {field} {content[field]}"
            group = groups.setdefault(label, {"runs": [], "sounds": []})
            group["runs"].append(run)
            for name, method in content["sets"][where]["methods"].items():
                sounds = method["distances"]["a_mean"]
                if name == ESTIMATOR:
                    group["sounds"].append(sounds)
                else:
                    baselines[name] = {"runs": [], "sounds": [sounds]}
        groups |= baselines
        for group in groups.values():
            per_run = np.array(group["sounds"])
            group["means"] = per_run.mean(1).tolist()
            group["sounds"] = per_run.mean(0).tolist()
            group["summary"] = bootstrap(per_run.mean(0), 10_000, 42)
        pairs = {}
        for one, other in itertools.combinations(groups, 2):
            x, y = (np.array(groups[g]["sounds"]) for g in (one, other))
            pairs[f"{one} - {other}"] = {
                **bootstrap(x - y, 10_000, 42),
                "p": _p_value(x, y),
                "n": len(x),
            }
        compared[where] = {"groups": groups, "pairs": pairs}
    return compared


def comparison_table(compared: dict[str, Any]) -> str:
    """A comparison as Markdown tables."""
    texts = []
    for where, entry in compared.items():
        groups = sorted(
            entry["groups"].items(), key=lambda item: item[1]["summary"]["mean"]
        )
        rows = []
        for label, group in groups:
            means = group["means"]
            rows.append(
                [
                    label,
                    str(len(means)) if group["runs"] else "",
                    tables.interval(group["summary"]),
                    f"{np.std(means, ddof=1):.3f}" if len(means) > 1 else "",
                ]
            )
        headers = ["method", "seeds", "a_mean [95 %]", "spread over seeds"]
        text = tables.markdown(rows, headers)
        texts.append(f"{where}, {len(groups[0][1]['sounds'])} sounds\n\n{text}")
        rows = [
            [pair, tables.interval(found, "+"), f"{found['p']:.2g}"]
            for pair, found in entry["pairs"].items()
        ]
        headers = ["pair", "difference [95 %]", "p"]
        texts.append(tables.markdown(rows, headers))
    return "\n\n".join(texts)
