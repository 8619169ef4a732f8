"""Renders presets for one target, scores them, remembers the best."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float

from datasets import engines, loader
from matching import distances, refine

STAGES = ("estimator", "neighbours", "gradient", "evolution", "ranking")
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
      starts: number of presets that gradient descent starts from.
      steps: number of steps of gradient descent.
      learning_rate: step size of gradient descent, in logits.
      parents: number of presets kept between genetic rounds.
      every: the search looks at each frame of this number of frames.
      reranked: number of presets that the last stage measures.
      workers: number of rendering workers, 0 for one per core.
      seed: number that all random choices depend on.
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
        self.renderer = renderer
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
        """Scores of hard presets, with what is kept, by the quick distance.

        They are infinite for a preset that failed to render, and for those that
        the budget did not suffice for.

        Raises:
          Stopped: when whoever watches has seen enough.
        """
        presets = refine.keep(np.asarray(presets, np.float32), self.kept)
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
        return np.array(
            [self._known.get(preset.tobytes(), np.inf) for preset in presets]
        )

    def _score_chunk(
        self, presets: np.ndarray, sounds: Iterator[np.ndarray]
    ) -> None:
        clips = np.zeros((_CHUNK, len(self.target)), np.float32)
        for row in range(len(presets)):
            clips[row] = next(sounds)
        scores = np.asarray(self._score(clips, self._goal), np.float64)
        scores = np.where(np.isfinite(scores), scores, np.inf)
        for preset, score in zip(presets, scores, strict=False):
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
        clips = np.stack(list(self.render(presets)))

        def work(part):
            return distances.measure(
                jnp.asarray(part),
                jnp.asarray(self.target[None]),
                sample_rate=self.renderer.settings.sample_rate,
                chosen=chosen,
            )

        measured = loader.map_blocks(work, clips, size=_CHUNK)
        return clips, {name: measured[name] for name in chosen}

    def best(self, count: int) -> Float[np.ndarray, "count parameters"]:
        """At most so many presets with the least scores, best first."""
        rows = list(self._known)
        order = refine.rank(np.array([self._known[r] for r in rows]), count)
        presets = b"".join(rows[i] for i in order)
        shape = (len(order), self.renderer.space.num_used)
        return np.frombuffer(presets, np.float32).reshape(shape)
