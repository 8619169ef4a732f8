"""Presets to sounds to embeddings to shards.

Every row is a pure function of (spec, split, row number), so it does not
matter who builds which shard, in what order, how often it was interrupted,
or with how many workers: the bytes are the same. (Embeddings are as
repeatable as the machine's arithmetic: another kind of processor may differ
in the last bits.)

`drawing` says how rows come about. Embeddings are computed in blocks of
`spec.embed_batch` rows that start at fixed rows of the shard, the last one
padded with silence.

Rendering runs in worker threads, or, where more cores are at hand than an
engine's threads can use, in spawned processes. They are kept a fixed number of
rows ahead; meanwhile the accelerator embeds the blocks before, and the calling
thread writes the ones before those. Where the accelerator renders too, sounds
stay on it: levels, presets and embeddings are all that the host sees.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
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
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Bool, Float, Int

from datasets import drawing, engines, files, shards
from datasets.spec import DataSpec, differences, space_digest
from proxy import priors

# Beside the shards: which presets the engine failed to render, and why.
SET_ASIDE = "set_aside.json"
# Rows per call to a worker: large enough to make the hand-over cheap, small
# enough to spread a block over all workers.
_CHUNK = 16
# Batches of rows under way with an engine that renders batches: some that are
# rendered, and rows that wait for one before them to be heard.
_BATCHES = 6

Embed = Callable[[np.ndarray | jax.Array], Any]
Counts = collections.Counter[str]


@dataclasses.dataclass
class Report:
    """What `build` did, counted while it goes on.

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

    built: int = 0
    present: int = 0
    missing: int = 0
    rows: int = 0
    redrawn: Counts = dataclasses.field(default_factory=Counts)
    seconds: float = 0.0
    set_aside: Counts = dataclasses.field(default_factory=Counts)

    def __str__(self) -> str:
        text = f"{self.built} shards built, {self.present} already there"
        if self.missing:
            text += f", {self.missing} left to others"
        if self.rows:
            text += f"; {self.rows:,} presets, {self.rows / self.seconds:.0f}/s"
        if self.redrawn:
            text += f"; drawn again: {_reasons(self.redrawn)}"
        if self.set_aside:
            text += f"; set aside, see {SET_ASIDE}: {_reasons(self.set_aside)}"
        return text


def _reasons(counts: Counts) -> str:
    return ", ".join(f"{n:,} {why}" for why, n in sorted(counts.items()))


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


def _in_worker(
    function: Callable[..., drawing.Rows], *args: Any
) -> drawing.Rows:
    assert _worker_renderer is not None
    return function(_worker_renderer, *args)


@contextlib.contextmanager
def _pool(
    renderer: engines.Renderer, workers: int, processes: bool
) -> Iterator[Callable[..., concurrent.futures.Future[drawing.Rows]]]:
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
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        # Interrupted, nobody waits for a plug-in that takes seconds.
        if not processes:
            renderer.close()
        raise
    finally:
        executor.shutdown(wait=True)


class _Shard:
    """A shard under construction."""

    def __init__(self, spec: DataSpec, split: str, number: int) -> None:
        self.split, self.number = split, number
        self.rows = spec.shard_rows(split, number)
        self.redrawn = Counts()
        self.aside: list[tuple[int, int, str]] = []
        self.opened = contextlib.ExitStack()
        self.writer: shards.Writer | None = None


def _claimed(
    spec: DataSpec,
    directory: pathlib.Path,
    pairs: Iterable[tuple[str, int]],
    held: list[tuple[str, int]] | None,
    owner: contextlib.ExitStack,
) -> Iterator[_Shard]:
    """Claims shards one by one, as they are asked for, and opens them.

    Args:
      spec: the data set.
      directory: folder of the data set.
      pairs: (split, shard) of those wanted.
      held: collects the ones that another process is at; None waits for it.
      owner: gives up what is unfinished when it is closed.

    Yields:
      Those that are ours to build.
    """
    for split, number in pairs:
        shard = _Shard(spec, split, number)
        filename = spec.filename(split, number)
        with contextlib.ExitStack() as opened:
            granted = opened.enter_context(
                files.claim(directory, filename, wait=held is None)
            )
            if not granted:
                assert held is not None
                held.append((split, number))
            elif not (directory / filename).exists():
                shard.writer = opened.enter_context(
                    shards.Writer(directory, spec, split, number)
                )
                shard.opened = opened.pop_all()
                owner.callback(shard.opened.close)
                yield shard


def _rendered(
    spec: DataSpec,
    work: Iterable[_Shard],
    submit: Callable[..., concurrent.futures.Future[drawing.Rows]],
    prior: priors.Prior,
    presets: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str]],
    ahead: int,
) -> Iterator[tuple[_Shard, drawing.Rows]]:
    """Yields rendered rows in order, with `ahead` calls to workers pending."""

    def start(shard: _Shard, rows: range) -> tuple[_Shard, Any]:
        if spec.source == "synthetic":
            args = (drawing.render_rows, spec.seed, shard.split, rows, prior)
        else:
            these = slice(rows.start, rows.stop)
            args = (
                drawing.render_given,
                presets[shard.split][these],
                names[shard.split][these],
            )
        return shard, submit(*args)

    calls = (
        (shard, rows) for shard in work for rows in _split(shard.rows, _CHUNK)
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


def _rendered_in_batches(
    spec: DataSpec,
    work: Iterable[_Shard],
    renderer: engines.Renderer,
    prior: priors.Prior,
    presets: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str]],
    workers: int,
    on_device: bool,
) -> Iterator[tuple[_Shard, drawing.Rows]]:
    """Yields rows in order, each by itself; batches do not end with shards."""

    def start(shard: _Shard, row: int) -> drawing.Row:
        place: dict[str, Any] = {"split": shard.split, "row": row}
        if spec.source == "synthetic":
            return drawing.Row(owner=shard, **place)
        preset, name = presets[shard.split][row], names[shard.split][row]
        return drawing.given(renderer, preset, name, owner=shard, **place)

    for row in drawing.heard(
        renderer,
        (start(shard, row) for shard in work for row in shard.rows),
        window=_BATCHES * renderer.batch,
        seed=spec.seed,
        prior=prior,
        workers=workers,
        on_device=on_device,
    ):
        lent = row.preset[None], [row.audio]
        yield row.owner, drawing.Rows(*lent, row.redrawn, row.aside)


def _on_device(spec: DataSpec, renderer: engines.Renderer) -> bool:
    """Whether sounds stay where they are rendered until they are embedded."""
    return (
        renderer.on_device
        and not spec.keep_audio
        and jax.default_backend() != "cpu"
    )


@functools.partial(jax.jit, donate_argnums=0)
def _add(
    block: Float[Array, "batch samples"],
    sounds: Float[Array, "any columns"],
    rows: Int[Array, " batch"],
    mine: Bool[Array, " batch"],
) -> Float[Array, "batch samples"]:
    """The block, with rows of `sounds` where they are its own."""
    return jnp.where(mine[:, None], sounds[rows, : block.shape[1]], block)


def _embed_placed(embed: Embed, samples: int, placed: np.ndarray) -> Any:
    """Embeds sounds that are on the device, and forgets them.

    Args:
      embed: the audio model.
      samples: length of a sound.
      placed: an `engines.Placed` each; 0 for silence.
    """
    block = jnp.zeros((len(placed), samples), jnp.float32)
    rows = np.array([clip.row if clip else 0 for clip in placed], np.int32)
    owners = np.array([id(clip.sounds) if clip else 0 for clip in placed])
    batches = {id(clip.sounds): clip.sounds for clip in placed if clip}
    for owner, sounds in batches.items():
        block = _add(block, sounds, rows, owners == owner)
    placed[:] = 0
    return embed(block)


def _split(rows: range, size: int) -> Iterator[range]:
    for i in range(0, len(rows), size):
        yield rows[i : i + size]


def _embedded(
    spec: DataSpec,
    rendered: Iterable[tuple[_Shard, drawing.Rows]],
    embed: Callable[[np.ndarray], Any],
    in_flight: int,
    embedding: concurrent.futures.Executor,
    on_device: bool,
) -> Iterator[tuple[_Shard, range, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (shard, rows, presets, audio, embeddings), block by block.

    Each block is handed over before those before it are fetched, so that the
    devices always have work, and from the thread of `embedding`, so that
    collecting and writing go on where handing over means to wait. `on_device`,
    what is collected is where the sounds are.
    """
    size, kind = (spec.embed_batch, spec.samples), np.dtype(np.float32)
    if on_device:
        size, kind = size[:1], np.dtype(object)
    waiting: collections.deque[tuple] = collections.deque()
    # A block's memory is used again once its embeddings are written: until
    # then the device may be reading it.
    free: list[np.ndarray] = []
    blocks: dict[_Shard, Iterator[range]] = {}
    block, fill, audio, kept = range(0), 0, np.zeros(0), []
    for shard, rows in rendered:
        shard.redrawn.update(rows.redrawn)
        shard.aside.extend(rows.aside)
        for preset, sound in zip(rows.presets, rows.audio, strict=True):
            if fill == 0:
                if shard not in blocks:
                    blocks = {shard: _split(shard.rows, spec.embed_batch)}
                block, kept = next(blocks[shard]), []
                audio = free.pop() if free else np.empty(size, kind)
                audio[len(block) :] = 0
            audio[fill] = sound
            kept.append(preset)
            fill += 1
            if fill < len(block):
                continue
            handed = embedding.submit(embed, audio)
            waiting.append((shard, block, np.stack(kept), audio, handed))
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
    spec: DataSpec,
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
        raise files.ShardError(
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
    with shard.opened:
        shard.writer.finish(**notes)
    return True


def set_aside(directory: pathlib.Path, spec: DataSpec) -> list[dict[str, Any]]:
    """Presets of finished shards that the engine failed to render.

    Returns:
      "split", "shard", "row", "attempt" and "reason" of each, in this order:
      the preset is `draw(space, spec.seed, split, [row], [attempt], prior)`.
    """
    absent = set(shards.missing(directory, spec))
    found = []
    for split, shard in spec.shards:
        if (split, shard) in absent:
            continue
        check = shards.read_check(directory, spec, split, shard)
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


def _write_set_aside(directory: pathlib.Path, spec: DataSpec) -> None:
    """Writes `SET_ASIDE` when there is something to tell, or there was."""
    found, path = set_aside(directory, spec), directory / SET_ASIDE
    text = json.dumps({"set_aside": found}, indent=1) + "\n"
    if (found or path.exists()) and not (
        path.exists() and path.read_text() == text
    ):
        files.write_atomically(path, text)


def share(
    spec: DataSpec,
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
      numbers: numbers of the shards to choose among, None for all.
      task: first shard taken; every `num_tasks`-th follows: one element of
        a job array.
      num_tasks: size of the job array.

    Returns:
      (split, shard in that split) pairs.

    Raises:
      ValueError: when a number is out of range.
    """
    if num_tasks < 1 or not 0 <= task < num_tasks:
        raise ValueError(f"task is {task}, need 0 <= task < {num_tasks}")
    everything = spec.shards
    chosen = sorted(set(range(len(everything)) if numbers is None else numbers))
    for number in chosen:
        if number >= len(everything):
            raise ValueError(
                f"there is no shard {number}: {spec.name} has "
                f"{len(everything)}, numbered from 0"
            )
    return [everything[number] for number in chosen[task::num_tasks]]


def build(
    spec: DataSpec,
    directory: str | os.PathLike[str],
    make_renderer: Callable[[], engines.Renderer],
    make_embed: Callable[[], Embed],
    *,
    prior: priors.Prior | None = None,
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
      directory: folder of the data set, made when missing.
      make_renderer: makes the engine; called when a shard is missing. With
        threads, the engine is one that they can share.
      make_embed: makes the audio model; called when a shard is missing. It
        takes `[embed_batch, samples]` float32 audio, always of this one shape,
        to embeddings `[embed_batch, embedding]`; where an accelerator renders,
        audio that is on it, unless the spec has `keep_audio`. It may return
        before it is done, as a jitted function does: its result is fetched only
        when it is needed.
      prior: what synthetic presets are drawn from, when it is not uniform.
      presets: presets of a hand-crafted data set, by split.
      names: names of a hand-crafted data set's presets, by split.
      workers: number of workers, 0 for one per core, or as many as the engine's
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
    shards.open_directory(directory, spec)
    chosen = share(spec) if only is None else list(only)
    absent = set(shards.missing(directory, spec))
    for split, number in chosen:
        if (split, number) not in absent:
            shards.read_check(directory, spec, split, number)
    todo = [pair for pair in chosen if pair in absent]
    report = Report()
    if todo:
        renderer, embed = make_renderer(), make_embed()
        _check(spec, renderer, prior, presets, names)
        if prior is None:
            prior = priors.Uniform(renderer.space, spec.at_default, spec.at_end)
        if workers <= 0:
            workers = engines.num_workers() * renderer.workers_per_core
        if processes is None:
            most = renderer.max_threads
            processes = most is not None and workers > most
        # Enough for every worker while a block is collected and another
        # embedded.
        ahead = 2 * workers + -(-spec.embed_batch // _CHUNK)
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(_bar(spec, chosen, todo, progress))
            embedding = stack.enter_context(
                concurrent.futures.ThreadPoolExecutor(1, "embed")
            )
            submit = stack.enter_context(_pool(renderer, workers, processes))

            on_device, hand = _on_device(spec, renderer), embed
            if on_device:
                hand = functools.partial(_embed_placed, embed, spec.samples)

            def run(pairs: list[tuple[str, int]], held: list | None) -> None:
                work = _claimed(spec, directory, pairs, held, stack)
                given = prior, presets, names
                if renderer.batch:
                    rendered = _rendered_in_batches(
                        spec, work, renderer, *given, workers, on_device
                    )
                else:
                    rendered = _rendered(spec, work, submit, *given, ahead)
                blocks = _embedded(
                    spec, rendered, hand, in_flight, embedding, on_device
                )
                for shard, rows, *block in blocks:
                    last = _write(spec, names, shard, rows, *block)
                    report.rows += len(rows)
                    bar.update(len(rows))
                    if last:
                        report.built += 1
                        report.redrawn.update(shard.redrawn)
                        aside = (reason for *_, reason in shard.aside)
                        report.set_aside.update(aside)
                        left = len(todo) - report.built
                        _describe(bar, spec, len(chosen) - left, len(chosen))

            # First what nobody else is at. Then what others were at, one by
            # one, in case they were killed; to wait for a claim while holding
            # another could wait for ever.
            held: list[tuple[str, int]] = []
            run(todo, held)
            for pair in held:
                run([pair], None)
    _write_set_aside(directory, spec)
    report.present = len(chosen) - report.built
    report.missing = len(shards.missing(directory, spec))
    if shards.write_metadata(directory, spec):
        for path in directory.glob(".*.lock"):
            path.unlink(missing_ok=True)
    report.seconds = time.monotonic() - started
    return report


def _bar(
    spec: DataSpec,
    chosen: Sequence[tuple[str, int]],
    todo: Sequence[tuple[str, int]],
    progress: bool,
) -> tqdm.tqdm:
    rows = {pair: len(spec.shard_rows(*pair)) for pair in chosen}
    total = sum(rows.values())
    bar = tqdm.tqdm(
        total=total,
        initial=total - sum(rows[pair] for pair in todo),
        unit=" presets",
        disable=not progress,
        smoothing=0.05,
        # A log file gets a line now and then, not a stream.
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    _describe(bar, spec, len(chosen) - len(todo), len(chosen))
    return bar


def _describe(bar: tqdm.tqdm, spec: DataSpec, there: int, wanted: int) -> None:
    bar.set_description(f"{spec.name}: {there}/{wanted} shards", refresh=False)


def _check(
    spec: DataSpec,
    renderer: engines.Renderer,
    prior: priors.Prior | None,
    presets: Mapping[str, np.ndarray],
    names: Mapping[str, Sequence[str]],
) -> None:
    """Checks that a spec describes what is about to be built.

    Raises:
      ValueError: naming what does not fit.
    """
    made = {
        "settings": renderer.settings.to_dict(),
        "space": space_digest(renderer.space),
        "synth": renderer.name,
        "synth_version": renderer.version,
        "parameters": renderer.space.num_used,
        "prior": priors.digest(prior) if prior is not None else "",
    }
    stated = {key: getattr(spec, key) for key in made}
    stated["settings"] = spec.settings.to_dict()
    if lines := differences(stated, made):
        raise ValueError(
            f"data set {spec.name}: renderer and prior do not fit its spec "
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
