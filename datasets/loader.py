"""Shards to batches on the devices.

Parsing records costs far more than a small encoder's step. So the shards of
a split are decoded once, into one `.npy` file per feature beside them, which
is then mapped into memory; batches are gathered from it by index. Beside each
column is `<feature>.check.json`: its sha256, that of the shards it was made
from, and its size and modification time when they were last compared.

The order of an epoch is a permutation that depends on (seed, epoch) alone,
and a batch on its place in it, whoever loads it and wherever a run was
interrupted: a `Position` is all there is to save.
"""

import contextlib
import dataclasses
import itertools
import json
import mmap
import operator
import os
import pathlib
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Int64, Shaped

from datasets import files, shards
from datasets.spec import DataSpec

Columns = Mapping[str, Shaped[np.ndarray, "rows ..."]]


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run is in its data.

    Attributes:
      epoch: number of whole passes made.
      batch: number of batches taken of the current one.
    """

    epoch: int = 0
    batch: int = 0


# Columns ---------------------------------------------------------------------


def open_columns(
    directory: str | os.PathLike[str],
    spec: DataSpec,
    split: str,
    features: Sequence[str] = ("preset", "embedding"),
    *,
    progress: bool = False,
) -> Columns:
    """Opens features of a split as arrays mapped into memory.

    The first time, the shards are verified and decoded, one at a time, so
    memory stays flat. Later it is a matter of milliseconds; a column that is
    no longer what was decoded is decoded anew. Features are those of
    `shards.column_names`.

    Returns:
      Read-only arrays, row `i` of the split at index `i`.

    Raises:
      ShardError: when the data set is missing, incomplete, damaged, or made
        from another spec; names the file and the remedy.
      ValueError: when there is no such split or feature.
    """
    directory = pathlib.Path(directory)
    known = shards.column_names(spec)
    for feature in features:
        if feature not in known:
            raise ValueError(
                f"data set {spec.name} has no column {feature!r}, only "
                f"{', '.join(known)}"
                + (
                    " (audio is kept with config.keep_audio=True)"
                    if feature.startswith("audio")
                    else ""
                )
            )
    spec.rows(split)  # says so when there is no such split
    shards.check_directory(directory, spec)
    shards.verify(directory, spec, split)
    source = shards.digest(directory, spec, split)
    wrong = {
        feature: _column_damage(directory, spec, split, feature, source)
        for feature in features
    }
    if absent := [feature for feature in features if wrong[feature]]:
        _decode(directory, spec, split, absent, source, progress)
    columns = {}
    for feature in features:
        path = _column_path(directory, spec, split, feature)
        columns[feature] = np.load(path, mmap_mode="r")
    return columns


def verify_columns(directory: pathlib.Path, spec: DataSpec, split: str) -> int:
    """Reads the decoded columns of a split again and checks them.

    One that is damaged is forgotten, so that the next training decodes it
    anew. So will it those of an earlier version, which had no digests.

    Returns:
      How many columns were read.

    Raises:
      ShardError: naming the first one that is damaged.
    """
    source, read = shards.digest(directory, spec, split), 0
    for feature in shards.column_names(spec):
        path = _column_path(directory, spec, split, feature)
        if not shards.check_path(path).exists():
            continue
        read += 1
        if wrong := _column_damage(
            directory, spec, split, feature, source, again=True
        ):
            shards.check_path(path).unlink()
            raise files.ShardError(
                f"{path}: {wrong}; the next training decodes it anew"
            )
    return read


def open_names(
    directory: str | os.PathLike[str], spec: DataSpec, split: str
) -> list[str]:
    """Names of a hand-crafted split's presets, in row order.

    Raises:
      ShardError: as for `open_columns`.
    """
    directory = pathlib.Path(directory)
    shards.check_directory(directory, spec)
    shards.verify(directory, spec, split)
    return [
        name
        for shard in range(spec.num_shards(split))
        for name in shards.read(directory, spec, split, shard)["name"]
    ]


@dataclasses.dataclass(frozen=True)
class _Joined:
    """Arrays one after the other, read where they are."""

    parts: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else rows
        first = self.parts[0]
        found = np.empty((len(rows), *first.shape[1:]), first.dtype)
        start = 0
        for part in self.parts:
            here = (rows >= start) & (rows < start + len(part))
            found[here] = part[rows[here] - start]
            start += len(part)
        return found


def join(*columns: Columns) -> Columns:
    """Columns one after the other, without a copy of them.

    Args:
      *columns: of the same features, of equal shapes.

    Returns:
      What `batches` and slices read like arrays.
    """
    parts = {key: tuple(c[key] for c in columns) for key in columns[0]}
    joined: Any = {key: _Joined(arrays) for key, arrays in parts.items()}
    return joined


def _column_path(
    directory: pathlib.Path, spec: DataSpec, split: str, feature: str
) -> pathlib.Path:
    folder = f"columns-{spec.fingerprint()}"
    return directory / ".cache" / folder / split / f"{feature}.npy"


def _stamp(path: str | os.PathLike[str]) -> list[int]:
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns]


def _column_damage(
    directory: pathlib.Path,
    spec: DataSpec,
    split: str,
    feature: str,
    source: str,
    *,
    again: bool = False,
) -> str:
    """Why a column cannot be used, "" when it is whole.

    It is read when its size or time is another than before, or `again`.
    """
    path = _column_path(directory, spec, split, feature)
    shape, kind = shards.feature_shapes(spec)[feature]
    try:
        check = json.loads(shards.check_path(path).read_text())
        if check["shards"] != source:
            return "was decoded from other shards"
        stamp = _stamp(path)
        if again or check["stamp"] != stamp:
            if files.sha256(path) != check["sha256"]:
                return "is not what was decoded (sha256)"
            # A read-only data set is fine: then it is read every time.
            with contextlib.suppress(files.ShardError):
                text = json.dumps({**check, "stamp": stamp})
                files.write_atomically(shards.check_path(path), text)
        column = np.load(path, mmap_mode="r")
    except (KeyError, OSError, TypeError, ValueError) as error:
        return f"cannot be read ({error})"
    if column.shape != (spec.rows(split), *shape) or column.dtype != kind:
        return f"holds {column.dtype} of shape {column.shape}"
    return ""


def _reserve(path: str) -> None:
    """Gives a sparse file all of its blocks, where the system can."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def _decode(
    directory: pathlib.Path,
    spec: DataSpec,
    split: str,
    features: Sequence[str],
    source: str,
    progress: bool,
) -> None:
    """Writes columns, each whole or not at all, and their check files."""
    shapes = shards.feature_shapes(spec)
    targets = {f: _column_path(directory, spec, split, f) for f in features}
    folder = next(iter(targets.values())).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the targets, so that a finished one only has to be renamed.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as scratch:
            outputs = {
                f: np.lib.format.open_memmap(
                    os.path.join(scratch, f"{f}.npy"),
                    mode="w+",
                    dtype=shapes[f][1],
                    shape=(spec.rows(split), *shapes[f][0]),
                )
                for f in features
            }
            for name in features:
                # A full disk is an error now; later, in the mapping, it
                # would be a crash.
                _reserve(os.path.join(scratch, f"{name}.npy"))
            for shard in tqdm.trange(
                spec.num_shards(split),
                desc=f"{spec.name}: decoding {split}",
                unit=" shards",
                disable=not progress,
            ):
                rows = spec.shard_rows(split, shard)
                columns = shards.read(directory, spec, split, shard)
                for feature, file in outputs.items():
                    file[rows.start : rows.stop] = columns[feature]
            for feature, file in outputs.items():
                file.flush()
                written = pathlib.Path(scratch, f"{feature}.npy")
                files.sync(written)
                check = {
                    "sha256": files.sha256(written),
                    "shards": source,
                    "stamp": _stamp(written),
                }
                target = targets[feature]
                # First: with an old column, it only says that it is none.
                files.write_atomically(
                    shards.check_path(target), json.dumps(check)
                )
                os.replace(written, target)
    except OSError as error:
        raise files.unwritable(folder, error) from error


# Batches ---------------------------------------------------------------------


def permutation(rows: int, seed: int, epoch: int) -> Int64[np.ndarray, " rows"]:
    """The order of an epoch, a function of its arguments alone.

    Args:
      rows: number of rows, below 2^32.
      seed: seed of the run, in [0, 2^63).
      epoch: number of the epoch, from 0.

    Returns:
      Every row number once; uint32, to halve the memory of 10 million.
    """
    order = np.arange(rows, dtype=np.uint32)
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    np.random.Generator(bits).shuffle(order)
    return order


def batches(
    columns: Columns,
    batch_size: int,
    *,
    seed: int,
    start: Position = Position(),
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[Position, dict[str, np.ndarray]]]:
    """Yields shuffled batches for ever.

    The rows that do not fill a batch at the end of an epoch are left out of
    it; which ones they are differs from epoch to epoch.

    Args:
      columns: arrays of equal length.
      batch_size: size of the whole batch, over all processes.
      seed: seed of the order.
      start: where to begin.
      process_index: number of this process; each gets one contiguous part of
        every batch.
      process_count: number of processes, and of equal parts of a batch.

    Yields:
      The position after the batch, which is where to begin to go on from
      there, and this process's part `{feature: [batch, ...]}`, fresh arrays.

    Raises:
      ValueError: when the sizes do not fit.
    """
    rows = _length(columns)
    if not 1 <= batch_size <= rows:
        raise ValueError(
            f"batch size is {batch_size}, the split has {rows} rows; choose "
            f"--config.batch between 1 and {rows}"
        )
    if batch_size % process_count:
        raise ValueError(
            f"batch size {batch_size} does not divide among {process_count} "
            "processes"
        )
    per_epoch = rows // batch_size
    if not 0 <= start.batch <= per_epoch:
        raise ValueError(
            f"position is at batch {start.batch} of an epoch of {per_epoch}: "
            "it was saved with another batch size or split"
        )
    local = batch_size // process_count
    for epoch in itertools.count(start.epoch):
        done = start.batch if epoch == start.epoch else 0
        order = permutation(rows, seed, epoch)
        for batch in range(done, per_epoch):
            first = batch * batch_size + process_index * local
            taken = order[first : first + local]
            yield (
                Position(epoch, batch + 1),
                {key: c[taken] for key, c in columns.items()},
            )


def blocks(
    columns: Columns, size: int
) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
    """Yields a split in order, once.

    Mapped columns take no more memory than a block.

    Args:
      columns: arrays of equal length.
      size: rows of a block; the last one may have fewer.

    Yields:
      The row numbers, and `{feature: [rows, ...]}`.
    """
    rows = range(_length(columns))
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        yield (
            part,
            {k: np.array(c[first : part.stop]) for k, c in columns.items()},
        )
        release(columns)


def map_blocks(
    function: Callable[..., Any],
    *arrays: Shaped[np.ndarray, "rows ..."],
    size: int,
    label: str = "",
) -> Any:
    """Applies a function to a block of rows at a time, all of one shape.

    The last block is filled up with zeros, so that a function is compiled
    once, and memory does not grow with the number of rows.

    Args:
      function: maps one block of each array to arrays of as many rows.
      *arrays: host arrays of equal length, at least one row.
      size: rows of a block.
      label: text of a progress bar; no bar when empty.

    Returns:
      What the function makes of all rows, as NumPy arrays.
    """
    parts = []
    for start in tqdm.trange(
        0, len(arrays[0]), size, desc=label, disable=not label, leave=False
    ):
        block = [x[start : start + size] for x in arrays]
        rows = len(block[0])
        rest = [(0, 0)] * (max(x.ndim for x in block) - 1)
        padded = [
            np.pad(x, [(0, size - rows), *rest[: x.ndim - 1]]) for x in block
        ]
        cut = operator.itemgetter(slice(rows))
        made = jax.tree.map(np.asarray, function(*padded))
        parts.append(jax.tree.map(cut, made))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def release(columns: Columns) -> None:
    """Gives back the memory that mapped columns take once they are read.

    What is read again comes from the file, or from where the system keeps it.

    Args:
      columns: arrays; those that are not mapped from a file stay as they are.
    """
    for column in columns.values():
        mapped = getattr(column, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _length(columns: Columns) -> int:
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns differ in length: {lengths}")
    return next(iter(lengths.values()))


@contextlib.contextmanager
def on_devices(
    source: Iterable[tuple[Position, dict[str, np.ndarray]]],
    sharding: jax.sharding.Sharding,
    *,
    ahead: int = 2,
) -> Iterator[Iterator[tuple[Position, dict[str, jax.Array]]]]:
    """Moves batches to the devices in the background.

    A thread gathers and transfers, so that the next batch is there when the
    step before it ends. Leaving the context stops it.

    Args:
      source: what `batches` yields: each process's own part.
      sharding: layout of the whole batch on the devices of all processes.
      ahead: number of batches that wait on the devices.

    Yields:
      An iterator over (position, batch). An error in the source is raised
      from it.
    """
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def hand_over(item: Any) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.1)

    def work() -> None:
        try:
            for position, batch in source:
                if stopped.is_set():
                    return
                placed = {
                    key: jax.make_array_from_process_local_data(sharding, rows)
                    for key, rows in batch.items()
                }
                hand_over((position, placed))
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    def results() -> Iterator[tuple[Position, dict[str, jax.Array]]]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        stopped.set()
        thread.join()
