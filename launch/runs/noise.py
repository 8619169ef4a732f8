"""The noise floor of a plug-in: how far its renders are from repeating.

A plug-in that keeps state renders the same preset differently. No audio
metric below that figure means anything, so it is measured when data is made,
kept beside the shards, and printed with every audio metric.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from datasets import drawing, engines, files
from launch.runs import tables
from matching import distances

FILE = "noise.json"
METRICS = ("stft", "mstft", "mel", "mfcc", "a_mean")
# What the renders of presets, one after the other, are compared with.
COMPARISONS = {
    "order": "in the reverse order, in the same process",
    "process": "each in a fresh process",
    "fresh": "of two fresh processes each, one with the other",
}
# Samples that differ by less than this are the same sound.
QUIET = 1e-6


def _differences(
    first: list[np.ndarray],
    again: list[np.ndarray],
    rate: int,
    embed: Callable[[np.ndarray], Any] | None,
) -> dict[str, float]:
    """Largest difference of two samples, and the mean of each distance."""
    a, b = np.stack(first), np.stack(again)
    apart = distances.measure(
        jnp.asarray(b), jnp.asarray(a), sample_rate=rate, chosen=METRICS
    )
    # Equal clips are at distance zero, whatever a distance's arithmetic says.
    same = (a == b).all(axis=1)
    embedded = {}
    if embed is not None:
        apart_by = np.abs(np.asarray(embed(b)) - np.asarray(embed(a))).mean()
        embedded["embedding"] = float(apart_by)
    return {
        "max_difference": float(np.abs(a - b).max()),
        **{
            name: float(np.where(same, 0, np.asarray(apart[name])).mean())
            for name in METRICS
        },
        **embedded,
    }


def measure(
    renderer: engines.Renderer,
    *,
    count: int = 8,
    embed: Callable[[np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """Renders the same presets twice, in two orders and in fresh processes.

    Args:
      renderer: engine of the plug-in; its workers are ended.
      count: number of random presets that are heard.
      embed: an audio model at the engine's rate, `[batch, samples]` to
        `[batch, embedding]`.

    Returns:
      "presets" (how many), "plugin" and "host" (versions), and for each of
      `COMPARISONS` the largest difference of two samples and the mean
      distance over presets, by `METRICS`, with an audio model also the mean
      absolute difference of "embedding"; "fresh" only where a fresh process
      made a difference. "dead" are the parameters that change nothing, see
      `engines.Renderer.dead`.

    Raises:
      ShardError: (a `ValueError`) no preset gives a sound.
      RenderError: one that did no longer does.
    """
    rows = drawing.render_rows(renderer, 0, "noise", range(count))
    values = np.asarray(renderer.space.to_plugin(rows.presets))
    first = list(rows.audio)
    backwards = [renderer.render(row) for row in values[::-1]][::-1]

    def fresh(row: Float[np.ndarray, " parameters"]) -> np.ndarray:
        renderer.close()
        return renderer.render(row)

    alone = [fresh(row) for row in values]
    rate = renderer.settings.sample_rate
    floor = {
        "presets": len(first),
        "plugin": renderer.version,
        "host": renderer.host,
        "dead": renderer.dead(),
        "order": _differences(first, backwards, rate, embed),
        "process": _differences(first, alone, rate, embed),
    }
    if floor["process"]["max_difference"] > QUIET:
        again = [fresh(row) for row in values]
        floor["fresh"] = _differences(alone, again, rate, embed)
    return floor


def keep(
    directory: pathlib.Path, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The figures of a data set, measured when they are not there yet."""
    floor = read(directory)
    if floor is None:
        floor = make()
        text = json.dumps(floor, indent=1) + "\n"
        files.write_atomically(directory / FILE, text)
    return floor


def read(directory: pathlib.Path) -> dict[str, Any] | None:
    """The figures of a data set; None when its engine has no noise."""
    path = directory / FILE
    if not path.exists():
        return None
    return files.read_json(path)


def check(floor: dict[str, Any], varied: int, most: float | None) -> None:
    """Refuses a plug-in that ignores many of the parameters presets vary.

    Args:
      floor: what `measure` returned.
      varied: number of parameters that presets vary.
      most: largest share of them that may change nothing; a tenth when None.

    Raises:
      ValueError: naming them, and how to go on all the same.
    """
    most = 0.1 if most is None else most
    lost = floor.get("dead", [])
    if len(lost) > most * varied:
        raise ValueError(
            f"{floor['plugin']}: {len(lost)} of the {varied} parameters that "
            f"presets vary change neither its sound nor its state "
            f"({_listed(lost)}). Is it whole, and the version that the table "
            "is of? `python -m launch.plugin inspect` tells more; to build "
            f"all the same: --config.host.dead={len(lost) / varied:.2f}, "
            "rounded up"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def find(run: str | pathlib.Path) -> dict[str, Any] | None:
    """The figures of a run's data, of a proxy or of an estimator."""
    config = files.read_json(pathlib.Path(run) / "config.json")
    if not config.get("data"):
        return None
    root = pathlib.Path(config["data"]).expanduser()
    for path in sorted(root.glob(f"*/{FILE}")):
        return read(path.parent)
    return None


def of_run(run: str | pathlib.Path, before: str = "\n") -> str:
    """What to print beside the audio metrics of a run; often nothing.

    Args:
      run: directory of a run, of a proxy or of an estimator.
      before: text that goes before it where there is something to print.
    """
    floor = find(run)
    return "" if floor is None else before + describe(floor)


def worst(floor: dict[str, Any]) -> dict[str, float]:
    """The figures of the comparison that is the farthest from repeating."""
    return max((floor["order"], floor["process"]), key=lambda f: f["a_mean"])


def describe(floor: dict[str, Any] | None) -> str:
    """One line to print beside audio metrics; "" for no noise to speak of."""
    if floor is None:
        return ""
    far = worst(floor)
    shown = " ".join(f"{name} {far[name]:.3g}" for name in METRICS)
    return (
        f"noise floor of {floor['plugin']}, the same preset rendered again: "
        f"{shown}"
    )


def table(floor: dict[str, Any]) -> str:
    """A Markdown table of the figures, and what to do about them."""
    kept = [name for name in COMPARISONS if name in floor]
    rows = [
        [
            COMPARISONS[name],
            *(f"{floor[name][k]:.3g}" for k in ("max_difference", *METRICS)),
        ]
        for name in kept
    ]
    largest = {name: floor[name]["max_difference"] for name in kept}
    lost = floor.get("dead", [])
    dead = f"Change nothing: {_listed(lost)}.\n" if lost else ""
    if max(largest.values()) <= QUIET:
        advice = "A render depends on its preset alone."
    elif largest.get("fresh", 0.0) <= QUIET:
        advice = (
            "A render depends on those before it: set --config.host.isolation"
            "=process, and --config.host.warm_up=0."
        )
    else:
        advice = (
            "Renders do not repeat: look for a parameter that draws random "
            "numbers, and hold it; else read audio metrics with this in mind."
        )
    head = ["rendered again", "largest difference", *METRICS]
    return (
        f"{floor['plugin']}, {floor['presets']} presets one after the other, "
        f"compared with the same\n{tables.markdown(rows, head)}\n{dead}{advice}"
    )
