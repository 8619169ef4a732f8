"""Weights of the parameter and the perceptual loss, as functions of the step.

The paper's schedules (Combes et al. 2025, section 4.2): constant until
`start`, then linear for `length` steps, then constant.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from proxy import unknown

Step = int | Array
Weights = tuple[Any, Any]
Schedule = Callable[[Step], Weights]

# (parameter, perceptual) weights at the beginning and at the end.
_ENDS = {
    "ploss": ((1.0, 0.0), (1.0, 0.0)),
    "mix": ((1.0, 0.0), (0.5, 5.0)),
    "switch": ((1.0, 0.0), (0.0, 10.0)),
    "reversed_mix": ((0.0, 10.0), (0.5, 5.0)),
    "reversed_switch": ((0.0, 10.0), (1.0, 0.0)),
    "perceptual": ((0.0, 10.0), (0.0, 10.0)),
}


def names() -> tuple[str, ...]:
    """Names of all schedules."""
    return tuple(_ENDS)


def linear(
    first: float, last: float, *, start: int, length: int
) -> Callable[[Step], Any]:
    """`first` until step `start`, then linear to `last` in `length` steps.

    Args:
      first: value until `start`, inclusive.
      last: value from `start + length` on.
      start: step at which the change begins.
      length: steps that it lasts; 0 is a jump after `start`.

    Returns:
      A function from the step, traced or not.
    """

    def value(step: Step) -> Any:
        phase = jnp.clip((step - start) / max(length, 1), 0.0, 1.0)
        # Weighted ends, so that both are met exactly.
        return first * (1 - phase) + last * phase

    return value


def get(
    name: str, steps: int, *, start: float = 0.333, length: float = 0.33
) -> Schedule:
    """A schedule by name, for a run of so many steps.

    Args:
      name: one of `names()`. `ploss` is the parameter loss alone and
        `perceptual` the perceptual loss alone.
      steps: length of the run.
      start: share of the run after which the change begins; the step is
        rounded down.
      length: share of the run that it lasts, likewise.

    Returns:
      A function from the step to (parameter weight, perceptual weight).

    Raises:
      ValueError: for an unknown name, lists near and known ones; or for
        shares outside [0, 1].
    """
    if name not in _ENDS:
        raise ValueError(unknown("schedule", name, _ENDS))
    if not (0 <= start <= 1 and 0 <= length <= 1):
        raise ValueError(
            f"start {start} and length {length} are shares of the run: give "
            "numbers in [0, 1]"
        )
    when = {"start": int(start * steps), "length": int(length * steps)}
    (p0, a0), (p1, a1) = _ENDS[name]
    parameter, perceptual = linear(p0, p1, **when), linear(a0, a1, **when)
    return lambda step: (parameter(step), perceptual(step))


def uses_proxy(name: str) -> bool:
    """Whether a schedule ever gives the perceptual loss a weight.

    Raises:
      KeyError: for an unknown name.
    """
    return any(perceptual > 0 for _, perceptual in _ENDS[name])


def temperature(
    first: float, last: float, steps: int
) -> Callable[[Step], Float[Array, ""]]:
    """Exponential decay of a softmax temperature, then constant.

    Args:
      first: temperature at step 0.
      last: temperature from step `steps` on.
      steps: length of the decay.

    Returns:
      A function from the step: `first * (last / first) ** (step / steps)`
      (Jang et al., https://arxiv.org/abs/1611.01144, section 2.2, anneal so).

    Raises:
      ValueError: when a temperature is not positive.
    """
    if first <= 0 or last <= 0:
        raise ValueError(
            f"temperatures must be positive, got {first} and {last}"
        )

    def value(step: Step) -> Float[Array, ""]:
        phase = jnp.clip(step / max(steps, 1), 0.0, 1.0)
        return jnp.asarray(first * (last / first) ** phase)

    return value
