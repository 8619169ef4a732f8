"""The synthesizers: one parameter table per module, found by name.

A module NAME.py in this folder, with the table SPACE, is a synthesizer.
"""

import importlib
import pkgutil

from proxy import unknown
from proxy.space import ParameterSpace

_NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def names() -> tuple[str, ...]:
    """Names that `get` knows."""
    return _NAMES


def get(name: str) -> ParameterSpace:
    """The parameter space of a synthesizer.

    Returns:
      Its space.

    Raises:
      ValueError: when the name is unknown; lists the known ones.
    """
    if name not in _NAMES:
        raise ValueError(unknown("synthesizer", name, _NAMES))
    return importlib.import_module(f"{__name__}.{name}").SPACE
