"""What every command shares: flags, one clear error, one place to debug."""

import io
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from datasets import download, limits
from launch.runs import devices

# Errors that a user can mend: bad input, a missing file, a full disk. They
# are told in one line; anything else is a defect and keeps its traceback.
EXPECTED = (
    ValueError,
    OSError,
    RuntimeError,
    FloatingPointError,
    OverflowError,
    ImportError,
)

_TRACEBACK = flags.DEFINE_bool(
    "traceback", False, "Show the traceback of every error."
)


_BUDGET = flags.DEFINE_float(
    "budget",
    1.0,
    "Factor on what a bank, sound or table from outside may cost to read.",
)
# Characters of an error that are shown: it may quote a file.
_LONGEST = 4000


def define_config() -> flags.FlagHolder:
    """Defines `--config FILE` with `--config.field=value` overrides.

    Returns:
      The holder of the flag; required.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Experiment file; override fields with --config.field=value.",
        lock_config=True,
    )
    flags.mark_flag_as_required("config")
    return holder


def ranges(flag: str, text: str) -> list[int]:
    """Parses numbers and ranges such as "3,5-9".

    Raises:
      ValueError: naming the flag, when it is not such a list, or one of
        more than a million.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(
                f"--{flag}={text}: {part.strip()!r} is neither a number nor "
                "a range such as 5-9"
            )
        part = range(int(first), int(last or first) + 1)
        if len(part) > 1_000_000:
            raise ValueError(f"--{flag}={text}: more than a million numbers")
        numbers.extend(part)
    return numbers


def numbers(flag: flags.FlagHolder, kind: Callable[[str], Any]) -> list[Any]:
    """Parses the words of a list flag.

    Args:
      flag: holder of the flag.
      kind: `int` or `float`.

    Returns:
      The numbers.

    Raises:
      ValueError: naming the flag, when a word is no number.
    """
    try:
        return [kind(word) for word in flag.value]
    except ValueError as error:
        raise ValueError(
            f"--{flag.name}={','.join(flag.value)}: {error}"
        ) from error


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a mistake in one is told in one line, too."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    except OSError as error:
        message = f"--config: {error}"
    except (AttributeError, KeyError, TypeError) as error:
        message = f"--config: no such field, or not of its type: {error}"
    except (SyntaxError, ValueError) as error:
        message = f"--config: {error}"
    sys.exit(f"error: {message}\nsee python -m {_module()} --help")


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]


def run(main: Callable[..., None], *, arguments: bool = False) -> None:
    """Parses the flags, runs a command, turns its errors into exit codes.

    Args:
      main: the command; reads its own flags.
      arguments: whether it takes the list of words that are no flags.
    """

    def guarded(argv: list[str]) -> None:
        words = argv[1:]
        if words and not arguments:
            sys.exit(f"error: unexpected words {words}; see --help")
        # A name may be no UTF-8.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        logging.set_verbosity(logging.ERROR)
        devices.keep_memory()
        devices.keep_programs(download.cache_folder() / "programs")
        try:
            limits.allow(_BUDGET.value)
            main(*([words] if arguments else []))
        except KeyboardInterrupt:
            sys.exit("interrupted; run the same command again to go on")
        except EXPECTED as error:
            if _TRACEBACK.value or isinstance(
                error, jax.errors.JaxRuntimeError
            ):
                traceback.print_exc()
            sys.exit(f"error: {limits.shorten(str(error), _LONGEST)}")

    app.run(guarded, flags_parser=_parse)
