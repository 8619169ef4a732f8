"""Weights of the parameter and the perceptual loss, as functions of the step.

The paper's schedules (Combes et al. 2025, section 4.2): constant until
`start`, then linear for `length` steps, then constant.
"""

from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import Array

from proxy import unknown

Schedule = Callable[[int | Array], tuple[Any, Any]]

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
    begin, lasting = int(start * steps), int(length * steps)
    parameter, perceptual = (
        # A change of no length is one of a single step: a jump.
        optax.linear_schedule(first, last, max(lasting, 1), begin)
        for first, last in zip(*_ENDS[name], strict=True)
    )
    return lambda step: (parameter(step), perceptual(step))


def temperature(first: float, last: float, steps: int) -> optax.Schedule:
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
    return optax.exponential_decay(
        first, max(steps, 1), last / first, end_value=last
    )
