"""From an estimate to a better preset: candidates, their descent and ranking.

Everything here proposes presets and takes their scores; rendering them is the
caller's affair. Three ways of proposing:

* `nearest`: the presets of a bank whose embeddings are closest;
* `begin`, `descend`, `presets`: gradient descent on relaxed presets through a
  frozen proxy, any number of starts at once, a few steps at a time, so that
  the caller can stop when its time is up;
* `propose`: variations of the best candidates so far, for `rank`ing by
  what the real synthesizer makes of them.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

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


def modules(space: ParameterSpace) -> np.ndarray:
    """Tells which parameters belong together: one operator's, one envelope's.

    By their names, of which the first word counts, with the number that
    follows it: "op1_eg_rate_1", "env1:attack", "osc_1_tune".

    Returns:
      `[parameters]`, a number for each used parameter's module.
    """
    words = [re.match(r"[a-z]*_?\d*", p.name.lower()) for p in space.used]
    names = [word.group() if word else "" for word in words]
    return np.unique(names, return_inverse=True)[1]


@functools.partial(jax.jit, static_argnames=("space", "count"))
def propose(
    key: Key[Array, ""],
    parents: Float[Array, "parents parameters"],
    space: ParameterSpace,
    count: int,
    *,
    crossover: Scalar = 0.35,
    difference: Scalar = 0.4,
    share: tuple[Scalar, Scalar] = (0.01, 0.2),
    spread: tuple[Scalar, Scalar] = (0.005, 0.3),
) -> Float[Array, "count parameters"]:
    """Variations of presets, to be scored by the synthesizer's sound.

    Each child takes after one parent, better parents more often, and differs
    from it in one of three ways:

    * crossover: another parent gives it one of its `modules`, or each of
      them with probability 1/2;
    * difference: a share of its numerical parameters moves along the
      difference of two other parents, as in differential evolution (Storn
      and Price 1997);
    * mutation: a share of parameters changes, numerical ones by a normal
      step, switches and categories to a random allowed value. Half of the
      children made by crossover are mutated as well.

    How large a share and a step are is drawn for every child, so that some
    change in one detail and some in many.

    Args:
      key: JAX random key.
      parents: hard presets, best first.
      space: space of the parents.
      count: number of children.
      crossover: probability of the first way.
      difference: probability of the second way; the third has the rest.
      share: least and greatest probability that a parameter mutates; at
        least one does. Log-uniform between the two.
      spread: least and greatest standard deviation of numerical steps,
        log-uniform between the two.

    Returns:
      Presets with every value on its grid; values beyond [0, 1] are
      reflected into it.

    Raises:
      ValueError: when there is no parent.
    """
    if parents.shape[0] == 0:
        raise ValueError("proposing variations needs at least one parent")
    keys = iter(jax.random.split(key, 16))
    size = (count, space.num_used)
    numerical = np.isin(np.arange(space.num_used), space.numerical)

    def between(bounds):
        low, high = jnp.log(jnp.asarray(bounds))
        drawn = jax.random.uniform(next(keys), (count, 1))
        return jnp.exp(low + drawn * (high - low))

    # Weights of parents fall like 1, 1/2, 1/3... with the rank.
    ranks = -jnp.log(jnp.arange(1, parents.shape[0] + 1.0))
    first = jax.random.categorical(next(keys), ranks, shape=(count,))
    others = jax.random.randint(next(keys), (3, count), 0, parents.shape[0])
    child, second, third, fourth = parents[jnp.stack([first, *others])]

    way = jax.random.uniform(next(keys), (count, 1))
    crossed = way < crossover
    moved = ~crossed & (way < crossover + difference)

    module = modules(space)
    number = module.max() + 1
    given = jax.random.bernoulli(next(keys), 0.5, (count, number))
    one = jax.random.randint(next(keys), (count, 1), 0, number)
    single = jax.random.bernoulli(next(keys), 0.5, (count, 1))
    given = jnp.where(single, jnp.arange(number) == one, given)
    child = jnp.where(crossed & given[:, module], second, child)

    drawn = jax.random.uniform(next(keys), (count, 1))
    change = jax.random.bernoulli(next(keys), jnp.maximum(drawn, 0.1), size)
    factor = jax.random.uniform(next(keys), (count, 1), minval=0.2, maxval=1.0)
    step = factor * (third - fourth) * (moved & change & numerical)

    plain = jax.random.bernoulli(next(keys), 0.5, (count, 1))
    change = jax.random.bernoulli(next(keys), between(share), size)
    sure = jax.random.randint(next(keys), (count, 1), 0, space.num_used)
    change |= jnp.arange(space.num_used) == sure
    change &= ~moved & ~(crossed & plain)
    normal = jax.random.normal(next(keys), size)
    step += between(spread) * normal * (change & numerical)

    # Parents may be just outside by rounding; only what moves is reflected.
    away = jnp.abs(child + step)
    child = jnp.where(step != 0, 1 - jnp.abs(1 - away % 2), child)
    fresh = space.sample(next(keys), (count,))
    return space.snap(jnp.where(change & ~numerical, fresh, child))


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
