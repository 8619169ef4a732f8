"""Renders presets for one target, scores them, remembers the best."""

import concurrent.futures
import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float

from datasets import engines, loader
from matching import distances, refine

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
      reranked: number of presets that the last stage measures.
      workers: number of rendering workers, 0 for one per core.
      seed: number that all random choices depend on.
    """

    stages: tuple[str, ...] = STAGES
    seconds: float = 60.0
    evaluations: int = 0
    candidates: int = 5
    nearest: int = 320
    parents: int = 32
    every: int = 16
    children: int = 128
    screened: int = 4
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


_goal = jax.jit(
    distances.features, static_argnames=("sample_rate", "chosen", "every")
)


def _rounded(settings: engines.RenderSettings) -> engines.RenderSettings:
    """Settings of longer clips without a fade, to be cut.

    So that an engine that is compiled for a length is for a few lengths only.
    """
    halves = math.ceil(2 * settings.duration)
    return dataclasses.replace(settings, duration=halves / 2, fade_out=0.0)


class Judge:
    """Renders presets, scores them against one target, remembers all.

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
        self._known: dict[bytes, float] = {}
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

    def score(
        self, presets: Float[np.ndarray, "batch parameters"]
    ) -> Float[np.ndarray, " batch"]:
        """Scores of hard presets, with what is kept, by the quick distance.

        They are infinite for a preset that failed to render, and for those that
        the budget did not suffice for.

        Raises:
          Stopped: when whoever watches has seen enough.
        """
        presets = refine.keep(np.asarray(presets, np.float32), self.kept)
        rows = refine.distinct(presets)
        new = presets[[row for row in rows if not self.knows(presets[row])]]
        if self.options.evaluations:
            new = new[: max(int(self.left), 0)]
        parts = [
            new[start : start + self._size]
            for start in range(0, len(new), self._size)
        ]
        pool = concurrent.futures.ThreadPoolExecutor(self._workers)
        try:
            found = pool.map(self._scored, parts)
            for part, scores in zip(parts, found, strict=True):
                self._learn(part[: len(scores)], scores)
        finally:
            pool.shutdown(cancel_futures=True)
        return np.array(
            [self._known.get(preset.tobytes(), np.inf) for preset in presets]
        )

    def _scored(self, presets: np.ndarray) -> np.ndarray:
        """Scores of presets, in a thread; of none when time is up."""
        if self.left <= 0:
            return np.zeros(0)
        # As many every time, so that it is compiled once.
        clips = np.zeros((self._size, len(self.target)), np.float32)
        clips[: len(presets)] = self.render(presets)
        scores = np.asarray(self._score(clips, self._goal), np.float64)
        return np.where(np.isfinite(scores), scores, np.inf)[: len(presets)]

    def _learn(self, presets: np.ndarray, scores: np.ndarray) -> None:
        for preset, score in zip(presets, scores, strict=True):
            self._known[preset.tobytes()] = float(score)
            self.best_score = min(self.best_score, float(score))
        self.renders += len(presets)
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
        """Whether a preset was scored."""
        return preset.tobytes() in self._known

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
