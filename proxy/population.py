"""Many small encoders trained at once: members of a population, vmapped.

A small encoder leaves an accelerator idle. Members share their architecture
and the shapes of their batches; their seeds, batches and the numbers in their
optimizers (learning rate, moments, decay) are their own. A member computes
what it would compute alone.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Key, PyTree

from proxy import objective
from proxy.space import ParameterSpace

# By name of the optimizer's argument, one value per member.
Rates = dict[str, Float[Array, " members"]]
MakeOptimizer = Callable[..., optax.GradientTransformation]
Step = Callable[
    [Rates, objective.TrainState, objective.Batch],
    tuple[objective.TrainState, objective.Metrics],
]


@struct.dataclass
class Best:
    """Each member at its best validation so far.

    Attributes:
      score: score of the member, -inf before the first, float32 `[members]`.
      step: step of that validation, int32 `[members]`.
      state: the state it had then.
    """

    score: Any
    step: Any
    state: PyTree


def init_states(
    encoder: nn.Module,
    make_optimizer: MakeOptimizer,
    rates: Rates,
    keys: Key[Array, " members"],
    width: int,
    **options: Any,
) -> objective.TrainState:
    """Fresh states, one per member.

    Args:
      encoder: a preset encoder.
      make_optimizer: builds a gradient transformation from a member's rates,
        given by name as scalars.
      rates: arguments of it that differ among members, `[members]` each.
      keys: JAX random key of each member.
      width: size of a relaxed preset.
      **options: options of `objective.init_state`.

    Returns:
      A `TrainState` whose arrays all have a leading axis of members.
    """

    def one(rates: Any, key: Any) -> objective.TrainState:
        return objective.init_state(
            encoder, make_optimizer(**rates), key, width, **options
        )

    return jax.vmap(one)(rates, keys)


def train_step(
    encoder: nn.Module,
    space: ParameterSpace,
    make_optimizer: MakeOptimizer,
    **options: Any,
) -> Step:
    """Builds one optimizer step of every member.

    Members do not see each other, so the axis may be split over devices
    without any communication.

    Args:
      encoder: a preset encoder.
      space: turns the batches' presets into relaxed ones.
      make_optimizer: builds a gradient transformation from a member's rates.
      **options: options of `objective.train_step`.

    Returns:
      `(rates, states, {"preset", "embedding"}) -> (states, metrics)`, all
      with a leading axis of members: batches are `[members, batch, ...]`,
      metrics `[members]`.
    """

    def one(
        rates: Any, state: Any, batch: Any
    ) -> tuple[objective.TrainState, objective.Metrics]:
        step = objective.train_step(
            encoder, space, make_optimizer(**rates), **options
        )
        return step(state, batch)

    return jax.vmap(one)


def select(states: PyTree, member: int) -> PyTree:
    """One member of stacked states."""
    return jax.tree.map(lambda x: x[member], states)


def first_best(states: objective.TrainState) -> Best:
    """What `keep_best` starts from, before any validation."""
    members = states.step.shape
    return Best(
        score=jnp.full(members, -jnp.inf, jnp.float32),
        step=jnp.zeros(members, jnp.int32),
        state=jax.tree.map(jnp.copy, states),
    )


def keep_best(
    best: Best,
    states: objective.TrainState,
    score: Float[Array, " members"],
) -> Best:
    """Replaces those members that are better than they ever were.

    Args:
      best: the best so far.
      states: the members now.
      score: score of each member now, the higher the better; one that is not
        a number replaces nothing.

    Returns:
      The best with this validation.
    """
    better: Bool[Array, " members"] = score > best.score

    def pick(new: Any, old: Any) -> Any:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return Best(
        score=pick(score, best.score),
        step=pick(states.step, best.step),
        state=jax.tree.map(pick, states, best.state),
    )
