"""Scores estimators by the sound of what they predict, beside baselines.

    python -m launch.evaluate --run RUN --nsynth FOLDER
    python -m launch.evaluate --runs RUN,RUN,RUN --nsynth FOLDER --out DIR

Every prediction is rendered with the real engine and compared with its
target: in-domain, the test split of the hand-crafted presets but for near
copies of training presets (`proxy.splits.near_copies`); out of domain, notes of
a folder in NSynth's format, rendered at their pitch and held as long as they
are, and heard as at the note and with the hold of the run (`matching.hearing`).
Baselines for the same targets: the mean preset of the training split, a random
one of it, and the one whose sound is nearest in the space of the audio model.

Several runs are compared by schedule and decoding: seeds are averaged sound
by sound, intervals are bootstrapped over sounds (95 %), and each pair of
groups is tested with Wilcoxon's signed-rank test over sounds.

Files, below RUN/matching (or DIR, for several runs: comparison.json and
comparison_<set>.png):

    evaluation.json
      run, step, hears, num_train, schedule, decoding, seed, stand_in
      (whether synthetic presets stand in for hand-crafted ones),
      sample_rate, options
      sets: {"in-domain" | "out-of-domain":
        names, notes: of the targets, [sounds]
        near_copies: how many presets are left out as such
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
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.io import wavfile

from datasets import engines, loader, nsynth, shards
from datasets.presets import writing
from launch.evaluate import comparison, notes
from launch.evaluate.comparison import ESTIMATOR, IN_DOMAIN, OUT_OF_DOMAIN
from launch.runs import build, opened, plots, rendering
from matching import distances
from proxy import splits
from proxy.space import ParameterSpace

_FOLDER, _FILE = "matching", "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Targets:
    """Sounds to be matched.

    Attributes:
      clips: the sounds, at the run's sample rate.
      names: a name for each sound.
      notes: MIDI note of each sound.
      hold: seconds that the notes are held.
      heard: the sounds as the run knows them, see `opened.as_known`.
      embeddings: what the audio model makes of those.
      presets: presets that made the sounds, None where nobody knows.
      near_copies: how many sounds are left out, their presets being near
        copies of training presets.
    """

    clips: Float[np.ndarray, "sounds samples"]
    names: Sequence[str]
    notes: Sequence[int]
    hold: float
    heard: Float[np.ndarray, "sounds samples"]
    embeddings: Float[np.ndarray, "sounds embedding"]
    presets: Float[np.ndarray, "sounds parameters"] | None
    near_copies: int = 0


@dataclasses.dataclass(frozen=True)
class Options:
    """What is evaluated on.

    Attributes:
      nsynth: a folder in NSynth's format, "" for none.
      families: families of instruments to take notes of, all when empty.
      sources: sources of sound to take notes of, all when empty.
      pitches: MIDI notes to take, None for all.
      limit: size of a random part of each set; 0 for whole sets.
      export: how many sounds of each set are written as WAV files, beside
        those that the page shows.
      distances: names of the distances to measure besides `a_mean`.
    """

    nsynth: str = ""
    families: Sequence[str] = ()
    sources: Sequence[str] = ()
    pitches: Sequence[int] | None = None
    limit: int = 0
    export: int = 16
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


def _in_domain(run: opened.MatchingRun, options: Options) -> Targets:
    source = run.handcrafted
    columns = source.columns(
        "test", ("preset", "embedding", "audio", "audio_scale")
    )
    near = splits.near_copies(
        columns["preset"], source.columns("train")["preset"]
    )
    rows = np.flatnonzero(~near)
    if not len(rows):
        raise ValueError(
            f"{source.directory}: every test preset is a near copy of a "
            "training preset; add some to config.presets"
        )
    rows = rows[_some(len(rows), options.limit, run.config.evaluation.seed)]
    names = run.names("test")
    clips = shards.dequantise(
        columns["audio"][rows], columns["audio_scale"][rows]
    )
    return Targets(
        clips=clips,
        names=[names[row] for row in rows],
        notes=[run.settings.note] * len(rows),
        hold=run.settings.hold,
        heard=clips,
        embeddings=columns["embedding"][rows],
        presets=columns["preset"][rows],
        near_copies=int(near.sum()),
    )


def _out_of_domain(run: opened.MatchingRun, options: Options) -> Targets:
    found = nsynth.find(
        options.nsynth,
        families=options.families,
        sources=options.sources,
        pitches=options.pitches,
    )
    rows = _some(len(found), options.limit, run.config.evaluation.seed)
    chosen = [found[row] for row in rows]
    settings = run.settings
    clips = nsynth.load(chosen, settings.sample_rate, settings.samples)
    heard = np.stack(
        [
            opened.as_known(settings, clip, note.pitch, nsynth.HOLD)
            for clip, note in zip(clips, chosen, strict=True)
        ]
    )
    return Targets(
        clips=clips,
        names=[note.name for note in chosen],
        notes=[note.pitch for note in chosen],
        hold=nsynth.HOLD,
        heard=heard,
        embeddings=opened.embed(run.config, heard),
        presets=None,
    )


def targets(run: opened.MatchingRun, options: Options) -> dict[str, Targets]:
    """The sounds that a run is tested on, by set."""
    sets = {IN_DOMAIN: _in_domain(run, options)}
    if options.nsynth:
        sets[OUT_OF_DOMAIN] = _out_of_domain(run, options)
    return sets


# Methods ---------------------------------------------------------------------


def mean_preset(
    presets: Float[np.ndarray, "rows parameters"], space: ParameterSpace
) -> Float[np.ndarray, " parameters"]:
    """Means of numerical values, the most frequent switch or category."""
    mean = presets.mean(0, dtype=np.float64)
    for column in (*space.binary, *space.categorical):
        values, counts = np.unique(presets[:, column], return_counts=True)
        mean[column] = values[np.argmax(counts)]
    return np.asarray(space.snap(mean[None]), np.float32)[0]


def baselines(
    run: opened.MatchingRun, goal: Targets
) -> dict[str, Float[np.ndarray, "sounds parameters"]]:
    """Presets that the baselines choose, from the whole training split."""
    bank = run.handcrafted.columns("train")
    presets, known = (np.asarray(bank[k]) for k in ("preset", "embedding"))
    count = len(goal.clips)
    rng = np.random.default_rng(run.config.evaluation.seed)
    # By L1 distance.
    near = [np.abs(known - e).sum(1).argmin() for e in goal.embeddings]
    return {
        "mean preset": np.tile(mean_preset(presets, run.space), (count, 1)),
        "random preset": presets[rng.integers(len(presets), size=count)],
        "nearest neighbour": presets[near],
    }


def _score(
    run: opened.MatchingRun,
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
        workers=run.config.workers,
        label=f"{label}: rendering",
    )
    measured = rendering.measure(
        clips,
        goal.clips,
        run.settings.sample_rate,
        tuple(dict.fromkeys(("a_mean", *options.distances))),
        label=f"{label}: distances",
    )
    how = run.config.evaluation
    entry: dict[str, Any] = {
        "distances": {k: v.tolist() for k, v in measured.items()},
        "summary": {
            k: comparison.bootstrap(v, how.resamples, how.seed)
            for k, v in measured.items()
        },
        "failed": failed,
    }
    if goal.presets is not None:
        errors = distances.parameter_metrics(
            jnp.asarray(presets), jnp.asarray(goal.presets), run.space
        )
        entry["parameters"] = {k: float(np.mean(v)) for k, v in errors.items()}
    return entry, clips


def _exported(names: Sequence[str], count: int) -> list[int]:
    """Positions of the sounds to keep: evenly spaced, and those of the page."""
    spaced = np.linspace(0, len(names) - 1, min(count, len(names)))
    of_page = [i for i in notes.pick(names) if i is not None]
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
        wavfile.write(path, rate, shards.quantise(clips[i])[0])
        files[str(i)] = str(path.relative_to(folder.parents[1]))
    return files


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return name.replace(" ", "_").replace("-", "_")


# Evaluation ------------------------------------------------------------------


def evaluate(
    folders: Sequence[str], options: Options
) -> dict[str, dict[str, Any]]:
    """Scores runs on the same targets; writes the results into each.

    A run that was scored before, at the same checkpoint and in the same way,
    is not scored again.

    Args:
      folders: directories of runs that share their data.
      options: what to evaluate on.

    Returns:
      The content of each run's evaluation.json, by run.

    Raises:
      FileNotFoundError: when a run or the folder of notes is missing.
      ValueError: when the runs are not of the same data.
    """
    shared: dict[str, Any] = {}
    results, first = {}, None
    for folder in folders:
        run = opened.load(folder)
        print(f"{folder}: best checkpoint, step {run.step:,}", flush=True)
        if first is not None and run.handcrafted != first.handcrafted:
            raise ValueError(
                f"{folder} and {folders[0]} are of different data; compare "
                "runs that share config.data and config.presets"
            )
        first = first or run
        content = _known(pathlib.Path(folder), run, options)
        if content is None:
            shared = shared or _prepare(run, options)
            content = _evaluate(pathlib.Path(folder), run, shared, options)
        results[folder] = content
    return results


def _asked(options: Options) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(options)))


def _known(
    folder: pathlib.Path, run: opened.MatchingRun, options: Options
) -> dict[str, Any] | None:
    """The results of an earlier evaluation, if it was the same."""
    try:
        content = json.loads((folder / _FOLDER / _FILE).read_text())
    except (OSError, ValueError):
        return None
    now = _asked(options), run.step
    return content if (content["options"], content["step"]) == now else None


def _prepare(run: opened.MatchingRun, options: Options) -> dict[str, Any]:
    """Targets, engines and baselines, which all runs share, by set."""
    prepared = {}
    engine = build.engine(run.config)()
    for where, goal in targets(run, options).items():
        settings = dataclasses.replace(run.settings, hold=goal.hold)
        renderer = engine.at(settings)
        scored = {
            name: (
                presets,
                *_score(run, renderer, goal, presets, options, name),
            )
            for name, presets in baselines(run, goal).items()
        }
        prepared[where] = goal, renderer, scored
    return prepared


def _evaluate(
    path: pathlib.Path,
    run: opened.MatchingRun,
    prepared: dict[str, Any],
    options: Options,
) -> dict[str, Any]:
    folder = path / _FOLDER
    config, rate = run.config, run.settings.sample_rate
    content: dict[str, Any] = {
        "run": str(path),
        "step": run.step,
        "hears": config.get("hears", "spectrogram"),
        "num_train": config.get("train_rows") or config.num_train,
        "schedule": config.schedule,
        "decoding": config.decoding,
        "seed": config.seed,
        "stand_in": run.handcrafted.spec.source != "handcrafted",
        "sample_rate": rate,
        "options": _asked(options),
        "sets": {},
    }
    for where, (goal, renderer, scored) in prepared.items():
        logits = opened.estimate(run, goal.heard)
        predicted = opened.decode(logits, run.space)
        ours = _score(run, renderer, goal, predicted, options, ESTIMATOR)
        inside = folder / slug(where)
        chosen = _exported(goal.names, options.export)
        entry: dict[str, Any] = {
            "names": list(goal.names),
            "notes": [int(note) for note in goal.notes],
            "near_copies": goal.near_copies,
            "audio": _export(inside / "target", goal.clips, rate, chosen),
            "methods": {},
        }
        for name, (presets, scores, clips) in (
            (ESTIMATOR, (predicted, *ours)),
            *scored.items(),
        ):
            files = _export(inside / slug(name), clips, rate, chosen)
            file = inside / f"{slug(name)}.json"
            text = writing.to_json(presets, goal.names, run.space)
            file.write_text(text)
            entry["methods"][name] = {
                **scores,
                "audio": files,
                "presets": str(file.relative_to(folder)),
            }
        content["sets"][where] = entry
        plots.distance_bars(
            {n: m["summary"]["a_mean"] for n, m in entry["methods"].items()},
            f"{config.name}: {where}, {len(goal.names)} sounds",
            folder / f"distances_{slug(where)}.png",
        )
    (folder / _FILE).write_text(json.dumps(content) + "\n")
    return content
