"""Choosing presets to render: nearest, promising, best.

Everything here takes presets, what a proxy says of them, and scores; rendering
them is the caller's affair. Children of the best presets so far come from
`proxy.priors.propose`:

* `nearest`: the presets of a bank whose embeddings are closest;
* `promising`: of many children, those that may score best, told from what
  rendered presets scored and what a frozen proxy says of both;
* `at_level`: rendered presets at the level of a target;
* `rank`: the best of what the real synthesizer made of them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from matching import distances
from proxy.space import ParameterSpace
from proxy.spaces import dexed


class Kept(NamedTuple):
    """What a search leaves as it is.

    Attributes:
      preset: a hard preset.
      locked: of which parameters its values are kept.
    """

    preset: Float[np.ndarray, " parameters"]
    locked: Bool[np.ndarray, " parameters"]


def keep(
    presets: Float[np.ndarray, "batch parameters"], kept: Kept | None
) -> Float[np.ndarray, "batch parameters"]:
    """Presets with the values that are to be kept; all as given when None."""
    if kept is None:
        return presets
    return np.where(kept.locked, kept.preset, presets).astype(presets.dtype)


# Screening -------------------------------------------------------------------


# Of the variance of scores, what the proxy's errors are taken for.
_ERRORS = 0.003


def _apart(
    a: Float[Array, "rows embedding"], b: Float[Array, "columns embedding"]
) -> Float[Array, "rows columns"]:
    """Euclidean distances."""
    # Near zero, so that the differences below keep their digits.
    centre = b.mean(0)
    a, b = a - centre, b - centre
    squares = jnp.square(a).sum(1)[:, None] + jnp.square(b).sum(1)
    return jnp.sqrt(jnp.maximum(squares - 2 * a @ b.T, 1e-12))


@functools.partial(jax.jit, static_argnames="count")
def promising(
    key: Key[Array, ""],
    points: Float[Array, "known embedding"],
    scores: Float[Array, " known"],
    used: Bool[Array, " known"],
    candidates: Float[Array, "candidates embedding"],
    count: int,
) -> Int[Array, " count"]:
    """Candidates that may score best, from what rendered presets scored.

    What a proxy says of a preset is not exact, and its distance to the target
    tells little among good presets; but presets that it takes for alike score
    alike. So scores are taken for a Gaussian process over its embeddings, with
    the exponential covariance and twice the mean distance between points as
    its scale (Rasmussen and Williams 2006, equations 2.22 to 2.24 and 4.9).
    Each candidate that is chosen has the least score in one function drawn from
    that process (Thompson 1933), so that a batch is not all alike.

    Args:
      key: JAX random key.
      points: the proxy's embeddings of rendered presets.
      scores: finite scores of them, best as logarithms.
      used: which of these count; at least two.
      candidates: the proxy's embeddings of presets to choose among.
      count: number of candidates to choose.

    Returns:
      Their positions, each once.
    """
    both = used[:, None] & used
    apart = _apart(points, points)
    scale = 2 * jnp.mean(apart, where=both) + 1e-6
    mean = jnp.mean(scores, where=used)
    off = jnp.where(used, scores - mean, 0)
    covariance = jnp.where(both, jnp.exp(-apart / scale), 0)
    covariance += jnp.eye(len(points)) * jnp.where(used, _ERRORS, 1)
    factor = jax.scipy.linalg.cholesky(covariance, lower=True)
    solve = functools.partial(
        jax.scipy.linalg.solve_triangular, factor, lower=True
    )
    white = solve(off)
    across = jnp.exp(-_apart(candidates, points) / scale)
    across = solve(jnp.where(used, across, 0).T)
    expected = mean + white @ across
    variance = jnp.square(white).sum() / used.sum()
    remains = jnp.exp(-_apart(candidates, candidates) / scale)
    remains += jnp.eye(len(candidates)) * _ERRORS - across.T @ across
    # Where rounding leaves no factor, all that is drawn are expectations.
    spread = jnp.nan_to_num(jax.scipy.linalg.cholesky(remains, lower=True))
    normal = jax.random.normal(key, (len(candidates), count))
    drawn = expected[:, None] + jnp.sqrt(variance) * (spread @ normal)

    def pick(taken, column):
        row = jnp.where(taken, jnp.inf, column).argmin()
        return taken.at[row].set(True), row

    return jax.lax.scan(pick, jnp.zeros(len(candidates), bool), drawn.T)[1]


# Levels ----------------------------------------------------------------------

# How presets become louder, of each synthesizer where it is known.
_LEVELS = {"dexed": (dexed.headroom, dexed.louder, dexed.LEVELS)}
# Gains that are tried, in decibels.
_GAINS = np.arange(-48, 24.5, 1.5, dtype=np.float32)


def at_level(
    presets: Float[Array, "batch parameters"],
    clips: Float[Array, "batch samples"],
    goal: Float[Array, "1 frames bins"],
    space: ParameterSpace,
    *,
    every: int,
) -> Float[Array, "batch parameters"]:
    """Rendered presets at the level of a target.

    A preset whose sound is right but for its level scores as badly as a wrong
    one. Where a synthesizer's presets can be made louder and nothing else,
    the gain follows from the sound: here the one of least `stft` distance.

    Args:
      presets: hard presets.
      clips: their sounds; not finite for one that failed to render.
      goal: the feature `stft` of the target, of each n-th frame.
      space: the parameter space.
      every: which frames those are, see `distances.features`.

    Returns:
      The presets with their levels moved; as given in a synthesizer whose
      levels are not known, and where a preset's cannot be moved.
    """
    if space.name not in _LEVELS:
        return presets
    headroom, louder, _ = _LEVELS[space.name]
    most = headroom(presets)

    def one(given: tuple[Array, Array]) -> Array:
        clip, most = given
        gain = distances.gain(clip, goal, _GAINS, every=every, most=most)
        sounds = jnp.isfinite(clip).all() & ~jnp.isnan(most)
        return jnp.where(sounds, gain, 0)

    at_once = None if jax.default_backend() == "cpu" else 16
    gains = jax.lax.map(one, (clips, most), batch_size=at_once)
    return jnp.where((gains == 0)[:, None], presets, louder(presets, gains))


def moves_level(space: ParameterSpace, kept: Kept | None) -> bool:
    """Whether `at_level` can do something, and leaves what is kept."""
    if space.name not in _LEVELS:
        return False
    return kept is None or not kept.locked[_LEVELS[space.name][2]].any()


# Candidates ------------------------------------------------------------------


def nearest(
    target: Float[Array, " embedding"],
    bank: Float[Array, "entries embedding"],
    count: int,
) -> Int[Array, " count"]:
    """The entries of a bank whose embeddings are closest to a target's, in L1.

    Args:
      target: an embedding.
      bank: embeddings of the entries.
      count: number of entries to find; all, when the bank has fewer.

    Returns:
      Their positions, nearest first. Ties go to the earlier entry.
    """
    away = jnp.abs(jnp.asarray(bank) - target).mean(-1)
    return jax.lax.top_k(-away, min(count, away.shape[0]))[1]


def distinct(
    candidates: Float[np.ndarray, "candidates parameters"],
) -> Int[np.ndarray, " kept"]:
    """Positions of candidates that no earlier one equals, in order."""
    _, first = np.unique(np.asarray(candidates), axis=0, return_index=True)
    return np.sort(first)


def rank(
    scores: Float[np.ndarray, " candidates"], count: int | None = None
) -> Int[np.ndarray, " kept"]:
    """Positions of the candidates with the least scores, best first.

    Args:
      scores: distances of rendered candidates; NaN or infinite for one that
        failed to render or is silent, which is never kept.
      count: number of candidates to keep, None for all that are finite.

    Returns:
      Their positions; ties keep their order.
    """
    scores = np.asarray(scores, np.float64)
    order = np.argsort(scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    return order if count is None else order[:count]
