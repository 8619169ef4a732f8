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

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Bool, Float

from datasets import engines
from launch.match.judge import Judge, Options, Stopped
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


def _nearest(
    setup: Setup, target: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The embedding of a target and the bank's nearest presets."""
    clip = _fit(target, setup.settings.samples)
    embedding = np.asarray(setup.embed(clip[None]))[0]
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
        known = np.concatenate([scores, judge.score(children)])
        everyone = np.concatenate([parents, children])
        kept = refine.distinct(everyone)
        kept = kept[refine.rank(known[kept], options.parents)]
        parents, scores = everyone[kept], known[kept]
    return parents


_snap = jax.jit(lambda presets, space: space.snap(presets), static_argnums=1)


def _polish(judge: Judge, best: np.ndarray, key: jax.Array) -> np.ndarray:
    """A few generations of CMA-ES on some numerical parameters."""
    import cma

    space = judge.renderer.space
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    free = np.array(space.numerical)
    if judge.kept is not None:
        free = free[~judge.kept.locked[free]]
    if len(free) < 2:
        return best[None]
    columns = rng.choice(free, min(24, len(free)), replace=False)
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
        kept = [best]
        for _ in range(16):
            if judge.left <= 0:
                break
            asked = strategy.ask()
            presets = np.repeat(best[None], len(asked), axis=0)
            presets[:, columns] = np.array(asked)
            presets = np.asarray(_snap(presets, space))
            scores = judge.score(presets)
            kept.append(presets[scores.argmin()])
            if not np.isfinite(scores).all():
                break
            strategy.tell(asked, scores.tolist())
    return np.stack(kept)


def _evolve(judge: Judge, key: jax.Array) -> None:
    """Rounds of both kinds until the budget is spent."""
    parents = judge.best(judge.options.parents)
    if not len(parents):
        space = judge.renderer.space
        parents = np.asarray(space.sample(key, (judge.options.parents,)))
    gains = {"genetic": np.inf, "polish": np.inf}
    number = idle = 0
    # Where nearly all is kept, there is soon nothing new.
    while judge.left > 0 and idle < 16:
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
        idle = 0 if judge.renders > renders else idle + 1
        gain = (before - judge.best_score) / spent
        gains[kind] = gain if np.isfinite(gain) else np.inf
        other = "polish" if kind == "genetic" else "genetic"
        if np.isfinite(gains[other]):
            gains[other] = 1.3 * gains[other] + 1e-6


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
        renderer = setup.engine().for_few().at(settings)
        judge = Judge(renderer, target, note, options, bar, kept, watch)
        left: dict[str, np.ndarray] = {}
        until: dict[str, tuple[int, float]] = {}
        interrupted = False
        try:
            for name, preset in _stages(setup, judge, parents):
                left[name], until[name] = preset, (judge.renders, judge.seconds)
        except (KeyboardInterrupt, Stopped):
            interrupted = True
        return _finish(judge, left, until, interrupted)


def warm_up(setup: Setup, samples: int, options: Options) -> None:
    """Compiles what searches for sounds of a length need.

    Without this, the first sound's budget would pay for it.
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


def _stages(
    setup: Setup, judge: Judge, parents: np.ndarray | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Runs the stages; yields the name and best preset of each.

    Of the baseline, all forty presets: `_finish` finds the best.
    """
    options = judge.options
    keys = jax.random.split(jax.random.key(options.seed), 2)
    embedding: np.ndarray | None = None
    if "estimator" in options.stages and setup.estimate is not None:
        judge.stage = "estimator"
        guess = setup.estimate(_fit(judge.target, setup.settings.samples))
        guess = refine.keep(guess[None], judge.kept)[0]
        judge.score(guess[None])
        yield "estimator", guess
    if "neighbours" in options.stages:
        judge.stage = "neighbours"
        if parents is None:
            embedding, near = _nearest(setup, judge.target, options.nearest)
        else:
            near = parents
        near = refine.keep(near, judge.kept)
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
    """Ranks the presets and measures the best."""
    options = judge.options
    ranked = judge.best(4096)
    if not len(ranked):
        raise ValueError(
            "no preset was rendered: turn on the stage estimator, neighbours, "
            "gradient or evolution, or give more time"
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
        left[BASELINE] = near[refine.rank(exact)[0]]
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
