"""Files damaged at random, commands killed at random, long enough to tell."""

import contextlib
import io
import multiprocessing
import pathlib
import random
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import tqdm
from absl import logging

from datasets import limits
from launch import cli
from launch.benchmark import attempts, kills
from launch.benchmark.attempts import ELSE
from proxy import unknown

# Seconds after which an attempt hangs: several times what any may take.
_HANGS = 60.0
# Seconds for a process to start and to write its whole files.
_STARTS = 300.0


def _serve(
    make: Callable[[pathlib.Path], attempts.Attempt],
    folder: pathlib.Path,
    pipe: Any,
) -> None:
    """Makes attempts with the seeds that come, and tells how each ended."""
    limits.allow(0.1)
    logging.set_verbosity(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        attempt = make(folder)
        pipe.send(("", ""))
        while seed := pipe.recv():
            try:
                found = attempt(random.Random(seed)), ""
            except BaseException as error:
                lines = traceback.format_exception_only(error)
                words = limits.shorten("".join(lines).strip(), 500)
                expected = isinstance(error, cli.EXPECTED)
                found = ELSE, words if expected else f"not caught: {words}"
            pipe.send(found)


class _Worker:
    """A process that makes attempts of a kind; it may crash or hang."""

    def __init__(self, kind: str, root: pathlib.Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        folder = pathlib.Path(tempfile.mkdtemp(dir=root))
        self._process = spawn.Process(
            target=_serve, args=(attempts.KINDS[kind], folder, theirs)
        )
        self._process.start()
        theirs.close()
        outcome, words = self._wait(_STARTS)
        if outcome:
            raise RuntimeError(f"{kind}: the whole files {words}")

    def attempt(self, seed: str) -> tuple[str, str]:
        """How the attempt of a seed ends, and words about anything else."""
        self._pipe.send(seed)
        return self._wait(_HANGS)

    def _wait(self, seconds: float) -> tuple[str, str]:
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except (EOFError, OSError):
            self.close()
            return ELSE, f"crash ({self._process.exitcode})"
        self.close()
        return ELSE, f"hang: more than {seconds:g} s"

    @property
    def gone(self) -> bool:
        """Whether it is of no more use."""
        return not self._process.is_alive()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _damage(kind: str, count: int, seed: int, root: pathlib.Path) -> Counter:
    counted: Counter = Counter()
    worker = _Worker(kind, root)
    for number in tqdm.trange(count, desc=kind, unit="file"):
        outcome, words = worker.attempt(f"{seed} {number}")
        counted[outcome] += 1
        if outcome == ELSE:
            tqdm.tqdm.write(f"{kind}, number {number}: {words}")
        if worker.gone:
            worker = _Worker(kind, root)
    worker.close()
    return counted


def run(
    seconds: float = 0.0,
    count: int = 2_000,
    seed: int = 0,
    kinds: Sequence[str] = (*attempts.KINDS, *kills.COMMANDS),
    times: int = 10,
) -> list[dict[str, Any]]:
    """Damages files and kills commands, and counts how that ends.

    Args:
      seconds: ignored; attempts take as long as they take.
      count: damaged files of each kind.
      seed: of the damages and the moments.
      kinds: kinds of files in `attempts.KINDS`, and commands to kill.
      times: how often each command is killed.

    Returns:
      One row a kind: "kind", "tried", "one clear error", "right" and
      "anything else": crashes, hangs, tracebacks, other numbers, and resumes
      that end otherwise. What each of these was is printed with its number.

    Raises:
      ValueError: for an unknown kind.
      RuntimeError: when whole files, or a command left alone, fail already.
    """
    del seconds
    rows = []
    for kind in kinds:
        if kind not in (known := (*attempts.KINDS, *kills.COMMANDS)):
            raise ValueError(unknown("kind", kind, known))
    with tempfile.TemporaryDirectory() as name:
        for kind in kinds:
            root = pathlib.Path(name) / kind
            root.mkdir()
            if kind in attempts.KINDS:
                counted = _damage(kind, count, seed, root)
            else:
                counted = kills.killed(kind, times, seed, root)
            rows.append(
                {
                    "kind": kind,
                    "tried": counted.total(),
                    **{
                        outcome: counted[outcome]
                        for outcome in (attempts.ERROR, attempts.RIGHT, ELSE)
                    },
                }
            )
    return rows
