"""Rows of a data set: presets, drawn or given, and their sounds.

A synthetic preset comes from a counter-based stream: NumPy's Philox keyed by
(seed, split), its counter set to (row, attempt). A prior makes presets of its
numbers. A preset that fails the level gate is drawn again with the next
attempt.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from datasets import engines, files
from proxy.priors import Prior, Uniform
from proxy.space import ParameterSpace

MAX_ATTEMPTS = 1024
# Attempts at a row of uniform presets that are drawn at a time.
_ATTEMPTS = 16


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
    prior: Prior | None = None,
) -> Float[np.ndarray, "rows attempts parameters"]:
    """Draws synthetic presets, each a pure function of its coordinates.

    Args:
      space: of the presets.
      seed: seed of the data set.
      split: name of the split; splits are independent of each other.
      rows: numbers of the rows in the split.
      attempts: numbers of the draws at each row.
      prior: their distribution; None for the paper's, `Uniform(space)`.

    Returns:
      float32 presets.
    """
    prior = Uniform(space) if prior is None else prior
    uniform = np.empty((len(rows), len(attempts), prior.uniforms), np.float32)
    key = np.array([seed, _stream(split)], np.uint64)
    for i, row in enumerate(rows):
        for j, attempt in enumerate(attempts):
            # The lowest word counts the numbers drawn.
            counter = np.array([0, attempt, row, 0], np.uint64)
            bits = np.random.Philox(key=key, counter=counter)
            np.random.Generator(bits).random(
                dtype=np.float32, out=uniform[i, j]
            )
    return np.asarray(prior.from_uniform(uniform), np.float32)


def _nothing() -> Any:
    return np.zeros(0, bool)


@dataclasses.dataclass(eq=False)
class Row:
    """A row of a data set on its way to be heard.

    Attributes:
      split: its split.
      row: its number in the split.
      owner: whatever it belongs to.
      name: of a preset that is given; empty when presets are drawn.
      drawn: presets to try, in turn.
      values: plug-in values of each.
      silent: which of them need not be rendered.
      tried: which of them is tried.
      first: number of the first one's attempt.
      last: what was wrong with the one before.
      audio: sound of the preset that is tried, or where it is on a device.
      redrawn: numbers of presets that were drawn again, by reason.
      aside: (row, attempt, reason) of presets that the engine failed to
        render.
    """

    split: str = ""
    row: int = 0
    owner: Any = None
    name: str = ""
    drawn: Float[np.ndarray, "attempts parameters"] = dataclasses.field(
        default_factory=_nothing
    )
    values: Float[np.ndarray, "attempts plugin"] = dataclasses.field(
        default_factory=_nothing
    )
    silent: Bool[np.ndarray, " attempts"] = dataclasses.field(
        default_factory=_nothing
    )
    tried: int = -1
    first: int = 0
    last: str = "silent"
    audio: Any = dataclasses.field(default_factory=_nothing)
    redrawn: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    aside: list[tuple[int, int, str]] = dataclasses.field(default_factory=list)

    @property
    def preset(self) -> Float[np.ndarray, " parameters"]:
        """The preset that is tried, or that was kept."""
        return self.drawn[self.tried]

    def skip(self) -> bool:
        """Goes to the next preset that may be heard; says if there is one."""
        rest = self.silent[self.tried + 1 :]
        silent = len(rest) if rest.all() else int(rest.argmin())
        if silent:
            self.redrawn["silent"] += silent
        self.tried += silent + 1
        return silent < len(rest)

    def fail(self, reason: str) -> None:
        """Notes what was wrong with the preset that was tried."""
        self.last = reason
        self.redrawn[reason] += 1
        if reason not in engines.UNFIT:
            self.aside.append((self.row, self.first + self.tried, reason))


def given(
    renderer: engines.Renderer,
    preset: Float[np.ndarray, " parameters"],
    name: str,
    **fields: Any,
) -> Row:
    """A row with a preset that is given, not drawn."""
    presets = np.asarray(preset, np.float32)[None]
    return Row(
        name=name,
        drawn=presets,
        values=np.asarray(renderer.space.to_plugin(presets), np.float32),
        silent=np.zeros(1, bool),
        **fields,
    )


def _next(
    renderer: engines.Renderer,
    seed: int,
    prior: Prior | None,
    rows: Sequence[Row],
) -> None:
    """Finds each row's next preset that may be heard, drawing where needed.

    Raises:
      ShardError: for a given preset that is unfit, or a row that was drawn
        too often.
    """
    space = renderer.space
    prior = Uniform(space) if prior is None else prior
    while rows := [row for row in rows if not row.skip()]:
        for row in rows:
            if row.name:
                raise files.ShardError(
                    f"hand-crafted preset {row.name!r}: {row.last}; filter "
                    "the bank with the render settings of this data set first"
                )
            row.first += len(row.silent)
            if row.first >= MAX_ATTEMPTS:
                raise files.ShardError(
                    f"space {space.name!r}: row {row.row} of split "
                    f"{row.split!r} was drawn {MAX_ATTEMPTS} times and never "
                    f"passed the level gate (last: {row.last}); check the "
                    "space's sampling intervals, and the render settings "
                    "min_rms and max_rms"
                )
        # Most uniform presets are known to be silent unheard.
        count = _ATTEMPTS if isinstance(prior, Uniform) else 1
        place = operator.attrgetter("split", "first")
        for (split, first), group in itertools.groupby(rows, place):
            same = list(group)
            attempts = range(first, first + count)
            numbers = [row.row for row in same]
            drawn = draw(space, seed, split, numbers, attempts, prior)
            values = np.asarray(
                space.to_plugin(drawn.reshape(-1, space.num_used)), np.float32
            )
            silent = renderer.surely_silent(values).reshape(drawn.shape[:2])
            values = values.reshape(*drawn.shape[:2], -1)
            for row, *found in zip(same, drawn, values, silent, strict=True):
                row.drawn, row.values, row.silent = found
                row.tried = -1


class _Clips(Sequence[np.ndarray]):
    """Where the sounds of rows go; only one that is kept takes memory."""

    def __init__(
        self, rows: Sequence[Row], rooms: list[np.ndarray], samples: int
    ) -> None:
        self._rows, self._rooms, self._samples = rows, rooms, samples

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        row = self._rows[i]
        try:
            row.audio = self._rooms.pop()
        except IndexError:
            row.audio = np.empty(self._samples, np.float32)
        return row.audio


def heard(
    renderer: engines.Renderer,
    wanted: Iterable[Row],
    *,
    window: int,
    seed: int = 0,
    prior: Prior | None = None,
    workers: int = 1,
    on_device: bool = False,
) -> Iterator[Row]:
    """Renders rows until each has a preset that passes the level gate.

    Args:
      renderer: the engine.
      wanted: the rows; asked for one by one, as there is room.
      window: rows under way at once, which bounds the memory.
      seed: see `draw`.
      prior: see `draw`.
      workers: threads that render, each a batch at a time.
      on_device: whether sounds stay on JAX's device.

    Yields:
      The rows in order. A sound is lent until the next row is asked for.

    Raises:
      ShardError: when a given preset fails the gate, or a row fails it
        `MAX_ATTEMPTS` times.
    """
    size = renderer.batch or window
    wanted = iter(wanted)
    under_way: collections.deque[Row] = collections.deque()
    ready: collections.deque[Row] = collections.deque()
    flying: dict[concurrent.futures.Future[list[str | None]], list[Row]] = {}
    rooms: list[np.ndarray] = []
    done: set[Row] = set()

    def render(part: list[Row]) -> list[str | None]:
        values = np.stack([row.values[row.tried] for row in part])
        if not on_device:
            clips = _Clips(part, rooms, renderer.settings.samples)
            return renderer.render_into(clips, values)
        placed, reasons = renderer.render_on_device(values)
        for row, clip in zip(part, placed, strict=True):
            row.audio = clip or row.audio
        return reasons

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        while True:
            new = list(itertools.islice(wanted, window - len(under_way)))
            _next(renderer, seed, prior, new)
            under_way.extend(new)
            ready.extend(new)
            # Full batches, or what there is when nothing else goes on; one more
            # than there are workers, so that none waits for this thread.
            while len(flying) <= workers and (
                len(ready) >= size or (ready and not flying)
            ):
                part = [ready.popleft() for _ in range(min(size, len(ready)))]
                flying[pool.submit(render, part)] = part
            if not flying:
                return
            finished, _ = concurrent.futures.wait(
                flying, return_when=concurrent.futures.FIRST_COMPLETED
            )
            again = []
            for future in finished:
                reasons = future.result()
                for row, reason in zip(
                    flying.pop(future), reasons, strict=True
                ):
                    if reason is None:
                        done.add(row)
                        continue
                    row.fail(reason)
                    again.append(row)
            _next(renderer, seed, prior, again)
            # First those that others wait behind.
            ready.extendleft(reversed(again))
            while under_way and under_way[0] in done:
                row = under_way.popleft()
                done.discard(row)
                yield row
                if not on_device:
                    rooms.append(row.audio)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that were heard, one after another.

    Attributes:
      presets: hard presets.
      audio: sounds of the presets: an array, or one by one.
      redrawn: numbers of presets that were drawn again, by reason.
      aside: (row, attempt, reason) of presets that the engine failed to
        render.
    """

    presets: Float[np.ndarray, "rows parameters"]
    audio: Float[np.ndarray, "rows samples"] | Sequence[Any]
    redrawn: dict[str, int]
    aside: list[tuple[int, int, str]]


def _collect(
    renderer: engines.Renderer, wanted: Sequence[Row], **options: Any
) -> Rows:
    space, count = renderer.space, len(wanted)
    presets = np.empty((count, space.num_used), np.float32)
    audio = np.empty((count, renderer.settings.samples), np.float32)
    redrawn = collections.Counter[str]()
    aside: list[tuple[int, int, str]] = []
    rows = heard(renderer, wanted, window=max(count, 1), **options)
    for i, row in enumerate(rows):
        presets[i], audio[i] = row.preset, row.audio
        redrawn.update(row.redrawn)
        aside += row.aside
    return Rows(presets, audio, dict(redrawn), aside)


def render_rows(
    renderer: engines.Renderer,
    seed: int,
    split: str,
    rows: Sequence[int],
    prior: Prior | None = None,
) -> Rows:
    """Draws, as `draw` does, and renders synthetic rows.

    Returns:
      The first draw of each row that passes the level gate.

    Raises:
      ShardError: when a row fails the gate `MAX_ATTEMPTS` times.
    """
    wanted = [Row(split, row) for row in rows]
    return _collect(renderer, wanted, seed=seed, prior=prior)


def render_given(
    renderer: engines.Renderer,
    presets: Float[np.ndarray, "rows parameters"],
    names: Sequence[str],
) -> Rows:
    """Renders given hard presets.

    Returns:
      The presets and their sounds.

    Raises:
      ShardError: when one of them fails the level gate; names it.
    """
    return _collect(
        renderer,
        [
            given(renderer, preset, name)
            for preset, name in zip(presets, names, strict=True)
        ],
    )
