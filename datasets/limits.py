"""What a file from outside may cost: bytes, depth, voices and seconds.

A file of a few kilobytes can unpack to gigabytes, or keep a parser busy for
minutes. Who reads one asks a `Meter` first; `--budget` of every command raises
what is usual.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Budget:
    """What reading one file may cost.

    Attributes:
      bytes: size of the file, and of all that is unpacked of it.
      depth: archives inside each other, itself included.
      voices: presets in it, or messages that might hold one.
      seconds: time until it is read.
    """

    bytes: int = 2**28
    depth: int = 3
    voices: int = 2**18
    seconds: float = 30.0

    def times(self, factor: float) -> "Budget":
        """A budget so many times as large.

        Raises:
          ValueError: the factor is not above 0.
        """
        # Written so that a NaN fails.
        if not 0 < factor < 1e6:
            raise ValueError(f"--budget={factor:g}: give a factor above 0")
        fields = dataclasses.asdict(self).items()
        return Budget(**{k: type(v)(v * factor) for k, v in fields})


class OverBudgetError(ValueError):
    """A file that costs more than it may; the message says what to do."""


_usual = Budget()


def usual() -> Budget:
    """The budget of files whose reader was given none."""
    return _usual


def allow(factor: float) -> None:
    """Makes `usual` so many times what it is by itself.

    Raises:
      ValueError: the factor is not above 0.
    """
    global _usual
    _usual = Budget().times(factor)


class Meter:
    """Counts what reading one file costs.

    Args:
      budget: what it may cost; `usual` when left out.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or usual()
        self._left = dataclasses.asdict(self.budget)
        self._end = time.monotonic() + self.budget.seconds

    def spend(self, **costs: int) -> None:
        """Takes note of a cost, before it arises.

        Args:
          **costs: amounts, by field of `Budget`.

        Raises:
          OverBudgetError: there is not as much left, or no time.
        """
        for name, cost in costs.items():
            self._left[name] -= cost
        short = [name for name in costs if self._left[name] < 0]
        if time.monotonic() > self._end:
            short.append("seconds")
        if short:
            limit = getattr(self.budget, short[0])
            what = "archives inside each other" if short == ["depth"] else ""
            raise OverBudgetError(
                f"takes more than {limit:,} {what or short[0]} to read; if "
                "you trust it, raise what is allowed: --budget=4"
            )

    @contextlib.contextmanager
    def deeper(self) -> Iterator[None]:
        """What is read inside is in an archive more."""
        self.spend(depth=1)
        try:
            yield
        finally:
            self._left["depth"] += 1


def shorten(text: str, most: int = 200) -> str:
    """A text, or its start and its end when it is longer than `most`."""
    if len(text) <= most:
        return text
    tail = most // 4
    return f"{text[: most - tail - 5]} ... {text[-tail:]}"


def unzip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> bytes:
    """Unpacks an entry of an archive, and no more than it declares.

    Args:
      archive: the archive.
      entry: one of its `infolist()`.
      most: bytes that the entry may have.

    Raises:
      ValueError: it is larger, damaged, encrypted or compressed in a rare way.
    """
    if entry.file_size > most:
        raise ValueError(f"has {entry.file_size:,} bytes, not up to {most:,}")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Python unpacks the others however large they get.
        raise ValueError("compressed otherwise than zip archives usually are")
    try:
        with archive.open(entry) as file:
            # With a size, or it would unpack whatever the data give.
            data = file.read(entry.file_size)
    except Exception as error:
        # Whatever a malformed archive provokes, the archive is to blame. The
        # error may quote it.
        reason = shorten(str(error))
        raise ValueError(f"cannot be unpacked ({reason})") from None
    if len(data) != entry.file_size:
        raise ValueError(
            f"is cut short: {len(data):,} of {entry.file_size:,} bytes"
        )
    return data


def parse_json(data: bytes, budget: Budget | None = None) -> Any:
    """Parses JSON from outside.

    Args:
      data: the text.
      budget: what it may cost; `usual` when left out.

    Raises:
      ValueError: it is no JSON, or nested beyond all reason.
      OverBudgetError: (a `ValueError`) it is too large.
    """
    budget = budget or usual()
    meter = Meter(budget)
    meter.spend(bytes=len(data))
    # Each value takes memory of its own, up to thirty times its text.
    if max(data.count(b","), data.count(b"[")) > 128 * budget.voices:
        meter.spend(voices=budget.voices + 1)
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file from outside.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: naming the file: it is no JSON, or too large.
    """
    path = pathlib.Path(path)
    try:
        Meter().spend(bytes=path.stat().st_size)
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
