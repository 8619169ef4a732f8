"""Presets to sounds to embeddings to shards.

Every row is a pure function of (spec, split, row number), so it does not
matter who builds which shard, in what order, how often it was interrupted,
or with how many workers: the bytes are the same. (Embeddings are as
repeatable as the machine's arithmetic: another kind of processor may differ
in the last bits.)

* A synthetic preset comes from a counter-based stream: NumPy's Philox keyed
  by (seed, split), its counter set to (row, attempt). A preset that fails the
  level gate is drawn again with the next attempt.
* Embeddings are computed in blocks of `spec.embed_batch` rows that start at
  fixed rows of the shard, the last one padded with silence.

Rendering runs in worker threads, or, where more cores are at hand than an
engine's threads can use, in spawned processes. They are kept a fixed number of
rows ahead; meanwhile the accelerator embeds the blocks before, and the calling
thread writes the ones before those.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Float

from datasets import engines, shards
from proxy.space import ParameterSpace

MAX_ATTEMPTS = 1024
# Beside the shards: which presets the engine failed to render, and why.
SET_ASIDE = "set_aside.json"
# Rows per call to a worker: large enough to make the hand-over cheap, small
# enough to spread a block over all workers.
_CHUNK = 16
_ATTEMPTS = 16

Embed = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `build` did.

    Attributes:
      built: shards built by this call.
      present: shards of this call's share that were already there.
      missing: shards of the data set that are still missing (other tasks').
      rows: rows built by this call.
      redrawn: synthetic presets drawn again in this call, by reason.
      seconds: time this call took.
      set_aside: of those, how many the engine failed to render, by reason;
        the file `SET_ASIDE` names each.
    """

    built: int
    present: int
    missing: int
    rows: int
    redrawn: dict[str, int]
    seconds: float
    set_aside: dict[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        text = f"{self.built} shards built, {self.present} already there"
        if self.missing:
            text += f", {self.missing} left to others"
        if self.rows:
            text += f"; {self.rows:,} presets, {self.rows / self.seconds:.0f}/s"
        if self.redrawn:
            reasons = (f"{n:,} {why}" for why, n in self.redrawn.items())
            text += f"; drawn again: {', '.join(reasons)}"
        if self.set_aside:
            reasons = (f"{n:,} {why}" for why, n in self.set_aside.items())
            text += f"; set aside, see {SET_ASIDE}: {', '.join(reasons)}"
        return text


@functools.cache
def _stream(split: str) -> int:
    digest = hashlib.sha256(split.encode()).digest()
    return int.from_bytes(digest[:8], "little")


def draw(
    space: ParameterSpace,
    seed: int,
    split: str,
    rows: Sequence[int],
    attempts: Sequence[int] = (0,),
    sampling: Mapping[str, float] | None = None,
) -> Float[np.ndarray, "rows attempts parameters"]:
    """Draws synthetic presets, each a pure function of its coordinates.

    Args:
      space: whose sampling distribution to use.
      seed: of the data set.
      split: splits are independent of each other.
      rows: so are rows of a split,
      attempts: and attempts at a row.
      sampling: arguments of `ParameterSpace.from_uniform`, none: as the paper.

    Returns:
      float32 presets.

    Raises:
      ValueError: for a `sampling` that cannot be.
    """
    uniform = np.empty((len(rows), len(attempts), space.num_used), np.float32)
    key = np.array([seed, _stream(split)], np.uint64)
    for i, row in enumerate(rows):
        for j, attempt in enumerate(attempts):
            # The lowest word counts the numbers drawn.
            counter = np.array([0, attempt, row, 0], np.uint64)
            bits = np.random.Philox(key=key, counter=counter)
            np.random.Generator(bits).random(
                dtype=np.float32, out=uniform[i, j]
            )
    presets = space.from_uniform(uniform, **(sampling or {}))
    return np.asarray(presets, np.float32)


@dataclasses.dataclass(frozen=True)
class _Rows:
    presets: np.ndarray
    audio: list[np.ndarray]
    redrawn: dict[str, int]
    # (row, attempt, reason) of presets that the engine failed to render.
    aside: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)


def _sound(
    renderer: engines.Renderer, values: np.ndarray
) -> tuple[np.ndarray | None, str, bool]:
    """The sound of plug-in values, or None, why, and is it the engine's fault.

    A sound that fails the level gate is nobody's fault.
    """
    try:
        audio = renderer.render(values)
    except engines.RenderError as error:
        return None, str(error), True
    reason = engines.check_level(audio, renderer.settings)
    return (None, reason, False) if reason else (audio, "", False)


def render_rows(
    renderer: engines.Renderer,
    seed: int,
    split: str,
    rows: Sequence[int],
    sampling: Mapping[str, float] | None = None,
) -> _Rows:
    """Draws and renders synthetic rows.

    Args:
      renderer: the engine.
      seed: of the data set.
      split: of the rows.
      rows: their numbers.
      sampling: see `draw`.

    Returns:
      Their presets and sounds, the reasons for drawing again, and which
      presets the engine failed to render.

    Raises:
      ShardError: when a row fails the gate `MAX_ATTEMPTS` times.
    """
    space = renderer.space
    presets: list[np.ndarray] = [np.zeros(0)] * len(rows)
    sounds: list[Any] = [None] * len(rows)  # np.ndarray when found
    redrawn = collections.Counter[str]()
    aside: list[tuple[int, int, str]] = []
    reason = ""
    for first in range(0, MAX_ATTEMPTS, _ATTEMPTS):
        left = [i for i, sound in enumerate(sounds) if sound is None]
        if not left:
            break
        # Several attempts at a time: most are known to be silent unheard.
        attempts = range(first, first + _ATTEMPTS)
        these = [rows[i] for i in left]
        drawn = draw(space, seed, split, these, attempts, sampling)
        values = space.to_plugin(drawn.reshape(-1, space.num_used))
        silent = engines.surely_silent(renderer, values)
        values = values.reshape(*drawn.shape[:2], -1)
        silent = silent.reshape(drawn.shape[:2])
        for i, row_presets, row_values, row_silent in zip(
            left, drawn, values, silent, strict=True
        ):
            for j in range(_ATTEMPTS):
                audio, reason, failed = None, "silent", False
                if not row_silent[j]:
                    audio, reason, failed = _sound(renderer, row_values[j])
                if audio is not None:
                    presets[i], sounds[i] = row_presets[j], audio
                    break
                redrawn[reason] += 1
                if failed:
                    aside.append((rows[i], attempts[j], reason))
    for row, sound in zip(rows, sounds, strict=True):
        if sound is None:
            raise shards.ShardError(
                f"space {space.name!r}: row {row} of split {split!r} was "
                f"drawn {MAX_ATTEMPTS} times and never passed the level gate "
                f"(last: {reason}); check the space's sampling intervals, "
                "and the render settings min_rms and max_rms"
            )
    return _Rows(np.stack(presets), sounds, dict(redrawn), aside)


def render_given(
    renderer: engines.Renderer,
    presets: Float[np.ndarray, "rows parameters"],
    names: Sequence[str],
) -> _Rows:
    """Renders given rows.

    Raises:
      ShardError: when one of them fails the level gate; names it.
    """
    sounds = []
    for preset, name in zip(presets, names, strict=True):
        audio, reason, _ = _sound(renderer, renderer.space.to_plugin(preset))
        if audio is None:
            raise shards.ShardError(
                f"hand-crafted preset {name!r}: {reason}; filter the bank "
                "with the render settings of this data set first"
            )
        sounds.append(audio)
    return _Rows(np.asarray(presets, np.float32), sounds, {})


# Spawned workers hold their renderer here: it cannot travel with every task.
_worker_renderer: engines.Renderer | None = None


def _start_worker(renderer: engines.Renderer) -> None:
    global _worker_renderer
    _worker_renderer = renderer
    # Accelerators belong to the parent.
    jax.config.update("jax_platforms", "cpu")
    # Ctrl-C is the parent's to answer, and nobody outlives it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(function: Callable[..., _Rows], *args: Any) -> _Rows:
    assert _worker_renderer is not None
    return function(_worker_renderer, *args)


@contextlib.contextmanager
def _pool(
    renderer: engines.Renderer, workers: int, processes: bool
) -> Iterator[Callable[..., concurrent.futures.Future[_Rows]]]:
    """Yields a function that submits `function(renderer, *args)`."""
    if processes:
        executor = concurrent.futures.ProcessPoolExecutor(
            workers,
            # A forked copy of a process that runs JAX or a plug-in hangs.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(renderer,),
        )
        submit = functools.partial(executor.submit, _in_worker)
    else:
        executor = concurrent.futures.ThreadPoolExecutor(workers, "render")

        def submit(function: Any, *args: Any) -> Any:
            return executor.submit(function, renderer, *args)

    try:
        yield submit
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        # Interrupted, nobody waits for a plug-in that takes seconds.
        close = getattr(renderer, "close", None)
        if close is not None and not processes:
            close()
        executor.shutdown(wait=True)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_workers(workers: int = 0) -> int:
    """Number of workers: as asked, or one per usable core when 0."""
    return workers if workers > 0 else usable_cores()


class _Shard:
    """A shard under construction."""

    def __init__(self, spec: shards.DataSpec, split: str, number: int) -> None:
        self.split, self.number = split, number
        self.rows = spec.shard_rows(split, number)
        self.redrawn = collections.Counter[str]()
        self.aside: list[tuple[int, int, str]] = []
        self.files = contextlib.ExitStack()
        self.writer: shards.Writer | None = None


def _claimed(
    spec: shards.DataSpec,
    directory: pathlib.Path,
    pairs: Iterable[tuple[str, int]],
    held: list[tuple[str, int]] | None,
    owner: contextlib.ExitStack,
) -> Iterator[_Shard]:
    """Claims shards one by one, as they are asked for, and opens them.

    Args:
      spec: the data set.
      directory: its folder.
      pairs: (split, shard) of those wanted.
      held: collects the ones that another process is at; None waits for it.
      owner: gives up what is unfinished when it is closed.

    Yields:
      Those that are ours to build.
    """
    for split, number in pairs:
        shard = _Shard(spec, split, number)
        filename = spec.filename(split, number)
        with contextlib.ExitStack() as files:
            granted = files.enter_context(
                shards.claim(directory, filename, wait=held is None)
            )
            if not granted:
                assert held is not None
                held.append((split, number))
            elif not (directory / filename).exists():
                shard.writer = files.enter_context(
                    shards.Writer(directory, spec, split, number)
                )
                shard.files = files.pop_all()
                owner.callback(shard.files.close)
                yield shard


def _rendered(
    spec: shards.DataSpec,
    work: Iterable[_Shard],
    submit: Callable[..., concurrent.futures.Future[_Rows]],
    presets: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str]],
    ahead: int,
) -> Iterator[tuple[_Shard, _Rows]]:
    """Yields rendered rows in order, with `ahead` calls to workers pending."""

    def start(shard: _Shard, rows: range) -> tuple[_Shard, Any]:
        if spec.source == "synthetic":
            args = (render_rows, spec.seed, shard.split, rows, spec.sampling)
        else:
            these = slice(rows.start, rows.stop)
            args = (
                render_given,
                presets[shard.split][these],
                names[shard.split][these],
            )
        return shard, submit(*args)

    # A call to a worker never straddles two blocks.
    calls = (
        (shard, block[i : i + _CHUNK])
        for shard in work
        for block in _split(shard.rows, spec.embed_batch)
        for i in range(0, len(block), _CHUNK)
    )
    pending: collections.deque[tuple[_Shard, Any]] = collections.deque()
    for call in calls:
        pending.append(start(*call))
        if len(pending) > ahead:
            shard, future = pending.popleft()
            yield shard, future.result()
    while pending:
        shard, future = pending.popleft()
        yield shard, future.result()


def _split(rows: range, size: int) -> Iterator[range]:
    for i in range(0, len(rows), size):
        yield rows[i : i + size]


def _embedded(
    spec: shards.DataSpec,
    rendered: Iterable[tuple[_Shard, _Rows]],
    embed: Embed,
    in_flight: int,
    embedding: concurrent.futures.Executor,
) -> Iterator[tuple[_Shard, range, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (shard, rows, presets, audio, embeddings), block by block.

    Each block is handed over before those before it are fetched, so that the
    devices always have work, and from the thread of `embedding`, so that
    collecting and writing go on where handing over means to wait.
    """
    waiting: collections.deque[tuple] = collections.deque()
    # A block's memory is used again once its embeddings are written: until
    # then the device may be reading it.
    free: list[np.ndarray] = []
    blocks: dict[_Shard, Iterator[range]] = {}
    block, fill, audio, kept = range(0), 0, np.zeros(0), []
    for shard, rows in rendered:
        if fill == 0:
            if shard not in blocks:
                blocks = {shard: _split(shard.rows, spec.embed_batch)}
            block, kept = next(blocks[shard]), []
            size = (spec.embed_batch, spec.samples)
            audio = free.pop() if free else np.empty(size, np.float32)
            audio[len(block) :] = 0
        for sound in rows.audio:
            audio[fill] = sound
            fill += 1
        kept.append(rows.presets)
        shard.redrawn.update(rows.redrawn)
        shard.aside.extend(rows.aside)
        if fill == len(block):
            handed = embedding.submit(embed, audio)
            waiting.append((shard, block, np.concatenate(kept), audio, handed))
            fill = 0
            if len(waiting) > in_flight:
                done = _fetch(waiting.popleft())
                yield done
                free.append(done[3])
    while waiting:
        yield _fetch(waiting.popleft())


def _fetch(block: tuple) -> tuple:
    return *block[:-1], np.asarray(block[-1].result(), np.float32)


def _write(
    spec: shards.DataSpec,
    names: Mapping[str, Sequence[str]],
    shard: _Shard,
    rows: range,
    presets: np.ndarray,
    audio: np.ndarray,
    embeddings: np.ndarray,
) -> bool:
    """Writes a block; says whether it was the shard's last."""
    assert shard.writer is not None
    bad = np.flatnonzero(~np.isfinite(embeddings[: len(rows)]).all(-1))
    if len(bad):
        raise shards.ShardError(
            f"{spec.audio_model}: the embedding of row {rows[int(bad[0])]} of "
            f"split {shard.split!r} is not finite; check the audio model"
        )
    for i, row in enumerate(rows):
        record: dict[str, Any] = {
            "index": row,
            "preset": presets[i],
            "embedding": embeddings[i],
        }
        if spec.source == "handcrafted":
            record["name"] = names[shard.split][row]
        if spec.keep_audio:
            values, scale = shards.quantise(audio[i])
            record.update(audio=values, audio_scale=scale)
        shard.writer.write(record)
    if rows.stop < shard.rows.stop:
        return False
    notes: dict[str, Any] = {"redrawn": dict(sorted(shard.redrawn.items()))}
    if shard.aside:
        notes["set_aside"] = sorted(shard.aside)
    with shard.files:
        shard.writer.finish(**notes)
    return True


def set_aside(
    directory: pathlib.Path, spec: shards.DataSpec
) -> list[dict[str, Any]]:
    """Presets of finished shards that the engine failed to render.

    Args:
      directory: of the data set.
      spec: of the data set.

    Returns:
      "split", "shard", "row", "attempt" and "reason" of each, in this order:
      the preset is `draw(space, spec.seed, split, [row], [attempt],
      spec.sampling)`.
    """
    absent = set(shards.missing(directory, spec))
    found = []
    for split, _ in spec.splits:
        for shard in range(spec.num_shards(split)):
            if (split, shard) in absent:
                continue
            path = directory / spec.filename(split, shard)
            check = shards.read_check(path, spec, split, shard)
            found += [
                {
                    "split": split,
                    "shard": shard,
                    "row": row,
                    "attempt": attempt,
                    "reason": reason,
                }
                for row, attempt, reason in check.get("set_aside", ())
            ]
    return found


def _write_set_aside(directory: pathlib.Path, spec: shards.DataSpec) -> None:
    """Writes `SET_ASIDE` when there is something to tell, or there was."""
    found, path = set_aside(directory, spec), directory / SET_ASIDE
    text = json.dumps({"set_aside": found}, indent=1) + "\n"
    if (found or path.exists()) and not (
        path.exists() and path.read_text() == text
    ):
        shards.write_atomically(path, text)


def parse_shards(text: str) -> list[int]:
    """Parses shard numbers such as "3,5-9".

    Raises:
      ValueError: when it is not such a list.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(
                f"--shards={text}: {part.strip()!r} is neither a number nor "
                "a range such as 5-9"
            )
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def share(
    spec: shards.DataSpec,
    *,
    numbers: Iterable[int] | None = None,
    task: int = 0,
    num_tasks: int = 1,
) -> list[tuple[str, int]]:
    """Chooses shards to build.

    Shards are numbered through the whole data set: those of the first split,
    then those of the second, and so on.

    Args:
      spec: the data set.
      numbers: which shards, None for all.
      task: of those, every `num_tasks`-th one from `task` on: one element of
        a job array.
      num_tasks: size of the job array.

    Returns:
      (split, shard in that split) pairs.

    Raises:
      ValueError: when a number is out of range.
    """
    if num_tasks < 1 or not 0 <= task < num_tasks:
        raise ValueError(f"task is {task}, need 0 <= task < {num_tasks}")
    everything = [
        (split, shard)
        for split, _ in spec.splits
        for shard in range(spec.num_shards(split))
    ]
    chosen = sorted(set(range(len(everything)) if numbers is None else numbers))
    for number in chosen:
        if number >= len(everything):
            raise ValueError(
                f"there is no shard {number}: {spec.name} has "
                f"{len(everything)}, numbered from 0"
            )
    return [everything[number] for number in chosen[task::num_tasks]]


def build(
    spec: shards.DataSpec,
    directory: str | os.PathLike[str],
    renderer: engines.Renderer,
    embed: Embed,
    *,
    presets: dict[str, Float[np.ndarray, "rows parameters"]] | None = None,
    names: dict[str, Sequence[str]] | None = None,
    workers: int = 0,
    processes: bool | None = None,
    only: Sequence[tuple[str, int]] | None = None,
    in_flight: int = 1,
    progress: bool = True,
) -> Report:
    """Builds the shards of a data set that are missing.

    Any number of processes may run this on one folder at once: they share
    the work. It can be interrupted at any moment and called again.

    Args:
      spec: the data set.
      directory: its folder, made when missing.
      renderer: the engine; with threads, one that they can share.
      embed: `[embed_batch, samples]` float32 audio to embeddings
        `[embed_batch, embedding]`, always of this one shape. It may return
        before it is done, as a jitted function does: its result is fetched
        only when it is needed.
      presets: of a hand-crafted data set, by split.
      names: their names, by split.
      workers: how many, 0 for one per core, or as many as the engine's
        `workers_per_core`.
      processes: whether workers are spawned processes and not threads, which
        a script has to be ready for (`if __name__ == "__main__"`); None: when
        there are more than the engine's `max_threads`, where it has one.
      only: the shards to build, None for all; see `share`.
      in_flight: blocks to hand to `embed` before the first is fetched.
      progress: whether to show it on stderr.

    Returns:
      What was done.

    Raises:
      ShardError: when the folder holds other data or cannot be written, or
        a preset cannot be rendered. Finished shards stay.
      ValueError: when spec, renderer and presets do not fit together.
    """
    started = time.monotonic()
    directory = pathlib.Path(directory)
    presets, names = presets or {}, names or {}
    _check(spec, renderer, presets, names)
    shards.open_directory(directory, spec)
    chosen = share(spec) if only is None else list(only)
    absent = set(shards.missing(directory, spec))
    for split, number in chosen:
        if (split, number) not in absent:
            path = directory / spec.filename(split, number)
            shards.read_check(path, spec, split, number)
    todo = [pair for pair in chosen if pair in absent]
    size = {pair: len(spec.shard_rows(*pair)) for pair in chosen}
    if workers <= 0:
        workers = num_workers() * getattr(renderer, "workers_per_core", 1)
    if processes is None:
        processes = bool(workers > getattr(renderer, "max_threads", workers))
    # Enough for every worker while a block is collected and another embedded.
    ahead = 2 * workers + -(-spec.embed_batch // _CHUNK)
    redrawn = collections.Counter[str]()
    aside = collections.Counter[str]()
    built = rows_built = 0
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm.tqdm(
                total=sum(size.values()),
                initial=sum(size.values()) - sum(size[p] for p in todo),
                unit=" presets",
                disable=not progress or not todo,
                smoothing=0.05,
                # A log file gets a line now and then, not a stream.
                mininterval=0.5 if sys.stderr.isatty() else 30,
            )
        )
        there = len(chosen) - len(todo)
        bar.set_description(
            f"{spec.name}: {there}/{len(chosen)} shards", refresh=False
        )
        embedding = stack.enter_context(
            concurrent.futures.ThreadPoolExecutor(1, "embed")
        )
        submit = stack.enter_context(_pool(renderer, workers, processes))

        def run(pairs: list[tuple[str, int]], held: list | None) -> None:
            nonlocal built, rows_built
            work = _claimed(spec, directory, pairs, held, stack)
            rendered = _rendered(spec, work, submit, presets, names, ahead)
            blocks = _embedded(spec, rendered, embed, in_flight, embedding)
            for shard, rows, *block in blocks:
                last = _write(spec, names, shard, rows, *block)
                rows_built += len(rows)
                bar.update(len(rows))
                if last:
                    built += 1
                    redrawn.update(shard.redrawn)
                    aside.update(reason for *_, reason in shard.aside)
                    bar.set_description(
                        f"{spec.name}: {there + built}/{len(chosen)} shards",
                        refresh=False,
                    )

        # First what nobody else is at. Then what others were at, one by one,
        # in case they were killed; to wait for a claim while holding another
        # could wait for ever.
        held: list[tuple[str, int]] = []
        run(todo, held)
        for pair in held:
            run([pair], None)
    _write_set_aside(directory, spec)
    left = len(shards.missing(directory, spec))
    if shards.write_metadata(directory, spec):
        for path in directory.glob(".*.lock"):
            path.unlink(missing_ok=True)
    return Report(
        built=built,
        present=len(chosen) - built,
        missing=left,
        rows=rows_built,
        redrawn=dict(sorted(redrawn.items())),
        seconds=time.monotonic() - started,
        set_aside=dict(sorted(aside.items())),
    )


def _check(
    spec: shards.DataSpec,
    renderer: engines.Renderer,
    presets: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str]],
) -> None:
    """Checks that a spec describes what is about to be built.

    Raises:
      ValueError: naming what does not fit.
    """
    made = {
        "settings": renderer.settings.to_dict(),
        "space": shards.space_digest(renderer.space),
        "synth": renderer.name,
        "synth_version": renderer.version,
        "parameters": renderer.space.num_used,
    }
    stated = {key: spec.to_dict()[key] for key in made}
    if lines := shards.differences(stated, made):
        raise ValueError(
            f"data set {spec.name}: the renderer does not fit its spec "
            f"({'; '.join(lines)})"
        )
    if spec.source == "synthetic":
        if presets:
            raise ValueError(
                f"data set {spec.name} is synthetic, but presets were given"
            )
        return
    for split, rows in spec.splits:
        found = presets.get(split, np.zeros((0, spec.parameters)))
        if found.shape != (rows, spec.parameters):
            raise ValueError(
                f"data set {spec.name}: split {split!r} needs presets of "
                f"shape {(rows, spec.parameters)}, got {found.shape}"
            )
        if len(names.get(split, ())) != rows:
            raise ValueError(
                f"data set {spec.name}: split {split!r} needs {rows} names, "
                f"got {len(names.get(split, ()))}"
            )
