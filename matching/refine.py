"""From an estimate to a better preset: candidates, their descent and ranking.

Everything here proposes presets and takes their scores; rendering them is the
caller's affair. Two ways of proposing, besides `proxy.priors.propose`, which
varies the best candidates so far, for `rank`ing by what the real synthesizer
makes of them:

* `nearest`: the presets of a bank whose embeddings are closest;
* `begin`, `descend`, `presets`: gradient descent on relaxed presets through a
  frozen proxy, any number of starts at once, a few steps at a time, so that
  the caller can stop when its time is up.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from matching import decode
from proxy.space import ParameterSpace

# Options of compiled functions are numbers outside and arrays inside.
Scalar = float | Float[Array, ""]

# Probabilities are kept this far from 0 and 1 where they become logits.
_MARGIN = 1e-3


def to_logits(
    relaxed: Float[Array, "*batch width"], space: ParameterSpace
) -> Float[Array, "*batch width"]:
    """Logits, in table order, that `decode.relaxed` maps to nearly this.

    Args:
      relaxed: a relaxed preset. Numbers nearer to 0 or 1 than 0.001 are
        taken as that, since there the gradient vanishes.
      space: space of the preset.

    Returns:
      Finite logits.
    """
    split = len(space.noncategorical)
    values = jnp.clip(relaxed[..., :split], _MARGIN, 1 - _MARGIN)
    categories = jnp.maximum(relaxed[..., split:], _MARGIN)
    ordered = jnp.concatenate(
        [jax.scipy.special.logit(values), jnp.log(categories)], axis=-1
    )
    return ordered[..., np.argsort(space.relaxed_from_logit)]


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


# Gradient descent ------------------------------------------------------------


class Descent(NamedTuple):
    """Where the descents stand; every array has one row a start.

    Attributes:
      position: logits, which keep a preset valid wherever they move.
      moments: moments of the optimizer.
      best: the relaxed presets with the least loss so far.
      loss: least loss so far, infinite before the first step.
    """

    position: Float[Array, "starts width"]
    moments: Any
    best: Float[Array, "starts width"]
    loss: Float[Array, " starts"]


def begin(
    starts: Float[Array, "starts parameters"],
    space: ParameterSpace,
) -> Descent:
    """Sets descents off from hard presets.

    Returns:
      The state before the first step.

    Raises:
      ValueError: for presets that do not fit the space.
    """
    relaxed = space.to_relaxed(jnp.asarray(starts))
    position = to_logits(relaxed, space)
    return Descent(
        position=position,
        moments=optax.adam(0.0).init(position),
        best=relaxed,
        loss=jnp.full(relaxed.shape[0], jnp.inf, relaxed.dtype),
    )


@functools.partial(jax.jit, static_argnames=("proxy", "space", "steps"))
def descend(
    state: Descent,
    target: Float[Array, " embedding"],
    variables: Any,
    *,
    proxy: Any,
    space: ParameterSpace,
    steps: int,
    learning_rate: float | Float[Array, ""] = 0.05,
) -> Descent:
    """Adam on the distance between the proxy's embedding and the target's.

    Args:
      state: where the descents stand, from `begin` or from here.
      target: embedding of the target audio.
      variables: variables of the proxy, not changed.
      proxy: a preset encoder, applied in evaluation mode.
      space: the parameter space.
      steps: number of steps to take.
      learning_rate: size of a step, in logits.

    Returns:
      The state after these steps; its `best` counts the point before each
      step, and the loss is the mean absolute difference per embedding.
    """

    def loss_fn(position):
        relaxed = decode.relaxed(position, space)
        embedding = proxy.apply(variables, relaxed, train=False)
        losses = jnp.abs(embedding - target).mean(-1)
        return losses.sum(), (losses, relaxed)

    # Elementwise, so that no start sees another one's gradient.
    optimizer = optax.adam(learning_rate)

    def step(state: Descent, _):
        grads, (losses, relaxed) = jax.grad(loss_fn, has_aux=True)(
            state.position
        )
        updates, moments = optimizer.update(grads, state.moments)
        position: Any = optax.apply_updates(state.position, updates)
        better = losses < state.loss
        return Descent(
            position=position,
            moments=moments,
            best=jnp.where(better[:, None], relaxed, state.best),
            loss=jnp.where(better, losses, state.loss),
        ), None

    return jax.lax.scan(step, state, length=steps)[0]


def presets(
    state: Descent, space: ParameterSpace
) -> Float[Array, "starts parameters"]:
    """The best hard presets of every descent, each value on its grid."""
    return space.snap(space.from_relaxed(state.best))


# Candidates ------------------------------------------------------------------


def nearest(
    target: Float[Array, " embedding"],
    bank: Float[Array, "entries embedding"],
    count: int,
) -> tuple[Int[Array, " count"], Float[Array, " count"]]:
    """The entries of a bank whose embeddings are closest to a target's.

    Args:
      target: an embedding.
      bank: embeddings of the entries.
      count: number of entries to find; all, when the bank has fewer.

    Returns:
      Their positions, nearest first, and mean absolute differences. Ties
      go to the earlier entry.
    """
    away = jnp.abs(jnp.asarray(bank) - target).mean(-1)
    least, where = jax.lax.top_k(-away, min(count, away.shape[0]))
    return where, -least


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
