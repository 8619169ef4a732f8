"""From a target sound to ranked presets: the stages and their loop.

Each stage proposes presets, the real engine renders them, and a quick form of
the distance `a_mean` scores them:

1. estimator: what the network hears;
2. neighbours: the bank's presets with the nearest embeddings, brought to the
   level of the target (`matching.refine.at_level`);
3. evolution: the best presets have children (`proxy.priors.propose`), of
   which those are rendered that may score best, told by the proxy from all
   that was rendered before (`matching.refine.promising`);
4. ranking: the best are rendered again and ordered by `a_mean` itself.
"""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
import tqdm
from jaxtyping import Bool, Float

from datasets import engines
from launch.match.judge import Begun, Judge, Options, Stopped
from launch.runs import opened
from launch.runs.opened import Setup
from matching import distances, refine
from proxy import priors

BASELINE = "nearest 40"


@dataclasses.dataclass(frozen=True)
class Match:
    """The result for a sound.

    Attributes:
      presets: presets, best first.
      clips: sounds of the presets.
      distances: distances to the target by name, one for each preset.
      stages: for the baseline and each stage that was on, its name, the
        distances of the best preset it left, how many presets were rendered
        until then and after how many seconds.
      renders: number of presets rendered by the search.
      seconds: time that the search took.
      interrupted: whether it was ended by Ctrl-C or by who watched it.
    """

    presets: Float[np.ndarray, "candidates parameters"]
    clips: Float[np.ndarray, "candidates samples"]
    distances: dict[str, Float[np.ndarray, " candidates"]]
    stages: list[dict[str, Any]]
    renders: int
    seconds: float
    interrupted: bool


# The stages ------------------------------------------------------------------


def _nearest(setup: Setup, clip: np.ndarray, count: int) -> np.ndarray:
    """The bank's nearest presets."""
    embedding = np.asarray(setup.embed(clip[None]))[0]
    rows = refine.nearest(
        jnp.asarray(embedding), jnp.asarray(setup.bank.embeddings), count
    )
    return setup.bank.presets[np.asarray(rows)]


# Presets that the proxy is asked about at once.
_BLOCK = 128
# Rendered presets that tell what others may score.
_TAUGHT = 512
# Generations that are rendered while another is chosen.
_UNDER_WAY = 2


@functools.partial(jax.jit, static_argnames=("proxy", "space"))
def _predict(variables, presets, *, proxy, space):
    return proxy.apply(variables, space.to_relaxed(presets), train=False)


class _Guide:
    """Chooses among children those worth rendering; asks the proxy once."""

    def __init__(self, setup: Setup, judge: Judge) -> None:
        self._setup = setup
        self._judge = judge
        self._heard: dict[bytes, np.ndarray] = {}

    def _embed(self, presets: np.ndarray) -> np.ndarray:
        """What the proxy says of presets."""
        keys = [preset.tobytes() for preset in presets]
        new = [row for row, key in enumerate(keys) if key not in self._heard]
        for start in range(0, len(new), _BLOCK):
            rows = new[start : start + _BLOCK]
            # As many every time, so that it is compiled once.
            found = _predict(
                self._setup.proxy_variables,
                presets[np.resize(rows, _BLOCK)],
                proxy=self._setup.proxy,
                space=self._setup.space,
            )
            for row, embedding in zip(rows, np.asarray(found), strict=False):
                self._heard[keys[row]] = embedding.copy()
        return np.stack([self._heard[key] for key in keys])

    def choose(
        self, children: np.ndarray, count: int, key: jax.Array
    ) -> np.ndarray:
        """At most so many children that are new and may score best."""
        total = len(children)
        children = children[refine.distinct(children)]
        children = children[[not self._judge.knows(c) for c in children]]
        presets, scores = self._judge.taught(_TAUGHT)
        if len(presets) < 2 or len(children) <= count:
            return children[:count]
        used = np.arange(_TAUGHT) < len(presets)
        rows = np.resize(np.arange(len(presets)), _TAUGHT)
        # Failures are not worth telling apart.
        logs = np.log(np.maximum(scores, 1e-6))
        logs = np.minimum(logs, np.median(logs) + 1)
        padded = np.resize(np.arange(len(children)), total)
        chosen = refine.promising(
            key,
            self._embed(presets)[rows],
            logs[rows],
            used,
            self._embed(children)[padded],
            count,
        )
        children = children[padded[np.asarray(chosen)]]
        # What may be asked about again.
        wanted = {preset.tobytes() for preset in (*presets, *children)}
        wanted |= self._judge.under_way
        self._heard = {k: v for k, v in self._heard.items() if k in wanted}
        return children


def _evolve(setup: Setup, judge: Judge, key: jax.Array) -> None:
    """Generations until the budget is spent; the best have children.

    While two generations are rendered, a third is chosen.
    """
    space, options = judge.renderer.space, judge.options
    guide = _Guide(setup, judge)
    under_way: collections.deque[Begun] = collections.deque()
    number = idle = 0
    # Where nearly all is kept, there is soon nothing new.
    while judge.left > 0 and idle < 16:
        drawing, choosing = jax.random.split(jax.random.fold_in(key, number))
        parents = judge.best(_TAUGHT)
        # Lest they become all alike.
        parents = parents[
            different(parents, options.parents, space.num_used // 12)
        ]
        if not len(parents):
            parents = np.asarray(space.sample(drawing, (options.parents,)))
        padded = np.resize(parents, (options.parents, parents.shape[1]))
        children = priors.propose(
            drawing,
            jnp.asarray(padded),
            space,
            options.children * options.screened,
        )
        children = refine.keep(np.asarray(children), judge.kept)
        chosen = guide.choose(children, options.children, choosing)
        under_way.append(judge.begin(chosen))
        number += 1
        idle = 0 if under_way[-1] else idle + 1
        # As many everywhere, so that the result is the same.
        if len(under_way) > _UNDER_WAY:
            judge.end(under_way.popleft())
    for begun in under_way:
        judge.end(begun)


def different(
    presets: np.ndarray, count: int, least: int
) -> Bool[np.ndarray, " presets"]:
    """Which presets to show: the best, and what differs enough from it.

    Args:
      presets: presets, best first.
      count: number of presets to choose.
      least: number of parameters in which any two of them differ, where
        presets allow it.
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
    *,
    parents: Float[np.ndarray, "parents parameters"] | None = None,
    kept: refine.Kept | None = None,
    watch: Callable[[Judge], bool] | None = None,
) -> Match:
    """Matches one sound.

    Args:
      setup: what a run offers.
      target: a mono sound at the rate of the setup's settings; renders are
        as long as it.
      note: MIDI note to render.
      hold: seconds from note-on to note-off.
      options: how the search is done.
      label: text of the progress bar; no bar when empty.
      parents: presets to start from, in place of the bank's nearest.
      kept: what all presets are to have in common; None for nothing.
      watch: called with the judge after each chunk of renders; the search
        ends, as by Ctrl-C, when it returns False.

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
        renderer = setup.engine().at(settings)
        judge = Judge(renderer, target, note, options, bar, kept, watch)
        left: dict[str, np.ndarray] = {}
        until: dict[str, tuple[int, float]] = {}
        interrupted = False
        # BLAS has threads of its own, which wait for cores without sleeping.
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            try:
                with contextlib.closing(judge):
                    for name, preset in _stages(
                        setup, judge, settings.hold, parents
                    ):
                        left[name] = preset
                        until[name] = (judge.renders, judge.seconds)
            except KeyboardInterrupt:
                interrupted = True
                if not len(judge.best(1)):
                    raise
            except Stopped:
                interrupted = True
            return _finish(judge, left, until, interrupted)


def warm_up(setup: Setup, samples: int, options: Options) -> None:
    """Compiles what searches for sounds of a length need.

    Without this, the first sound's budget would pay for it.
    """
    few = dataclasses.replace(
        options,
        evaluations=2 * options.parents + 2,
        nearest=options.parents,
    )
    noise = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    note, hold = setup.settings.note, setup.settings.hold
    if search(setup, 0.1 * noise, note, hold, few).interrupted:
        raise KeyboardInterrupt


def _stages(
    setup: Setup, judge: Judge, hold: float, parents: np.ndarray | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Runs the stages; yields the name and best preset of each.

    Of the baseline, all forty presets: `_finish` finds the best. Nothing of a
    stage before which no preset could be rendered.
    """
    options = judge.options

    def left(name: str) -> Iterator[tuple[str, np.ndarray]]:
        yield from ((name, preset) for preset in judge.best(1))

    # As long as the run's sounds, at their note, and held as long.
    clip = _fit(judge.target, setup.settings.samples)
    clip = opened.as_known(setup.settings, clip, judge.note, hold)
    if "estimator" in options.stages and setup.estimate is not None:
        judge.stage = "estimator"
        guess = setup.estimate(clip)
        guess = refine.keep(guess[None], judge.kept)[0]
        judge.score(guess[None])
        yield from left("estimator")
    if "neighbours" in options.stages:
        judge.stage = "neighbours"
        if parents is None:
            near = _nearest(setup, clip, options.nearest)
        else:
            near = parents
        near = refine.keep(near, judge.kept)
        yield BASELINE, near[:40]
        if options.level and parents is None:
            near = judge.at_level(near)
        judge.score(near)
        yield from left("neighbours")
    if "evolution" in options.stages:
        judge.stage = "evolution"
        _evolve(setup, judge, jax.random.key(options.seed))
        yield from left("evolution")


def _fit(sound: np.ndarray, samples: int) -> np.ndarray:
    """Cut or followed by silence, to so many samples."""
    return np.pad(sound[:samples], (0, max(samples - len(sound), 0)))


def _finish(
    judge: Judge,
    left: dict[str, np.ndarray],
    until: dict[str, tuple[int, float]],
    interrupted: bool,
) -> Match:
    """Ranks the presets and measures the best."""
    options = judge.options
    ranked = judge.best(4096)
    if not len(ranked):
        raise ValueError(
            "no preset was heard: turn on the stage estimator, neighbours "
            "or evolution, or give more time; if there was enough, the "
            f"engine is silent or fails at note {judge.note}"
        )
    if "ranking" in options.stages:
        judge.stage = "ranking"
        top = ranked[: options.reranked]
        order = refine.rank(judge.measure(top, ("a_mean",))[1]["a_mean"])
        ranked = np.concatenate([top[order], ranked[len(top) :]])
        left["ranking"] = ranked[0]
        until["ranking"] = (judge.renders, judge.seconds)
    seconds = judge.seconds
    if BASELINE in left:
        near = left[BASELINE]
        exact = judge.measure(near, ("a_mean",))[1]["a_mean"]
        if len(first := refine.rank(exact, 1)):
            left[BASELINE] = near[first[0]]
        else:
            del left[BASELINE]
    chosen = different(ranked, options.candidates, ranked.shape[1] // 10)
    presets = ranked[chosen]
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
