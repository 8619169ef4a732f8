"""Renders presets for one target, scores them, remembers the best."""

import concurrent.futures
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float

from datasets import engines, loader
from matching import distances, refine
from proxy.space import ParameterSpace

STAGES = ("estimator", "neighbours", "evolution", "ranking")
# Clips whose distances one call works out.
_CHUNK = 8
# Seconds kept for the last stage.
_RESERVE = 1.5


@dataclasses.dataclass(frozen=True)
class Options:
    """How a sound is matched.

    Attributes:
      stages: stages that are on, of `STAGES`.
      seconds: budget of a sound, its ranking included.
      evaluations: most renders of the search, in place of seconds, so that
        the result depends on the arguments alone; 0 for seconds.
      candidates: number of presets to return.
      nearest: number of presets of the bank to render.
      parents: number of presets that have children.
      every: the search looks at each frame of this number of frames.
      children: number of presets that a generation renders.
      screened: number of children that are proposed for each one that is
        rendered; with 1, the proxy chooses none.
      level: whether the bank's presets are brought to the level of the
        target, where the synthesizer's levels are known.
      reranked: number of presets that the last stage measures.
      workers: number of rendering workers, 0 for one per core.
      seed: number that all random choices depend on.
    """

    stages: tuple[str, ...] = STAGES
    seconds: float = 60.0
    evaluations: int = 0
    candidates: int = 5
    nearest: int = 64
    parents: int = 32
    every: int = 16
    children: int = 64
    screened: int = 4
    level: bool = True
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
        if not self.evaluations and not self.seconds >= 2:
            raise ValueError(f"seconds={self.seconds:g}: give at least 2")
        for name in (
            "candidates",
            "nearest",
            "parents",
            "every",
            "children",
            "screened",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, need >= 1")
        for name in ("evaluations", "workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, need >= 0")


class Stopped(Exception):
    """Whoever watches a search has seen enough."""


def _alone(pure: Callable, **fixed: Any) -> Callable:
    """Compiled for one of several threads, which keep the cores busy."""
    options = {}
    if jax.default_backend() == "cpu":
        options = {"xla_cpu_multi_thread_eigen": False}
    return jax.jit(functools.partial(pure, **fixed), compiler_options=options)


@functools.cache
def _quick(every: int, sample_rate: int) -> Callable:
    return _alone(distances.quick_a_mean, every=every, sample_rate=sample_rate)


@functools.cache
def _at_level(every: int, space: ParameterSpace) -> Callable:
    return _alone(refine.at_level, every=every, space=space)


_goal = jax.jit(
    distances.features, static_argnames=("sample_rate", "chosen", "every")
)


def _rounded(settings: engines.RenderSettings) -> engines.RenderSettings:
    """Settings of longer clips without a fade, to be cut.

    So that an engine that is compiled for a length is for a few lengths only.
    """
    halves = math.ceil(2 * settings.duration)
    return dataclasses.replace(settings, duration=halves / 2, fade_out=0.0)


# Presets that are being rendered, and their scores to be.
Begun = list[tuple[np.ndarray, concurrent.futures.Future]]


class Judge:
    """Renders presets, scores them against one target, remembers all.

    To be closed.

    Args:
      renderer: the engine, with settings of the target's length.
      target: the sound to match.
      note: MIDI note to render.
      options: how the search is done.
      bar: progress bar of the search.
      kept: what every preset has in common; None for nothing.
      watch: called after each chunk of renders; the search is `Stopped` when
        it returns False.
    """

    def __init__(
        self,
        renderer: engines.Renderer,
        target: Float[np.ndarray, " samples"],
        note: int,
        options: Options,
        bar: tqdm.tqdm,
        kept: refine.Kept | None = None,
        watch: Callable[["Judge"], bool] | None = None,
    ) -> None:
        self._settings = renderer.settings
        self.renderer = renderer.at(_rounded(renderer.settings)).for_few()
        self._size = self.renderer.batch or _CHUNK
        self.target = target
        self.note = note
        self.options = options
        self.kept = kept
        self.renders = 0
        self.stage = ""
        self._watch = watch
        self._bar = bar
        self._begun = time.monotonic()
        self._workers = engines.num_workers(options.workers)
        self._pool = concurrent.futures.ThreadPoolExecutor(self._workers)
        self._known: dict[bytes, float] = {}
        # What is being rendered.
        self.under_way: set[bytes] = set()
        self.best_score = np.inf
        rate = renderer.settings.sample_rate
        self._goal = _goal(
            target[None],
            sample_rate=rate,
            chosen=("a_mean",),
            every=options.every,
        )
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
        self, presets: Float[np.ndarray, "batch parameters"], workers: int = 1
    ) -> Float[np.ndarray, "batch samples"]:
        """Renders presets at the note; NaN where the engine fails.

        Args:
          presets: hard presets.
          workers: threads to share the work.
        """
        values = np.asarray(self.renderer.space.to_plugin(presets), np.float32)
        notes = [self.note] * len(values)
        clips, failed = self.renderer.render_batch(
            values, notes, workers=workers
        )
        clips = clips[:, : len(self.target)]
        for row, reason in enumerate(failed):
            clips[row] = (
                engines.fade(clips[row], self._settings)
                if reason is None
                else np.nan
            )
        return clips

    def score(self, presets: Float[np.ndarray, "batch parameters"]) -> None:
        """Renders and scores hard presets, with what is kept.

        Raises:
          Stopped: when whoever watches has seen enough.
        """
        self.end(self.begin(presets))

    def begin(self, presets: Float[np.ndarray, "batch parameters"]) -> Begun:
        """Lets hard presets be rendered and scored; the new ones, in threads.

        Returns:
          What `end` is to be given, in the same order.
        """
        presets = refine.keep(np.asarray(presets, np.float32), self.kept)
        rows = refine.distinct(presets)
        new = presets[[row for row in rows if not self.knows(presets[row])]]
        if self.options.evaluations:
            new = new[: max(int(self.left) - len(self.under_way), 0)]
        self.under_way.update(preset.tobytes() for preset in new)
        return [
            (p, self._pool.submit(self._scored, p)) for p in self._parts(new)
        ]

    def end(self, begun: Begun) -> None:
        """Waits for presets that are being rendered, and remembers them.

        Raises:
          Stopped: when whoever watches has seen enough.
        """
        for part, future in begun:
            self.under_way -= {preset.tobytes() for preset in part}
            self._learn(part, future.result())

    def at_level(
        self, presets: Float[np.ndarray, "batch parameters"]
    ) -> Float[np.ndarray, "batch parameters"]:
        """Hard presets at the level of the target, which renders them once.

        As they are where the synthesizer's levels are not known or are kept, or
        the budget does not suffice for rendering them twice.
        """
        space = self.renderer.space
        if not refine.moves_level(space, self.kept) or (
            self.options.evaluations and self.left < 2 * len(presets)
        ):
            return presets
        move = _at_level(self.options.every, space)

        def moved(part: np.ndarray) -> tuple[np.ndarray, int]:
            if self.left <= 0:
                return part, 0
            padded = np.resize(part, (self._size, part.shape[1]))
            found = move(padded, self._clips(part), self._goal["stft"])
            return np.asarray(found)[: len(part)], len(part)

        parts = list(self._pool.map(moved, self._parts(presets)))
        self.renders += sum(rendered for _, rendered in parts)
        return np.concatenate([part for part, _ in parts] or [presets])

    def _parts(self, presets: np.ndarray) -> list[np.ndarray]:
        starts = range(0, len(presets), self._size)
        return [presets[start : start + self._size] for start in starts]

    def _clips(self, presets: np.ndarray) -> np.ndarray:
        """Sounds; as many every time, so that all is compiled once."""
        clips = np.zeros((self._size, len(self.target)), np.float32)
        clips[: len(presets)] = self.render(presets)
        return clips

    def close(self) -> None:
        """Lets go of what is being rendered."""
        self._pool.shutdown(cancel_futures=True)

    def _scored(self, presets: np.ndarray) -> np.ndarray:
        """Scores of presets, in a thread; of none when time is up."""
        if self.left <= 0:
            return np.zeros(0)
        scores = self._score(self._clips(presets), self._goal)
        scores = np.asarray(scores, np.float64)
        return np.where(np.isfinite(scores), scores, np.inf)[: len(presets)]

    def _learn(self, presets: np.ndarray, scores: np.ndarray) -> None:
        for preset, score in zip(presets, scores.tolist(), strict=False):
            self._known[preset.tobytes()] = score
            self.best_score = min(self.best_score, score)
        self.renders += len(scores)
        self._show()
        if self._watch is not None and not self._watch(self):
            raise Stopped

    def _show(self) -> None:
        done = self.renders if self.options.evaluations else self.seconds
        self._bar.n = round(min(done, self._bar.total), 1)
        self._bar.set_postfix_str(
            f"{self.stage}, {self.renders:,} renders, "
            f"a_mean {self.best_score:.3f}"
        )

    def measure(
        self,
        presets: Float[np.ndarray, "batch parameters"],
        chosen: tuple[str, ...],
    ) -> tuple[
        Float[np.ndarray, "batch samples"],
        dict[str, Float[np.ndarray, " batch"]],
    ]:
        """Renders presets, no part of the search; sounds and distances."""
        clips = self.render(presets, self._workers)

        def work(part):
            return distances.measure(
                jnp.asarray(part),
                jnp.asarray(self.target[None]),
                sample_rate=self.renderer.settings.sample_rate,
                chosen=chosen,
            )

        measured = loader.map_blocks(work, clips, size=_CHUNK)
        return clips, {name: measured[name] for name in chosen}

    def knows(self, preset: Float[np.ndarray, " parameters"]) -> bool:
        """Whether a preset was scored, or will be."""
        key = preset.tobytes()
        return key in self._known or key in self.under_way

    def taught(
        self, count: int
    ) -> tuple[
        Float[np.ndarray, "known parameters"], Float[np.ndarray, " known"]
    ]:
        """At most so many scored presets: the best, and the latest.

        Returns:
          Half of them each, and their finite scores.
        """
        scores = np.array(list(self._known.values()))
        rows = refine.rank(scores)
        best, others = rows[: count // 2], rows[count // 2 :]
        chosen = np.concatenate([best, np.sort(others)[-(count // 2) :]])
        keys = list(self._known)
        presets = b"".join(keys[row] for row in chosen)
        shape = (len(chosen), self.renderer.space.num_used)
        return (
            np.frombuffer(presets, np.float32).reshape(shape),
            scores[chosen],
        )

    def best(self, count: int) -> Float[np.ndarray, "count parameters"]:
        """At most so many presets with the least scores, best first."""
        rows = list(self._known)
        order = refine.rank(np.array([self._known[r] for r in rows]), count)
        presets = b"".join(rows[i] for i in order)
        shape = (len(order), self.renderer.space.num_used)
        return np.frombuffer(presets, np.float32).reshape(shape)
