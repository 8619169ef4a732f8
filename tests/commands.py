"""Runs commands in the tests' own process, with flags that are forgotten."""

import contextlib
import inspect
import runpy
from typing import Any

from absl import flags


@contextlib.contextmanager
def own_flags():
    """Takes back the flags that are defined inside: commands share names."""
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def load(module: str) -> dict[str, Any]:
    """What the file of a command defines, without running it."""
    with own_flags():
        return runpy.run_module(module, run_name=module)


def run(module: str, *words: Any) -> Any:
    """Runs `python -m MODULE WORDS`; errors are raised, not printed."""
    with own_flags():
        main = runpy.run_module(module, run_name=module)["main"]
        rest = flags.FLAGS([module, *map(str, words)])[1:]
        return main(rest) if inspect.signature(main).parameters else main()


def flag_names(module: str) -> set[str]:
    """Names of the flags that a command takes."""
    with own_flags():
        runpy.run_module(module, run_name=module)
        return set(flags.FLAGS)
