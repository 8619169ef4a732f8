"""The ranking study: does the distance to a sound grow as it moves away?"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import tqdm
from jaxtyping import Float

from datasets import engines, nsynth
from datasets.weights import hosts, published
from launch.rank import table
from launch.runs import embedding
from proxy import audio

# Neighbouring steps that differ by less than this share of the sound's root
# mean square, -60 dB, are not heard to differ.
AUDIBLE = 1e-3
# Distances that differ by less than this share of an embedding's own size are
# float32's rounding.
ROUNDING = 1e-6
# Another number whenever scores are worked out otherwise: kept ones are old.
_SCORING = 2

Embed = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What studies do in different ways; the defaults are ours.

    Attributes:
      rate: sample rate that is rendered at, in Hz, with the model's made of it
        by resampling; 0 to render at the model's.
      ends: steps that distances are measured to, of "first" and "last"; their
        correlations are averaged.
    """

    rate: int = 0
    ends: tuple[str, ...] = ("first", "last")

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: naming the field and what it may be.
        """
        low, high = nsynth.RATES
        if self.rate and not low <= self.rate <= high:
            raise ValueError(f"--rate={self.rate}: {low:,} to {high:,} Hz")
        if not self.ends or set(self.ends) - {"first", "last"}:
            raise ValueError(
                f"--ends={','.join(self.ends)}: give first, last or both"
            )


def unfit(
    sounds: Float[np.ndarray, "steps samples"],
    settings: engines.RenderSettings,
) -> str | None:
    """Why the sounds of a sweep's steps cannot be ranked by ear, or None."""
    for step, sound in enumerate(sounds):
        reason = engines.check_level(sound, settings)
        if reason is not None:
            rms = np.sqrt(np.square(sound, dtype=np.float64).mean())
            return f"step {step + 1} is {reason} (RMS {rms:.4f})"
    return None


def alike(sounds: Float[np.ndarray, "steps samples"]) -> str | None:
    """Which neighbouring steps cannot be told apart, or None."""
    rms = np.sqrt(np.square(sounds, dtype=np.float64).mean(axis=1))
    moved = np.square(np.diff(sounds, axis=0), dtype=np.float64).mean(axis=1)
    louder = np.maximum(np.maximum(rms[1:], rms[:-1]), 1e-12)
    change = np.sqrt(moved) / louder
    step = int(change.argmin()) + 1
    if change.min() < AUDIBLE:
        return f"steps {step} and {step + 1} sound the same"
    return None


def embed_steps(
    embed: Embed, sounds: Float[np.ndarray, "steps samples"]
) -> Float[np.ndarray, "steps embedding"]:
    """Embeddings of a sweep's steps; equal sounds have equal ones.

    A model's arithmetic may make them differ in their last bits, by where in
    a batch they are, and ranks would make an order of that.
    """
    first: dict[bytes, int] = {}
    rows = [first.setdefault(s.tobytes(), i) for i, s in enumerate(sounds)]
    return np.asarray(embed(sounds))[rows]


def correlation(
    embeddings: Float[np.ndarray, "steps embedding"],
    ends: Sequence[str] = ("first", "last"),
) -> float:
    """How well distances tell the order of a sweep, in [-1, 1].

    The steps are ranked by L1 distance to the first and, in reverse, to the
    last; Spearman's rank correlation with the true order, averaged. It is 1
    when every step is further away than the one before, and 0 for a model
    that hears no difference at all, but for rounding.

    Args:
      embeddings: embeddings of the steps, in order.
      ends: which of "first" and "last" to average over.
    """
    order = np.arange(len(embeddings))
    rounding = ROUNDING * np.abs(embeddings).sum(axis=1).max()
    scores = []
    for end in ends:
        place, sign = {"first": (0, 1), "last": (-1, -1)}[end]
        distance = np.abs(embeddings - embeddings[place]).sum(axis=1)
        score: Any = 0.0
        if np.ptp(distance) > rounding:
            score = scipy.stats.spearmanr(distance, order)[0]
        scores.append(sign * float(score))
    return float(np.mean(scores))


def load_models(
    names: Sequence[str], files: Mapping[str, str]
) -> dict[str, tuple[audio.AudioModel, Embed]]:
    """Audio models ready to embed, by name.

    Args:
      names: names of audio models.
      files: files of weights by name of audio model or of weights; other
        weights are downloaded.

    Returns:
      Each with a function from `[batch, samples]` to `[batch, embedding]`.

    Raises:
      ValueError: an unknown model, or a file for a model that is not asked.
      FileNotFoundError: weights that cannot be had.
      ImportError: a library that is not installed.
    """
    models = {name: audio.get(name) for name in names}
    asked = set(models) | {m.weights for m in models.values() if m.weights}
    for name in files:
        if name not in asked:
            raise ValueError(
                f"--weights {name}=...: none of the models takes them "
                f"(asked: {', '.join(names)})"
            )
    loaded = {}
    for name, model in models.items():
        file = files.get(name, files.get(model.weights or ""))
        if model.host is not None:
            loaded[name] = model, hosts.load(name, file).embed
            continue
        variables = {}
        if model.weights is not None:
            variables = published.load(model.weights, path=file)
        loaded[name] = model, embedding.embedder(model, variables)
    return loaded


def read_kept(file: pathlib.Path) -> dict[str, Any]:
    """Entries of an earlier, perhaps interrupted run by key; see `run`.

    A last line that was cut short is left out.
    """
    kept = {}
    if file.is_file():
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError):
                entry = json.loads(line)
                kept[entry["key"]] = entry
    return kept


def _key(sweep: table.Sweep, identity: str) -> str:
    digest = hashlib.sha256(identity.encode())
    digest.update(np.ascontiguousarray(sweep.values).tobytes())
    return digest.hexdigest()


def _fingerprint(name: str, embed: Embed, samples: int) -> str:
    """Tells a model's weights and code by what it makes of noise."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, samples))
    embedding = np.asarray(embed(noise.astype(np.float32)), np.float32)
    return f"{name} {hashlib.sha256(embedding.tobytes()).hexdigest()}"


def _render(
    renderer: engines.Renderer,
    sweeps: Sequence[table.Sweep],
    workers: int,
) -> Iterator[np.ndarray]:
    """Sounds of each sweep, `[steps, samples]`."""
    workers = engines.num_workers(workers)
    size = workers * max(renderer.batch, 16)
    longest = max((len(sweep.values) for sweep in sweeps), default=1)
    together = max(1, size // longest)
    for start in range(0, len(sweeps), together):
        part = sweeps[start : start + together]
        values = np.concatenate([sweep.values for sweep in part])
        clips, reasons = renderer.render_batch(values, workers=workers)
        end = 0
        for sweep in part:
            rows = slice(end, end := end + len(sweep.values))
            for step, reason in enumerate(reasons[rows], 1):
                if reason is not None:
                    raise ValueError(
                        f"{sweep.attribute}, {sweep.preset!r}, step {step} "
                        f"cannot be rendered: {reason}"
                    )
            yield clips[rows]


def run(
    sweeps: Sequence[table.Sweep],
    models: Mapping[str, tuple[audio.AudioModel, Embed]],
    make_renderer: Callable[[int], engines.Renderer],
    file: pathlib.Path,
    *,
    workers: int = 0,
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """Renders all sweeps, embeds them with every model, and scores them.

    Args:
      sweeps: sweeps of one table.
      models: models from `load_models`.
      make_renderer: makes an engine at a sample rate in Hz.
      file: JSON lines; every score is noted there at once, and not worked
        out again while sweep, engine, settings and model are the same.
      workers: number of rendering threads, 0 for one per core.
      protocol: how it is done; as `Protocol` has it when left out.

    Returns:
      "scores": for each model, attribute and base preset, the correlations in
      the order of the table (a preset may occur twice), with "unfit" where it
      is not to be counted; "unfit": sweeps that are silent or too loud, and
      why; "alike": sweeps with steps that sound the same, which count;
      "engine": its version.

    Raises:
      ValueError: a step cannot be rendered.
    """
    protocol = protocol or Protocol()
    kept = read_kept(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    keys: dict[str, list[str]] = {}
    version = ""
    rates = sorted({model.sample_rate for model, _ in models.values()})
    with (
        tqdm.tqdm(total=len(sweeps) * len(rates), unit=" sweeps") as bar,
        file.open("a") as notes,
    ):
        # Ends a line that was cut short.
        notes.write("\n" if notes.tell() else "")
        for rate in rates:
            bar.set_description(f"{rate / 1000:g} kHz")
            renderer = make_renderer(protocol.rate or rate)
            version, settings = renderer.version, renderer.settings
            played = json.dumps(
                [_SCORING, version, settings.to_dict(), protocol.ends]
            )
            embedders = {
                name: embed
                for name, (model, embed) in models.items()
                if model.sample_rate == rate
            }
            samples = round(settings.duration * rate)
            for name, embed in embedders.items():
                identity = f"{played} {_fingerprint(name, embed, samples)}"
                keys[name] = [_key(sweep, identity) for sweep in sweeps]
            todo = [
                i
                for i in range(len(sweeps))
                if any(keys[name][i] not in kept for name in embedders)
            ]
            bar.update(len(sweeps) - len(todo))
            rendered = _render(renderer, [sweeps[i] for i in todo], workers)
            for i, sounds in zip(todo, rendered, strict=True):
                found = {
                    "unfit": unfit(sounds, settings),
                    "alike": alike(sounds),
                }
                sounds = _resampled(sounds, settings.sample_rate, rate)
                for name, embed in embedders.items():
                    key = keys[name][i]
                    if key not in kept:
                        rows = embed_steps(embed, sounds)
                        score = correlation(rows, protocol.ends)
                        kept[key] = {"key": key, "score": score, **found}
                        notes.write(json.dumps(kept[key]) + "\n")
                notes.flush()
                bar.update()
    return {**_collect(sweeps, keys, kept), "engine": version}


def _resampled(sounds: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The steps' sounds at another rate, as long in samples as they should."""
    if rate == wanted:
        return sounds
    length = round(sounds.shape[1] / rate * wanted)
    out = np.zeros((len(sounds), length), np.float32)
    for row, sound in zip(out, sounds, strict=True):
        made = nsynth.resample(sound, rate, wanted)[:length]
        row[: len(made)] = made
    return out


def _collect(
    sweeps: Sequence[table.Sweep],
    keys: Mapping[str, Sequence[str]],
    kept: Mapping[str, Any],
) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    told: dict[str, dict[str, str]] = {"unfit": {}, "alike": {}}
    for name, of_model in keys.items():
        scores[name] = {}
        for sweep, key in zip(sweeps, of_model, strict=True):
            entry = kept[key]
            row = {"preset": sweep.preset, "score": entry["score"]}
            if entry["unfit"] is not None:
                row["unfit"] = entry["unfit"]
            scores[name].setdefault(sweep.attribute, []).append(row)
            for what, reasons in told.items():
                if entry[what] is not None:
                    where = f"{sweep.attribute}, {sweep.preset}"
                    reasons.setdefault(where, entry[what])
    return {"scores": scores, **told}


def summary(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Means and spreads of the scores that `run` returns.

    Sweeps that are silent or too loud do not count.

    Returns:
      For each model "attributes" (mean and std over base presets, None where
      no sweep counts), "mean" over attributes, "std" over all sweeps, "worst"
      and "worst_attribute".

    Raises:
      ValueError: no sweep counts.
    """
    summaries = {}
    for name, attributes in scores.items():
        by_attribute, every = {}, []
        for attribute, rows in attributes.items():
            values = [row["score"] for row in rows if not row.get("unfit")]
            every.extend(values)
            by_attribute[attribute] = {
                "mean": float(np.mean(values)) if values else None,
                "std": float(np.std(values)) if values else None,
            }
        means = {
            name: value["mean"]
            for name, value in by_attribute.items()
            if value["mean"] is not None
        }
        if not means:
            raise ValueError(
                "every sweep of the table is silent or too loud: nothing can "
                "be ranked"
            )
        worst = min(means, key=means.__getitem__)
        summaries[name] = {
            "mean": float(np.mean(list(means.values()))),
            "std": float(np.std(every)),
            "worst": means[worst],
            "worst_attribute": worst,
            "attributes": by_attribute,
        }
    return summaries


def weight_files(given: list[str], models: list[str]) -> dict[str, str]:
    """Files of weights by model, from `--weights`.

    Args:
      given: "FILE" or "MODEL=FILE".
      models: names of the audio models.

    Returns:
      Files by name of audio model or of weights.

    Raises:
      ValueError: a bare file while several models take different weights, or
        none takes any; a file that is missing.
    """
    files = {}
    for word in given:
        name, equals, file = word.partition("=")
        if not equals:
            needed = sorted({w for m in models if (w := audio.get(m).weights)})
            if len(needed) != 1:
                raise ValueError(
                    f"--weights {word}: the models take "
                    f"{', '.join(needed) or 'no weights'}; say which it is, "
                    "--weights MODEL=FILE"
                )
            name, file = needed[0], word
        if not pathlib.Path(file).expanduser().exists():
            raise FileNotFoundError(f"no weights at {file} (--weights)")
        files[name] = file
    return files
