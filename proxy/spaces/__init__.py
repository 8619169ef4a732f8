"""The synthesizers: one parameter table per module, found by name."""

import difflib

from proxy.space import ParameterSpace
from proxy.spaces import dexed, diva, talnm

_SPACES = {m.SPACE.name: m.SPACE for m in (dexed, diva, talnm)}


def names() -> tuple[str, ...]:
    """Names that `get` knows."""
    return tuple(_SPACES)


def get(name: str) -> ParameterSpace:
    """The parameter space of a synthesizer.

    Args:
      name: "dexed", "diva" or "talnm".

    Returns:
      Its space.

    Raises:
      ValueError: when the name is unknown; lists the known ones.
    """
    if name not in _SPACES:
        near = difflib.get_close_matches(name, _SPACES, n=1)
        raise ValueError(
            f"unknown synthesizer {name!r}"
            + (f", did you mean {near[0]!r}?" if near else "")
            + f" (known: {', '.join(_SPACES)})"
        )
    return _SPACES[name]
