"""Differentiable proxies of synthesizers: pure functions in JAX.

The rooms: `space` and `spaces` (what a preset is), `audio` (frozen audio
models g), `encoders` (preset encoders f), `objective` and `optimizer`
(f(x) = g(s(x)), learned), `retrieval` (how well it was). Nothing here opens a
file, reads a flag or loads a plug-in.
"""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that nothing has.

    Args:
      kind: what the name should be of, such as "audio model".
      name: the name that was given.
      known: the names that there are.

    Returns:
      A sentence with the names that look alike, and all names where they are
      few.
    """
    known = list(known)
    # From a file, it may be of any length.
    name = name if len(name) <= 80 else f"{name[:77]}..."
    near = difflib.get_close_matches(name, known, n=3)
    text = f"unknown {kind} {name!r}"
    if near:
        text += f", did you mean {' or '.join(map(repr, near))}?"
    if len(known) <= 64:
        text += f" (known: {', '.join(known)})"
    return text
