"""Metrics of a run: JSON lines for programs, TensorBoard for people."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any, Self

import tensorboardX

from datasets import files

FILE = "metrics.jsonl"


def read(run: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a run, oldest first.

    A last line cut short by a kill is left out.

    Raises:
      ValueError: naming the line, when another one is damaged.
    """
    path = run / FILE
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            int(record["step"])
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            if number == len(lines):
                return
            raise ValueError(
                f"{path}: line {number} is damaged ({error}); remove it"
            ) from error
        yield record


class Writer:
    """Appends records to a run directory.

    A run that resumes from step N forgets the records after N, so that each
    step is there once.
    """

    def __init__(
        self, run: pathlib.Path, resume_step: int = 0, *, silent: bool = False
    ) -> None:
        """Opens the files.

        Args:
          run: the run directory.
          resume_step: records of later steps are dropped.
          silent: write nothing: for all but one of several processes.
        """
        self._file = self._board = None
        if silent:
            return
        kept = [r for r in read(run) if r["step"] <= resume_step]
        path = run / FILE
        files.write_atomically(
            path, "".join(json.dumps(r) + "\n" for r in kept)
        )
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(run / "tensorboard"), purge_step=resume_step + 1
        )

    def write(self, step: int, **scalars: float) -> None:
        """Appends one record."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()
