"""From a target sound to ranked presets: the stages and their loop.

Each stage proposes presets, the real engine renders them, and a quick form of
the distance `a_mean` scores them:

1. estimator: what the network hears;
2. neighbours: the bank's presets with the nearest embeddings;
3. gradient: descent from the best so far through the frozen proxy;
4. evolution: rounds of two kinds. Genetic ones vary and cross the best
   presets (`proxy.priors.propose`); rounds of CMA-ES (the library `cma`)
   polish a few numerical parameters of the best. The kind that gained more
   goes on;
5. ranking: the best are rendered again and ordered by `a_mean` itself.
"""

import contextlib
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Bool, Float

from datasets import engines, precompute
from launch.match_setup import Setup
from matching import distances, refine
from proxy import priors
from proxy.space import ParameterSpace

STAGES = ("estimator", "neighbours", "gradient", "evolution", "ranking")
BASELINE = "nearest 40"
# Clips whose distances one call works out.
_CHUNK = 8
# Seconds kept for the last stage.
_RESERVE = 1.5


@dataclasses.dataclass(frozen=True)
class Options:
    """How a sound is matched.

    Attributes:
      stages: those that are on, of `STAGES`.
      seconds: budget of a sound, its ranking included.
      evaluations: most renders of the search, in place of seconds; 0 for
        none. The result then depends on the arguments alone.
      candidates: presets to return.
      nearest: presets of the bank to render.
      starts: presets that gradient descent starts from.
      steps: of gradient descent.
      learning_rate: of gradient descent, in logits.
      parents: presets kept between genetic rounds.
      every: frames of the distance that the search looks at, each n-th.
      reranked: presets that the last stage measures.
      workers: rendering workers, 0 for one per core.
      seed: of all random choices.
    """

    stages: tuple[str, ...] = STAGES
    seconds: float = 60.0
    evaluations: int = 0
    candidates: int = 5
    nearest: int = 320
    starts: int = 16
    steps: int = 150
    learning_rate: float = 0.05
    parents: int = 32
    every: int = 8
    reranked: int = 24
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: naming the option and what it may be.
        """
        unknown = sorted(set(self.stages) - set(STAGES))
        if unknown:
            raise ValueError(
                f"unknown stages {', '.join(unknown)}; there are "
                f"{', '.join(STAGES)}"
            )
        if not self.evaluations and not self.seconds >= 1:
            raise ValueError(f"seconds={self.seconds:g}: give at least 1")
        for name in ("candidates", "nearest", "starts", "parents", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, need >= 1")


@dataclasses.dataclass(frozen=True)
class Match:
    """What was found for a sound.

    Attributes:
      presets: best first.
      clips: their sounds.
      distances: to the target by name, one for each preset.
      stages: for the baseline and each stage that was on, its name, the
        distances of the best preset it left, how many presets were rendered
        until then and after how many seconds.
      renders: presets rendered by the search.
      seconds: that it took.
      interrupted: whether it was ended by Ctrl-C.
    """

    presets: Float[np.ndarray, "candidates parameters"]
    clips: Float[np.ndarray, "candidates samples"]
    distances: dict[str, Float[np.ndarray, " candidates"]]
    stages: list[dict[str, Any]]
    renders: int
    seconds: float
    interrupted: bool


@functools.cache
def _quick(every: int, sample_rate: int) -> Callable:
    # Rendering threads keep the cores busy: no need to divide operations.
    options = {}
    if jax.default_backend() == "cpu":
        options = {"xla_cpu_multi_thread_eigen": False}
    return jax.jit(
        functools.partial(
            distances.quick_a_mean, every=every, sample_rate=sample_rate
        ),
        compiler_options=options,
    )


@functools.cache
def _goal(every: int, sample_rate: int) -> Callable:
    return jax.jit(
        functools.partial(
            distances.features,
            sample_rate=sample_rate,
            chosen=("a_mean",),
            every=every,
        )
    )


class Judge:
    """Renders presets, scores them against one target, remembers all.

    Args:
      renderer: the engine, its settings of the target's length.
      target: the sound to match.
      note: MIDI note to render.
      options: of the search.
      bar: of its progress.
    """

    def __init__(
        self,
        renderer: engines.Renderer,
        target: Float[np.ndarray, " samples"],
        note: int,
        options: Options,
        bar: tqdm.tqdm,
    ) -> None:
        self.renderer = renderer
        self.target = target
        self.note = note
        self.options = options
        self.renders = 0
        self.stage = ""
        self._bar = bar
        self._begun = time.monotonic()
        self._workers = precompute.num_workers(options.workers)
        self._known: dict[bytes, float] = {}
        self._best = np.inf
        rate = renderer.settings.sample_rate
        self._goal = _goal(options.every, rate)(target[None])
        self._score = _quick(options.every, rate)

    @property
    def seconds(self) -> float:
        """Seconds since the search began."""
        return time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """What is left of the budget: seconds, or evaluations."""
        if self.options.evaluations:
            return self.options.evaluations - self.renders
        return self.options.seconds - _RESERVE - self.seconds

    def render(
        self, presets: Float[np.ndarray, "batch parameters"]
    ) -> Generator[Float[np.ndarray, " samples"], None, None]:
        """Renders presets at the note; NaN where the engine fails."""
        values = np.asarray(self.renderer.space.to_plugin(presets), np.float32)
        for sound in engines.render_many(
            self.renderer,
            values,
            workers=self._workers,
            notes=[self.note] * len(values),
        ):
            if isinstance(sound, engines.RenderError):
                yield np.full(len(self.target), np.nan, np.float32)
            else:
                yield sound

    def score(
        self, presets: Float[np.ndarray, "batch parameters"]
    ) -> Float[np.ndarray, " batch"]:
        """Scores presets by the quick distance.

        Args:
          presets: hard presets.

        Returns:
          Scores, infinite for a preset that failed to render, and for those
          that the budget did not suffice for.
        """
        presets = np.asarray(presets, np.float32)
        scores = np.full(len(presets), np.inf)
        unknown = [
            row
            for row in refine.distinct(presets)
            if presets[row].tobytes() not in self._known
        ]
        if self.options.evaluations:
            unknown = unknown[: max(int(self.left), 0)]
        with contextlib.closing(self.render(presets[unknown])) as sounds:
            for start in range(0, len(unknown), _CHUNK):
                if self.left <= 0:
                    break
                chunk = unknown[start : start + _CHUNK]
                self._score_chunk(presets[chunk], sounds)
        for row, preset in enumerate(presets):
            scores[row] = self._known.get(preset.tobytes(), np.inf)
        return scores

    def _score_chunk(
        self, presets: np.ndarray, sounds: Iterator[np.ndarray]
    ) -> None:
        clips = np.zeros((_CHUNK, len(self.target)), np.float32)
        for row in range(len(presets)):
            clips[row] = next(sounds)
        found = np.asarray(self._score(clips, self._goal), np.float64)
        found = np.where(np.isfinite(found), found, np.inf)
        for preset, score in zip(presets, found, strict=False):
            self._known[preset.tobytes()] = float(score)
            self._best = min(self._best, float(score))
        self.renders += len(presets)
        self._show()

    def _show(self) -> None:
        done = self.renders if self.options.evaluations else self.seconds
        self._bar.n = round(min(done, self._bar.total), 1)
        self._bar.set_postfix_str(
            f"{self.stage}, {self.renders:,} renders, a_mean {self._best:.3f}"
        )

    def measure(
        self,
        presets: Float[np.ndarray, "batch parameters"],
        chosen: tuple[str, ...],
    ) -> tuple[
        Float[np.ndarray, "batch samples"],
        dict[str, Float[np.ndarray, " batch"]],
    ]:
        """Renders presets and measures them; no part of the search.

        Args:
          presets: hard presets.
          chosen: from `distances.names()`.

        Returns:
          Their sounds, and the distances from the target by name.
        """
        clips = np.stack(list(self.render(presets)))
        parts = []
        for start in range(0, len(clips), _CHUNK):
            part = clips[start : start + _CHUNK]
            # One shape, so that it is compiled once.
            padded = np.pad(part, [(0, _CHUNK - len(part)), (0, 0)])
            found = distances.measure(
                jnp.asarray(padded),
                jnp.asarray(self.target[None]),
                sample_rate=self.renderer.settings.sample_rate,
                chosen=chosen,
            )
            parts.append(
                {k: np.asarray(v)[: len(part)] for k, v in found.items()}
            )
        return clips, {
            name: np.concatenate([part[name] for part in parts])
            for name in chosen
        }

    def best(self, count: int) -> Float[np.ndarray, "count parameters"]:
        """The presets with the least scores, best first.

        Args:
          count: how many at most.

        Returns:
          Those of them that rendered.
        """
        rows = list(self._known)
        order = refine.rank(np.array([self._known[r] for r in rows]), count)
        found = [np.frombuffer(rows[i], np.float32) for i in order]
        shape = (len(found), self.renderer.space.num_used)
        return np.array(found, np.float32).reshape(shape)

    @property
    def best_score(self) -> float:
        """The least score so far."""
        return self._best


# The stages ------------------------------------------------------------------


def _nearest(
    setup: Setup, target: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The embedding of a target and the bank's nearest presets."""
    samples = setup.settings.samples
    clip = np.zeros((1, samples), np.float32)
    clip[0, : len(target)] = target[:samples]
    embedding = np.asarray(setup.embed(clip))[0]
    rows, _ = refine.nearest(
        jnp.asarray(embedding), jnp.asarray(setup.bank.embeddings), count
    )
    return embedding, setup.bank.presets[np.asarray(rows)]


def _descend(
    setup: Setup, judge: Judge, embedding: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Presets that gradient descent through the proxy arrives at."""
    options = judge.options
    # As many rows every time, so that it is compiled once.
    rows = np.resize(np.arange(len(starts)), options.starts)
    state = refine.begin(jnp.asarray(starts[rows]), setup.space)
    few = 25
    for _ in range(0, options.steps, few):
        if judge.left <= 0:
            break
        state = refine.descend(
            state,
            jnp.asarray(embedding),
            setup.proxy_variables,
            proxy=setup.proxy,
            space=setup.space,
            steps=few,
            learning_rate=options.learning_rate,
        )
    return np.asarray(refine.presets(state, setup.space))


def _genetic(judge: Judge, parents: np.ndarray, key: jax.Array) -> np.ndarray:
    """A few generations; the best of parents and children live on."""
    space, options = judge.renderer.space, judge.options
    scores = judge.score(parents)
    for part in jax.random.split(key, 6):
        if judge.left <= 0:
            break
        padded = np.resize(parents, (options.parents, parents.shape[1]))
        children = np.asarray(
            priors.propose(part, jnp.asarray(padded), space, 48)
        )
        found = np.concatenate([scores, judge.score(children)])
        everyone = np.concatenate([parents, children])
        kept = refine.distinct(everyone)
        kept = kept[refine.rank(found[kept], options.parents)]
        parents, scores = everyone[kept], found[kept]
    return parents


@functools.partial(jax.jit, static_argnames="space")
def _snapped(presets, space):
    return space.snap(presets)


def _snap(space: ParameterSpace, presets: np.ndarray) -> np.ndarray:
    return np.asarray(_snapped(presets, space))


def _polish(judge: Judge, best: np.ndarray, key: jax.Array) -> np.ndarray:
    """A few generations of CMA-ES on some numerical parameters."""
    import cma

    space = judge.renderer.space
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    size = min(24, len(space.numerical))
    columns = rng.choice(space.numerical, size, replace=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = cma.CMAEvolutionStrategy(
            best[columns].astype(float),
            0.03,
            {
                "bounds": [0, 1],
                "popsize": 16,
                "verbose": -9,
                "seed": int(rng.integers(1, 2**31)),
            },
        )
        found = [best]
        for _ in range(16):
            if judge.left <= 0:
                break
            asked = strategy.ask()
            presets = np.repeat(best[None], len(asked), axis=0)
            presets[:, columns] = np.array(asked)
            presets = _snap(space, presets)
            scores = judge.score(presets)
            found.append(presets[scores.argmin()])
            if not np.isfinite(scores).all():
                break
            strategy.tell(asked, scores.tolist())
    return np.stack(found)


def _evolve(judge: Judge, key: jax.Array) -> None:
    """Rounds of both kinds until the budget is spent."""
    parents = judge.best(judge.options.parents)
    if not len(parents):
        space = judge.renderer.space
        parents = np.asarray(space.sample(key, (judge.options.parents,)))
    gains = {"genetic": np.inf, "polish": np.inf}
    number = 0
    while judge.left > 0:
        # The better one goes on; what is not tried slowly gets its chance.
        kind = max(gains, key=lambda name: gains[name])
        before, renders = judge.best_score, judge.renders
        part = jax.random.fold_in(key, number)
        number += 1
        if kind == "genetic":
            parents = _genetic(judge, parents, part)
        else:
            polished = _polish(judge, judge.best(1)[0], part)
            # Only the last, lest the parents become all alike.
            parents = np.concatenate([polished[-1:], parents[:-1]])
        spent = max(judge.renders - renders, 1)
        gain = (before - judge.best_score) / spent
        gains[kind] = gain if np.isfinite(gain) else np.inf
        other = "polish" if kind == "genetic" else "genetic"
        if np.isfinite(gains[other]):
            gains[other] = 1.3 * gains[other] + 1e-6


def _different(
    presets: np.ndarray, count: int, least: int
) -> Bool[np.ndarray, " presets"]:
    """Which presets to show: the best, and what differs enough from it.

    Args:
      presets: best first.
      count: how many to choose.
      least: parameters that differ between any two of them, where so many
        can be found.
    """
    chosen = np.zeros(len(presets), bool)
    for needed in (least, 1, 0):
        for row, preset in enumerate(presets):
            if chosen.sum() == count:
                return chosen
            apart = np.abs(presets[chosen] - preset) > 1e-6
            if not chosen[row] and (apart.sum(1) >= needed).all():
                chosen[row] = True
    return chosen


# The whole -------------------------------------------------------------------


def search(
    setup: Setup,
    target: Float[np.ndarray, " samples"],
    note: int,
    hold: float,
    options: Options,
    label: str = "",
) -> Match:
    """Matches one sound.

    Args:
      setup: what a run offers.
      target: mono, at the rate of the setup's settings; renders are as long.
      note: MIDI note to render.
      hold: seconds from note-on to note-off.
      options: how.
      label: of the progress bar, none when empty.

    Returns:
      The ranked presets. After Ctrl-C, the best so far.

    Raises:
      ValueError: when a stage is on that the run cannot do, or nothing could
        be rendered.
    """
    if "estimator" in options.stages and setup.estimate is None:
        raise ValueError(
            "the run is that of a proxy and has no estimator: turn that "
            "stage off with --noestimator, or give the run of an estimator"
        )
    duration = len(target) / setup.settings.sample_rate
    settings = dataclasses.replace(
        setup.settings,
        duration=duration,
        hold=min(hold, duration),
        fade_out=min(setup.settings.fade_out, duration / 2),
    )
    # Renders fade out at their end: so does the target.
    target = engines.fade(np.array(target, np.float32), settings)
    total = options.evaluations or options.seconds
    with tqdm.tqdm(
        total=total,
        desc=label,
        disable=not label,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {postfix}",
    ) as bar:
        judge = Judge(setup.engine(settings), target, note, options, bar)
        left: dict[str, np.ndarray] = {}
        until: dict[str, tuple[int, float]] = {}
        interrupted = False
        try:
            for name, preset in _stages(setup, judge):
                left[name], until[name] = preset, (judge.renders, judge.seconds)
        except KeyboardInterrupt:
            interrupted = True
        return _finish(judge, left, until, interrupted)


def warm_up(setup: Setup, samples: int, options: Options) -> None:
    """Compiles what searches for sounds of a length need.

    Without this, the first sound's budget would pay for it.

    Args:
      setup: what a run offers.
      samples: length of the sounds.
      options: of the searches.
    """
    few = dataclasses.replace(
        options,
        evaluations=2 * options.parents + 2 * options.starts + 128,
        nearest=options.parents,
        steps=1,
    )
    noise = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    note, hold = setup.settings.note, setup.settings.hold
    search(setup, 0.1 * noise, note, hold, few)


def _stages(setup: Setup, judge: Judge) -> Iterator[tuple[str, np.ndarray]]:
    """Runs the stages; yields the name and best preset of each.

    Of the baseline, all forty presets: `_finish` finds the best.
    """
    options = judge.options
    keys = jax.random.split(jax.random.key(options.seed), 2)
    embedding: np.ndarray | None = None
    if "estimator" in options.stages and setup.estimate is not None:
        judge.stage = "estimator"
        guess = setup.estimate(_fit(judge.target, setup.settings.samples))
        judge.score(guess[None])
        yield "estimator", guess
    if "neighbours" in options.stages:
        judge.stage = "neighbours"
        embedding, near = _nearest(setup, judge.target, options.nearest)
        judge.score(near)
        yield BASELINE, near[:40]
        yield "neighbours", judge.best(1)[0]
    if "gradient" in options.stages:
        judge.stage = "gradient"
        if embedding is None:
            embedding, _ = _nearest(setup, judge.target, 1)
        starts = judge.best(options.starts)
        if not len(starts):
            starts = np.asarray(setup.space.sample(keys[0], (options.starts,)))
        judge.score(_descend(setup, judge, embedding, starts))
        yield "gradient", judge.best(1)[0]
    if "evolution" in options.stages:
        judge.stage = "evolution"
        _evolve(judge, keys[1])
        yield "evolution", judge.best(1)[0]


def _fit(sound: np.ndarray, samples: int) -> np.ndarray:
    """Cut or followed by silence, to so many samples."""
    return np.pad(sound[:samples], (0, max(samples - len(sound), 0)))


def _finish(
    judge: Judge,
    left: dict[str, np.ndarray],
    until: dict[str, tuple[int, float]],
    interrupted: bool,
) -> Match:
    """Ranks what was found and measures it."""
    options = judge.options
    found = judge.best(4096)
    if not len(found):
        raise ValueError(
            "no preset was rendered: turn on the stage estimator, neighbours, "
            "gradient or evolution, or give more time"
        )
    if "ranking" in options.stages:
        judge.stage = "ranking"
        top = found[: options.reranked]
        order = refine.rank(judge.measure(top, ("a_mean",))[1]["a_mean"])
        found = np.concatenate([top[order], found[len(top) :]])
        left["ranking"] = found[0]
        until["ranking"] = (judge.renders, judge.seconds)
    seconds = judge.seconds
    if BASELINE in left:
        near = left[BASELINE]
        exact = judge.measure(near, ("a_mean",))[1]["a_mean"]
        left[BASELINE] = near[refine.rank(exact)[0]]
    chosen = _different(found, options.candidates, found.shape[1] // 10)
    presets = found[chosen]
    clips, measured = judge.measure(
        np.stack([*presets, *left.values()]), distances.names()
    )
    count = len(presets)
    order = np.argsort(measured["a_mean"][:count], kind="stable")
    if "ranking" not in options.stages:
        order = np.arange(count)
    stages = [
        {
            "stage": name,
            "renders": until[name][0],
            "seconds": round(until[name][1], 2),
            "distances": {
                key: float(value[count + row])
                for key, value in measured.items()
            },
        }
        for row, name in enumerate(left)
    ]
    return Match(
        presets=presets[order],
        clips=clips[:count][order],
        distances={k: v[:count][order] for k, v in measured.items()},
        stages=stages,
        renders=judge.renders,
        seconds=seconds,
        interrupted=interrupted,
    )
