"""Dexed on JAX: the engine of `proxy.synths.dx7`, many presets in one call."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from datasets import engines
from datasets.engines import RenderError, RenderSettings, dexed
from proxy.synths import dx7, output

# Counts up when the same presets sound differently.
VERSION = "dx7-jax 1"
# Voices that are rendered at once. Fewer cost more each: feedback goes through
# the samples one by one, with voices side by side.
BATCH = 256
# As many as a search makes at a time, at a little more for each.
FEW = 64


@functools.cache
def _compiled() -> Callable[..., tuple[Array, Array]]:
    """What renders a batch, on this machine.

    The room that it is given becomes the sound: fresh memory costs a tenth of
    a render. On a CPU a batch keeps to one core.
    """
    options = {}
    if jax.default_backend() == "cpu":
        options = {
            "xla_cpu_multi_thread_eigen": False,
            "xla_cpu_enable_concurrency_optimized_scheduler": False,
        }
    return jax.jit(
        _render,
        static_argnames=("settings",),
        donate_argnums=0,
        keep_unused=True,
        compiler_options=options,
    )


def _timing(settings: RenderSettings) -> dict[str, Any]:
    start = round(settings.note_on * settings.sample_rate)
    return {
        "start": start,
        "duration": (settings.samples - start) / settings.sample_rate,
        "sample_rate": settings.sample_rate,
    }


def _render(
    room: Float[Array, "batch columns"],
    voices: UInt8[Array, "batch bytes"],
    notes: Int[Array, " batch"],
    hold: Float[Array, " batch"],
    count: Int[Array, ""],
    *,
    settings: RenderSettings,
) -> tuple[Float[Array, "batch columns"], Float[Array, " batch"]]:
    """Sounds in `room`, and their levels; of the first `count` voices."""
    sound = dx7.render_into(
        room,
        voices,
        note=notes,
        velocity=settings.velocity,
        hold=hold,
        **_timing(settings),
    )
    return output.finish(
        sound,
        count,
        gain=dx7.GAIN,
        samples=settings.samples,
        sample_rate=settings.sample_rate,
        fade=round(settings.fade_out * settings.sample_rate),
    )


class BatchedDexed(dexed.Dexed):
    """Renders Dexed presets in batches on JAX's device, or on every core.

    Before the DC blocker each sample is dexed-py's, bit for bit (`python -m
    launch.exactness`); after it, within 1e-6. A sound does not depend on the
    others in its batch. Safe to share between threads.

    Raises:
      ValueError: the sample rate is below 16,000 Hz.
    """

    version = VERSION
    on_device = True

    def __init__(self, settings: RenderSettings | None = None) -> None:
        super().__init__(settings)
        # Halved, once and for all, where memory does not hold as many.
        self.batch = BATCH
        dx7.check(
            np.zeros((1, dexed.VOICE_BYTES), np.uint8),
            note=self.settings.note,
            velocity=self.settings.velocity,
            hold=self.settings.hold,
            duration=self.settings.duration,
            sample_rate=self.settings.sample_rate,
        )
        # What batches were rendered in, to be used again.
        self._rooms: list[Array] = []
        self._lock = threading.Lock()

    def for_few(self) -> "BatchedDexed":
        """As `Renderer.for_few`: smaller batches."""
        few = type(self)(self.settings)
        few.batch = min(self.batch, FEW)
        return few

    def render(
        self,
        values: Float[np.ndarray, " parameters"],
        note: int | None = None,
    ) -> Float[np.ndarray, " samples"]:
        """As `Renderer.render`; a batch costs little more."""
        clips, reasons = self.render_batch(np.asarray(values)[None], [note])
        if reasons[0] is not None:
            raise RenderError(reasons[0])
        return clips[0]

    def render_batch(
        self,
        values: Float[np.ndarray, "batch parameters"],
        notes: Iterable[int | None] | None = None,
        *,
        workers: int = 1,
    ) -> tuple[Float[np.ndarray, "batch samples"], list[str | None]]:
        """As `Renderer.render_batch`."""
        clips = np.zeros((len(values), self.settings.samples), np.float32)

        def take(row: int, sounds: Any, i: int, level: float) -> None:
            clips[row] = sounds[i, : self.settings.samples]

        return clips, self._render(values, notes, workers, take)

    def render_into(
        self,
        clips: Sequence[Float[np.ndarray, " samples"]],
        values: Float[np.ndarray, "batch parameters"],
        notes: Iterable[int | None] | None = None,
        *,
        workers: int = 1,
    ) -> list[str | None]:
        """As `Renderer.render_into`."""

        def keep(row: int, sounds: Any, i: int) -> None:
            clips[row][:] = sounds[i, : self.settings.samples]

        return self._gated(values, notes, workers, keep)

    def render_on_device(
        self, values: Float[np.ndarray, "batch parameters"]
    ) -> tuple[list[engines.Placed | None], list[str | None]]:
        """As `Renderer.render_on_device`."""
        placed: list[engines.Placed | None] = [None] * len(values)

        def keep(row: int, sounds: Any, i: int) -> None:
            placed[row] = engines.Placed(sounds, i)

        return placed, self._gated(values, None, 1, keep, on_device=True)

    def _gated(
        self,
        values: Float[np.ndarray, "batch parameters"],
        notes: Iterable[int | None] | None,
        workers: int,
        keep: Callable[[int, Any, int], None],
        on_device: bool = False,
    ) -> list[str | None]:
        """As `_render`; `keep` gets what passes the level gate."""
        unfit: dict[int, str] = {}

        def take(row: int, sounds: Any, i: int, level: float) -> None:
            reason = engines.level_reason(level, self.settings)
            if reason is None:
                keep(row, sounds, i)
            else:
                unfit[row] = reason

        reasons = self._render(values, notes, workers, take, on_device)
        return [unfit.get(row, reason) for row, reason in enumerate(reasons)]

    def _render(
        self,
        values: Float[np.ndarray, "batch parameters"],
        notes: Iterable[int | None] | None,
        workers: int,
        take: Callable[[int, Any, int, float], None],
        on_device: bool = False,
    ) -> list[str | None]:
        """Renders presets in batches.

        Args:
          values: raw plug-in values.
          notes: MIDI note of each.
          workers: threads, each with a batch of its own.
          take: gets of each its row, sounds, which of them is its own, and
            its level; called from any of the threads.
          on_device: whether sounds are left where they are.

        Returns:
          What is wrong with each.
        """
        voices, reasons = self._voices(np.asarray(values, np.float32))
        given = [None] * len(voices) if notes is None else list(notes)
        pitches = np.array(
            [self.settings.note if n is None else n for n in given], np.int64
        )
        for row in np.flatnonzero((pitches < 0) | (pitches > 127)):
            reasons[row] = f"MIDI note {pitches[row]} is outside 0 to 127"
        fine = np.flatnonzero([reason is None for reason in reasons])

        def work(rows: np.ndarray) -> None:
            # Not by calling itself: such a function, and with it the sounds
            # that `take` keeps, waits for the garbage collector.
            todo = [rows]
            while todo:
                rows, size = todo.pop(), self.batch
                if len(rows) > size:
                    todo += rows[size:], rows[:size]
                    continue
                try:
                    sound, levels = self._fill(
                        voices[rows], pitches[rows], size
                    )
                    sounds = sound if on_device else np.asarray(sound)
                    # A call that ran out of memory may say so only here.
                    heard = np.asarray(levels)
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error) or size == 1:
                        raise
                    self._halve(size)
                    todo.append(rows)
                    continue
                for i, row in enumerate(rows):
                    take(int(row), sounds, i, float(heard[i]))
                if not on_device:
                    self._rooms.append(sound)

        starts = range(0, len(fine), self.batch)
        parts = [fine[start : start + self.batch] for start in starts]
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, parts))
        return reasons

    def _voices(
        self, values: Float[np.ndarray, "batch parameters"]
    ) -> tuple[np.ndarray, list[str | None]]:
        """Voices, and what is wrong with each."""
        with contextlib.suppress(RenderError):
            return dexed.to_voices(values, self.space), [None] * len(values)
        voices = np.zeros((len(values), dexed.VOICE_BYTES), np.uint8)
        reasons: list[str | None] = [None] * len(values)
        for row, preset in enumerate(values):
            try:
                voices[row] = dexed.to_voices(preset, self.space)
            except RenderError as error:
                reasons[row] = str(error)
        return voices, reasons

    def _fill(
        self,
        voices: UInt8[np.ndarray, "some bytes"],
        notes: Int[np.ndarray, " some"],
        size: int,
    ) -> tuple[Array, Array]:
        """Renders voices in a batch that is filled up: sounds and levels."""
        count, settings = len(voices), self.settings
        missing = size - count
        shape = dx7.room(size, **_timing(settings))
        try:
            room = self._rooms.pop()
        except IndexError:
            room = None
        if room is None or room.shape != shape:
            room = jnp.zeros(shape)
        return _compiled()(
            room,
            np.pad(voices, ((0, missing), (0, 0))),
            np.pad(notes, (0, missing)).astype(np.int32),
            np.full(size, settings.hold, np.float32),
            np.int32(count),
            # One program for all notes and holds.
            settings=dataclasses.replace(settings, note=60, hold=1.0),
        )

    def _halve(self, tried: int) -> None:
        """Goes on with smaller batches than were tried; says so."""
        self._rooms.clear()
        with self._lock:
            if self.batch == tried:
                self.batch //= 2
                logging.getLogger(__name__).warning(
                    "the device's memory does not hold as many sounds: %d "
                    "presets are rendered at once from now on",
                    self.batch,
                )
