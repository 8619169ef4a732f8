"""Scores estimators by the sound of what they predict, beside baselines.

    python -m launch.evaluate --run RUN --nsynth FOLDER
    python -m launch.evaluate --runs RUN,RUN,RUN --nsynth FOLDER --out DIR

Every prediction is rendered with the real engine and compared with its
target: in-domain, the test split of the hand-crafted presets; out of domain,
notes of a folder in NSynth's format, rendered at their pitch and held as long
as they are. Baselines for the same targets: the mean preset of the training
split, a random one of it, and the one whose sound is nearest in the space of
the audio model.

Several runs are compared by schedule and decoding: seeds are averaged sound
by sound, intervals are bootstrapped over sounds (95 %), and each pair of
groups is tested with Wilcoxon's signed-rank test over sounds.

Files, below RUN/matching (or DIR, for several runs: comparison.json and
comparison_<set>.png):

    evaluation.json
      run, step, schedule, decoding, seed, stand_in (whether synthetic
      presets stand in for hand-crafted ones), sample_rate, options
      sets: {"in-domain" | "out-of-domain":
        names, notes: of the targets, [sounds]
        audio: {position of an exported target: file}
        methods: {"estimator" | "mean preset" | "random preset" |
          "nearest neighbour":
            distances: {name: [sounds]}, summary: {name: {mean, low, high}}
            parameters: {name: mean}, in-domain only
            failed: predictions that could not be rendered, silent instead
            presets: file of the predicted presets, in the order of names
            audio: {position of an exported prediction: file}}}
    <set>/<method>.json, <set>/<method>/000.wav, <set>/target/000.wav
    distances_<set>.png
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tabulate
from jaxtyping import Float, Int
from scipy import stats
from scipy.io import wavfile

from datasets import engines, loader, nsynth, shards
from datasets.presets import bank as handcrafted
from launch.evaluate import notes as table_notes
from launch.runs import build, data, noise, plots, rendering
from launch.runs import opened as matching_run
from matching import distances
from proxy.space import ParameterSpace

IN_DOMAIN, OUT_OF_DOMAIN = "in-domain", "out-of-domain"
ESTIMATOR = "estimator"
_EXPORT = 16
_FOLDER, _FILE = "matching", "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Targets:
    """Sounds to be matched.

    Attributes:
      clips: at the run's sample rate.
      names: of each.
      notes: MIDI note of each.
      hold: seconds that they are held.
      embeddings: by the audio model.
      presets: that made them, None where nobody knows.
    """

    clips: Float[np.ndarray, "sounds samples"]
    names: Sequence[str]
    notes: Sequence[int]
    hold: float
    embeddings: Float[np.ndarray, "sounds embedding"]
    presets: Float[np.ndarray, "sounds parameters"] | None


@dataclasses.dataclass(frozen=True)
class Options:
    """What is evaluated on.

    Attributes:
      nsynth: a folder in NSynth's format, "" for none.
      families: of its notes, all when empty.
      sources: likewise.
      pitches: likewise, None for all.
      limit: of the sounds of each set, a random part of so many; 0 for all.
      export: how many sounds of each set are written as WAV files, beside
        those that the page shows.
    """

    nsynth: str = ""
    families: Sequence[str] = ()
    sources: Sequence[str] = ()
    pitches: Sequence[int] | None = None
    limit: int = 0
    export: int = _EXPORT
    distances: Sequence[str] = distances.names()

    def __post_init__(self) -> None:
        for name in set(self.distances) - {"a_mean"}:
            distances.get(name)  # says so when there is none


# Targets ---------------------------------------------------------------------


def _some(rows: int, limit: int, seed: int) -> Int[np.ndarray, " rows"]:
    """Row numbers, a random part of so many when there are more."""
    if not limit or limit >= rows:
        return np.arange(rows)
    return np.sort(loader.permutation(rows, seed, 0)[:limit]).astype(int)


def _in_domain(opened: matching_run.MatchingRun, options: Options) -> Targets:
    source = opened.handcrafted
    columns = source.columns(
        "test", ("preset", "embedding", "audio", "audio_scale")
    )
    rows = np.arange(source.spec.rows("test"))
    rows = rows[_some(len(rows), options.limit, opened.config.evaluation.seed)]
    names = opened.names("test")
    return Targets(
        clips=shards.dequantise(
            columns["audio"][rows], columns["audio_scale"][rows]
        ),
        names=[names[row] for row in rows],
        notes=[opened.settings.note] * len(rows),
        hold=opened.settings.hold,
        embeddings=columns["embedding"][rows],
        presets=columns["preset"][rows],
    )


def _out_of_domain(
    opened: matching_run.MatchingRun, options: Options
) -> Targets:
    notes = nsynth.find(
        options.nsynth,
        families=options.families,
        sources=options.sources,
        pitches=options.pitches,
    )
    chosen = _some(len(notes), options.limit, opened.config.evaluation.seed)
    notes = [notes[i] for i in chosen]
    settings = opened.settings
    clips = nsynth.load(notes, settings.sample_rate, settings.samples)
    config = opened.config
    embed = build.embedder(config.audio_model, config.weights)
    size, parts = opened.config.embed_batch, []
    for start in range(0, len(clips), size):
        part = clips[start : start + size]
        padded = np.pad(part, [(0, size - len(part)), (0, 0)])
        parts.append(np.asarray(embed(padded))[: len(part)])
    return Targets(
        clips=clips,
        names=[note.name for note in notes],
        notes=[note.pitch for note in notes],
        hold=nsynth.HOLD,
        embeddings=np.concatenate(parts),
        presets=None,
    )


def targets(
    opened: matching_run.MatchingRun, options: Options
) -> dict[str, Targets]:
    """The sounds that a run is tested on, by set."""
    found = {IN_DOMAIN: _in_domain(opened, options)}
    if options.nsynth:
        found[OUT_OF_DOMAIN] = _out_of_domain(opened, options)
    return found


# Methods ---------------------------------------------------------------------


def mean_preset(
    presets: Float[np.ndarray, "rows parameters"], space: ParameterSpace
) -> Float[np.ndarray, " parameters"]:
    """Means of numerical values, the most frequent switch or category."""
    found = presets.mean(0, dtype=np.float64)
    for column in (*space.binary, *space.categorical):
        values, counts = np.unique(presets[:, column], return_counts=True)
        found[column] = values[np.argmax(counts)]
    return np.asarray(space.snap(found[None]), np.float32)[0]


def _nearest(
    embeddings: Float[np.ndarray, "sounds embedding"],
    bank: Float[np.ndarray, "entries embedding"],
) -> Int[np.ndarray, " sounds"]:
    """The entry of least L1 distance from each embedding."""
    return np.array([np.abs(bank - e).sum(1).argmin() for e in embeddings])


def baselines(
    opened: matching_run.MatchingRun, goal: Targets
) -> dict[str, Float[np.ndarray, "sounds parameters"]]:
    """Presets that the baselines choose, from the whole training split."""
    bank = opened.handcrafted.columns("train")
    presets = np.asarray(bank["preset"])
    count = len(goal.clips)
    rng = np.random.default_rng(opened.config.evaluation.seed)
    near = _nearest(goal.embeddings, np.asarray(bank["embedding"]))
    return {
        "mean preset": np.tile(mean_preset(presets, opened.space), (count, 1)),
        "random preset": presets[rng.integers(len(presets), size=count)],
        "nearest neighbour": presets[near],
    }


def bootstrap(
    values: Float[np.ndarray, " sounds"], resamples: int, seed: int
) -> dict[str, float]:
    """Mean and the 95 % interval of it over resampled sounds."""
    rng = np.random.default_rng(seed)
    count = len(values)
    # In parts, as all indices together may be large.
    means = [
        values[rng.integers(count, size=(part, count))].mean(1)
        for part in [100] * (resamples // 100)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return {
        "mean": float(values.mean()),
        "low": float(low),
        "high": float(high),
    }


def _score(
    opened: matching_run.MatchingRun,
    renderer: engines.Renderer,
    goal: Targets,
    presets: Float[np.ndarray, "sounds parameters"],
    options: Options,
    label: str,
) -> tuple[dict[str, Any], Float[np.ndarray, "sounds samples"]]:
    """Renders presets for the targets and measures them."""
    clips, failed = rendering.render(
        renderer,
        presets,
        notes=goal.notes,
        workers=opened.config.workers,
        label=f"{label}: rendering",
    )
    rate = opened.settings.sample_rate
    chosen = tuple(dict.fromkeys(("a_mean", *options.distances)))
    found = rendering.measure(
        clips, goal.clips, rate, chosen, label=f"{label}: distances"
    )
    seed = opened.config.evaluation.seed
    resamples = opened.config.evaluation.resamples
    entry: dict[str, Any] = {
        "distances": {k: v.tolist() for k, v in found.items()},
        "summary": {k: bootstrap(v, resamples, seed) for k, v in found.items()},
        "failed": failed,
    }
    if goal.presets is not None:
        measured = distances.parameter_metrics(
            jnp.asarray(presets), jnp.asarray(goal.presets), opened.space
        )
        entry["parameters"] = {
            k: float(np.mean(v)) for k, v in measured.items()
        }
    return entry, clips


def _exported(names: Sequence[str], count: int) -> list[int]:
    """Positions of the sounds to keep: evenly spaced, and those of the page."""
    spaced = np.linspace(0, len(names) - 1, min(count, len(names)))
    of_page = [i for i in table_notes.pick(names) if i is not None]
    return sorted({*spaced.round().astype(int).tolist(), *of_page})


def _export(
    folder: pathlib.Path,
    clips: Float[np.ndarray, "sounds samples"],
    rate: int,
    chosen: Sequence[int],
) -> dict[str, str]:
    """Writes some clips; returns files, relative, by position."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for i in chosen:
        path = folder / f"{i:03}.wav"
        data, _ = shards.quantise(clips[i])
        wavfile.write(path, rate, data)
        files[str(i)] = str(path.relative_to(folder.parents[1]))
    return files


def _slug(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")


# Evaluation ------------------------------------------------------------------


def evaluate(
    runs: Sequence[str], options: Options
) -> dict[str, dict[str, Any]]:
    """Scores runs on the same targets; writes what it found into each.

    A run that was scored before, at the same checkpoint and in the same way,
    is not scored again.

    Args:
      runs: run directories; of the same data.
      options: what to evaluate on.

    Returns:
      The content of each run's evaluation.json, by run.

    Raises:
      FileNotFoundError: when a run or the folder of notes is missing.
      ValueError: when the runs are not of the same data.
    """
    shared: dict[str, Any] = {}
    results, first = {}, None
    for run in runs:
        opened = matching_run.load(run)
        print(f"{run}: best checkpoint, step {opened.step:,}", flush=True)
        if first is not None and opened.handcrafted != first.handcrafted:
            raise ValueError(
                f"{run} and {runs[0]} are of different data; compare runs "
                "that share config.data and config.presets"
            )
        first = first or opened
        found = _known(pathlib.Path(run), opened, options)
        if found is None:
            shared = shared or _prepare(opened, options)
            found = _evaluate(pathlib.Path(run), opened, shared, options)
        results[run] = found
    return results


def _asked(options: Options) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(options)))


def _known(
    run: pathlib.Path, opened: matching_run.MatchingRun, options: Options
) -> dict[str, Any] | None:
    """What an earlier evaluation found, if it was the same."""
    try:
        found = json.loads((run / _FOLDER / _FILE).read_text())
    except (OSError, ValueError):
        return None
    same = found["options"] == _asked(options) and found["step"] == opened.step
    return found if same else None


def _prepare(
    opened: matching_run.MatchingRun, options: Options
) -> dict[str, Any]:
    """Targets, engines and baselines, which all runs share, by set."""
    prepared = {}
    engine = build.engine(opened.config)()
    for where, goal in targets(opened, options).items():
        settings = dataclasses.replace(opened.settings, hold=goal.hold)
        renderer = engine.at(settings)
        scored = {
            name: (
                presets,
                *_score(opened, renderer, goal, presets, options, name),
            )
            for name, presets in baselines(opened, goal).items()
        }
        prepared[where] = goal, renderer, scored
    return prepared


def _evaluate(
    run: pathlib.Path,
    opened: matching_run.MatchingRun,
    prepared: dict[str, Any],
    options: Options,
) -> dict[str, Any]:
    folder = run / _FOLDER
    config, rate = opened.config, opened.settings.sample_rate
    content: dict[str, Any] = {
        "run": str(run),
        "step": opened.step,
        "schedule": config.schedule,
        "decoding": config.decoding,
        "seed": config.seed,
        "stand_in": opened.handcrafted.spec.source != "handcrafted",
        "sample_rate": rate,
        "options": _asked(options),
        "sets": {},
    }
    for where, (goal, renderer, scored) in prepared.items():
        logits = matching_run.estimate(opened, goal.clips)
        predicted = matching_run.decode(logits, opened.space)
        ours = _score(opened, renderer, goal, predicted, options, ESTIMATOR)
        inside = folder / _slug(where)
        chosen = _exported(goal.names, options.export)
        entry: dict[str, Any] = {
            "names": list(goal.names),
            "notes": [int(note) for note in goal.notes],
            "audio": _export(inside / "target", goal.clips, rate, chosen),
            "methods": {},
        }
        for name, (presets, found, clips) in (
            (ESTIMATOR, (predicted, *ours)),
            *scored.items(),
        ):
            slug = _slug(name)
            files = _export(inside / slug, clips, rate, chosen)
            file = inside / f"{slug}.json"
            file.write_text(
                handcrafted.to_json(presets, goal.names, opened.space)
            )
            entry["methods"][name] = {
                **found,
                "audio": files,
                "presets": str(file.relative_to(folder)),
            }
        content["sets"][where] = entry
        plots.distance_bars(
            {n: m["summary"]["a_mean"] for n, m in entry["methods"].items()},
            f"{config.name}: {where}, {len(goal.names)} sounds",
            folder / f"distances_{_slug(where)}.png",
        )
    (folder / _FILE).write_text(json.dumps(content) + "\n")
    return content


# Tables ----------------------------------------------------------------------

_AUDIO = ("a_mean", "stft", "mstft", "mel", "mfcc", "dtw_mfcc", "sot")
_PARAMETERS = ("numerical_mae", "binary_accuracy", "categorical_accuracy")


def table(content: dict[str, Any]) -> str:
    """One run's results as a Markdown table.

    Args:
      content: of its evaluation.json.
    """
    rows = []
    for where, entry in content["sets"].items():
        reference = np.array(entry["methods"][ESTIMATOR]["distances"]["a_mean"])
        for name, found in entry["methods"].items():
            s = found["summary"]
            a = s["a_mean"]
            row = [
                f"{where}, {len(reference)}",
                name,
                f"{a['mean']:.3f} [{a['low']:.3f}, {a['high']:.3f}]",
                ""
                if name == ESTIMATOR
                else _p_value(reference, found["distances"]["a_mean"]),
                *(f"{s[n]['mean']:.3f}" if n in s else "" for n in _AUDIO[1:]),
                *(
                    f"{found['parameters'][n]:.3f}"
                    if n in found.get("parameters", {})
                    else ""
                    for n in _PARAMETERS
                ),
            ]
            rows.append(row)
    headers = ["sounds", "method", "a_mean [95 %]", "p", *_AUDIO[1:]]
    text = _markdown(rows, [*headers, *_PARAMETERS])
    return f"{text}{_stand_in(content)}"


def _markdown(rows: list[list[str]], headers: list[str]) -> str:
    # Columns that this space or set has nothing for are left out.
    used = [i for i in range(len(headers)) if any(r[i] for r in rows)]
    return tabulate.tabulate(
        [[row[i] for i in used] for row in rows],
        [headers[i] for i in used],
        tablefmt="github",
        disable_numparse=True,
    )


def _stand_in(content: dict[str, Any]) -> str:
    if not content["stand_in"]:
        return ""
    return (
        f"\n{data.NO_BANK}: in-domain sounds and baselines are held-out "
        "synthetic presets"
    )


def _p_value(one: Any, other: Any) -> str:
    difference = np.asarray(one) - np.asarray(other)
    if not difference.any():
        return "1"
    found: Any = stats.wilcoxon(difference)
    return f"{found.pvalue:.2g}"


def compare(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compares runs by schedule and decoding.

    Args:
      results: from `evaluate`.

    Returns:
      By set, "groups": {label: runs, seeds' means of a_mean, per-sound
      a_mean over seeds, summary} and "pairs": {"A - B": difference with its
      interval, p, n}. Baselines are groups, too.
    """
    compared: dict[str, Any] = {}
    for where in next(iter(results.values()))["sets"]:
        groups: dict[str, Any] = {}
        for run, content in results.items():
            label = content["schedule"]
            if label != "ploss":
                label += f", {content['decoding']}"
            group = groups.setdefault(label, {"runs": [], "sounds": []})
            group["runs"].append(run)
            found = content["sets"][where]["methods"]
            group["sounds"].append(found[ESTIMATOR]["distances"]["a_mean"])
        for name, method in found.items():
            if name != ESTIMATOR:
                sounds_ = [method["distances"]["a_mean"]]
                groups[name] = {"runs": [], "sounds": sounds_}
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
                "p": float(_p_value(x, y)),
                "n": len(x),
            }
        compared[where] = {"groups": groups, "pairs": pairs}
    return compared


def comparison_table(compared: dict[str, Any]) -> str:
    """A comparison as Markdown tables.

    Args:
      compared: from `compare`.
    """
    texts = []
    for where, found in compared.items():
        groups = found["groups"]
        count = len(next(iter(groups.values()))["sounds"])
        rows = []
        for label, group in sorted(
            groups.items(), key=lambda item: item[1]["summary"]["mean"]
        ):
            s, means = group["summary"], group["means"]
            spread = f"{np.std(means, ddof=1):.3f}" if len(means) > 1 else ""
            rows.append(
                [
                    label,
                    str(len(means)) if group["runs"] else "",
                    f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]",
                    spread,
                ]
            )
        headers = ["method", "seeds", "a_mean [95 %]", "spread over seeds"]
        texts.append(f"{where}, {count} sounds\n\n{_markdown(rows, headers)}")
        rows = [
            [
                pair,
                f"{p['mean']:+.3f} [{p['low']:+.3f}, {p['high']:+.3f}]",
                f"{p['p']:.2g}",
            ]
            for pair, p in found["pairs"].items()
        ]
        headers = ["pair", "difference [95 %]", "p"]
        texts.append(_markdown(rows, headers))
    return "\n\n".join(texts)


def run_command(runs: Sequence[str], options: Options, out: str) -> None:
    """Evaluates runs, prints tables, and compares them when there are many.

    Args:
      runs: run directories.
      options: what to evaluate on.
      out: folder of the comparison.
    """
    results = evaluate(runs, options)
    for run, content in results.items():
        print(f"\n{run}\n\n{table(content)}{noise.of_run(run)}")
        print(f"\nwrote evaluation.json, sounds and pictures to {run}/matching")
    if len(runs) == 1:
        return
    compared = compare(results)
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(compared) + "\n")
    for where, found in compared.items():
        plots.distance_bars(
            {k: g["summary"] for k, g in found["groups"].items()},
            f"{where}: mean over seeds",
            folder / f"comparison_{_slug(where)}.png",
        )
    print(f"\n{comparison_table(compared)}{_stand_in(content)}")
    print(f"\nwrote comparison.json and pictures to {folder}")
