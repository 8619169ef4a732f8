"""Synthesizer engines behind one contract, `Renderer`.

An engine turns the raw values of a plug-in's parameters into sound. Which
note is played, for how long and at which sample rate is told by
`RenderSettings`, which travel with every data set.

    renderer = engines.get("dexed", RenderSettings(sample_rate=32_000))
    audio = renderer.render(renderer.space.to_plugin(preset))
    reason = engines.check_level(audio, renderer.settings)
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

import proxy.spaces
from proxy import unknown
from proxy.space import ParameterSpace
from proxy.synths import dx7

# What `check_level` says of sounds that are whole, and unfit for a data set.
UNFIT = ("silent", "too loud")
# What renders Dexed without a plug-in.
ENGINES = ("auto", "jax", "dexed-py")


@dataclasses.dataclass(frozen=True)
class RenderSettings:
    """How a preset is made to sound; stored with a data set, compared on load.

    Attributes:
      note: MIDI note number, 0 to 127.
      velocity: MIDI velocity, 1 to 127.
      hold: seconds between note-on and note-off.
      duration: seconds of audio, counted from the start of the clip.
      sample_rate: samples per second; the audio model's own, as clips are
        never resampled.
      fade_out: seconds at the end of the clip over which it fades linearly
        to zero.
      min_rms: a clip whose root mean square is at or below this is silent.
      max_rms: a clip whose root mean square is at or above this is too loud.
      note_on: seconds of silence before the note starts.

    Raises:
      ValueError: a setting is out of its range.
    """

    note: int = 60
    velocity: int = 100
    hold: float = 2.0
    duration: float = 5.0
    sample_rate: int = 44_100
    fade_out: float = 0.1
    min_rms: float = 0.01
    max_rms: float = 1.0
    note_on: float = 0.01

    def __post_init__(self) -> None:
        problems = [
            f"{name}={getattr(self, name)} ({remedy})"
            for name, fine, remedy in (
                ("note", 0 <= self.note <= 127, "0 to 127"),
                ("velocity", 1 <= self.velocity <= 127, "1 to 127"),
                ("hold", self.hold > 0, "above 0 seconds"),
                ("sample_rate", self.sample_rate > 0, "above 0 Hz"),
                ("note_on", self.note_on >= 0, "at least 0 seconds"),
                (
                    "duration",
                    self.duration > self.note_on,
                    f"above note_on={self.note_on} seconds",
                ),
                (
                    "fade_out",
                    0 <= self.fade_out <= self.duration,
                    f"0 to duration={self.duration} seconds",
                ),
                ("min_rms", self.min_rms >= 0, "at least 0"),
                (
                    "max_rms",
                    self.max_rms > self.min_rms,
                    f"above min_rms={self.min_rms}",
                ),
            )
            if not fine
        ]
        if problems:
            raise ValueError(
                f"render settings out of range: {', '.join(problems)}"
            )

    @property
    def samples(self) -> int:
        """Samples in a clip."""
        return round(self.duration * self.sample_rate)

    def to_dict(self) -> dict[str, int | float]:
        """Returns the settings as a plain dictionary, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "RenderSettings":
        """Returns the settings that `to_dict` described.

        Raises:
          ValueError: the dictionary names a setting that does not exist.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in set(settings) - known:
            raise ValueError(unknown("render setting", name, sorted(known)))
        return cls(**settings)


class RenderError(RuntimeError):
    """An engine could not render a preset; the message says why."""


class MissingPluginError(ValueError):
    """A synthesizer's plug-in is not there; the message says what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """A sound that stays where it was rendered, on JAX's device.

    Attributes:
      sounds: those of a batch; the columns beyond `settings.samples` mean
        nothing.
      row: which of them it is.
    """

    sounds: Float[Array, "batch columns"]
    row: int


class Renderer:
    """An engine; instances can be pickled to worker processes.

    An engine gives `render` and `at`; what else it can do replaces the
    defaults here.

    Attributes:
      name: the engine's name in this registry.
      version: name and version of the software that makes the sound, stored
        with a data set.
      space: the parameter space whose plug-in values it takes.
      settings: how presets are made to sound.
      host: name and version of the program that hosts a plug-in; empty for
        an engine that is none, whose renders always repeat.
      max_threads: threads beyond which only processes render faster; None
        when threads always do.
      workers_per_core: workers that keep one core busy; more than one where
        they wait.
      batch: presets that are rendered together, and cost little less when
        they are fewer; 0 for an engine that renders one by one.
      on_device: whether it renders on JAX's device, so that there is
        `render_on_device`.
    """

    name: str
    version: str
    space: ParameterSpace
    settings: RenderSettings
    host: str = ""
    max_threads: int | None = None
    workers_per_core: int = 1
    batch: int = 0
    on_device: bool = False

    def render(
        self,
        values: Float[np.ndarray, " parameters"],
        note: int | None = None,
    ) -> Float[np.ndarray, " samples"]:
        """Renders one preset; the result depends on the arguments alone.

        Args:
          values: raw plug-in values in [0, 1], all parameters in table order.
          note: MIDI note in place of `settings.note`.

        Returns:
          Mono audio, float32, `settings.samples` long.

        Raises:
          RenderError: the engine cannot render this preset.
        """
        raise NotImplementedError

    def render_batch(
        self,
        values: Float[np.ndarray, "batch parameters"],
        notes: Iterable[int | None] | None = None,
        *,
        workers: int = 1,
    ) -> tuple[Float[np.ndarray, "batch samples"], list[str | None]]:
        """Renders presets; each as `render` does, whatever the batch.

        Args:
          values: raw plug-in values in [0, 1], all parameters in table order.
          notes: MIDI note of each preset; `settings.note` when left out.
          workers: threads to share the work.

        Returns:
          Clips, and for each None or why the engine failed; a clip that
          failed is silent.
        """
        clips = np.empty((len(values), self.settings.samples), np.float32)
        reasons: list[str | None] = []
        with contextlib.closing(
            render_many(self, values, workers=workers, notes=notes)
        ) as sounds:
            for clip, sound in zip(clips, sounds, strict=True):
                failed = isinstance(sound, RenderError)
                clip[:] = 0 if failed else sound
                reasons.append(str(sound) if failed else None)
        return clips, reasons

    def render_into(
        self,
        clips: Sequence[Float[np.ndarray, " samples"]],
        values: Float[np.ndarray, "batch parameters"],
        notes: Iterable[int | None] | None = None,
        *,
        workers: int = 1,
    ) -> list[str | None]:
        """Renders presets, and keeps the sounds that pass the level gate.

        Args:
          clips: where each sound goes.
          values: raw plug-in values in [0, 1], all parameters in table order.
          notes: MIDI note of each preset; `settings.note` when left out.
          workers: threads to share the work.

        Returns:
          For each preset None, or why its clip was left as it is: what
          `check_level` says, or why the engine failed.
        """
        sounds, reasons = self.render_batch(values, notes, workers=workers)
        for row, sound in enumerate(sounds):
            reasons[row] = reasons[row] or check_level(sound, self.settings)
            if reasons[row] is None:
                clips[row][:] = sound
        return reasons

    def render_on_device(
        self, values: Float[np.ndarray, "batch parameters"]
    ) -> tuple[list[Placed | None], list[str | None]]:
        """Renders presets as `render_into` does; only levels come to the host.

        Args:
          values: raw plug-in values in [0, 1], all parameters in table order.

        Returns:
          Sounds that pass the level gate, None for the others, and for each
          what `render_into` says.
        """
        raise NotImplementedError

    def at(self, settings: RenderSettings) -> "Renderer":
        """The same engine, with presets made to sound in another way."""
        raise NotImplementedError

    def for_few(self) -> "Renderer":
        """The engine for a few dozen presets at a time; the same sounds."""
        return self

    def surely_silent(
        self, values: Float[np.ndarray, "batch parameters"]
    ) -> Bool[np.ndarray, " batch"]:
        """Tells which presets need no rendering because they are silent.

        Ask before rendering random presets: most Dexed ones are silent, and
        the engine knows from their envelopes.

        Args:
          values: raw plug-in values in [0, 1], all parameters in table order.

        Returns:
          True where `check_level` of the render would be "silent"; False
          where it may not be, or the engine cannot tell.
        """
        return np.zeros(len(values), bool)

    def dead(self) -> list[str]:
        """Names of parameters that presets vary, and that change nothing.

        Told by trying; an engine that is no plug-in has none.
        """
        return []

    def read_state(
        self, data: bytes, kind: str
    ) -> Float[np.ndarray, " parameters"]:
        """Raw values of all parameters in a state that a plug-in saved.

        Args:
          data: content of a file.
          kind: the file's suffix without the dot.

        Raises:
          ValueError: the state is damaged, or the engine takes none.
        """
        raise ValueError(f"{self.version} has no states to read")

    def write_state(
        self, values: Float[np.ndarray, " parameters"]
    ) -> bytes | None:
        """Content of the .vstpreset file of a preset.

        Args:
          values: raw plug-in values in [0, 1], all parameters in table order.

        Returns:
          The bytes; None for an engine that is no plug-in.
        """
        return None

    def close(self) -> None:
        """Ends what the engine has started; it starts again when needed."""


def check_level(
    audio: Float[np.ndarray, " samples"], settings: RenderSettings
) -> str | None:
    """Says why a clip is unfit for a data set.

    Returns:
      "nan" (not finite), "silent", "too loud", or None for a fit clip.
    """
    # In double precision: the gate must fall the same way however the sum is
    # vectorised. Not as a mean of squares, whose large temporary arrays cost
    # a third of a render.
    energy = np.einsum("i,i->", audio, audio, dtype=np.float64)
    return level_reason((float(energy) / len(audio)) ** 0.5, settings)


def level_reason(rms: float, settings: RenderSettings) -> str | None:
    """As `check_level`, of a clip's root mean square."""
    if not math.isfinite(rms):
        return "nan"
    if rms <= settings.min_rms:
        return "silent"
    if rms >= settings.max_rms:
        return "too loud"
    return None


def fade(
    audio: Float[np.ndarray, " samples"], settings: RenderSettings
) -> Float[np.ndarray, " samples"]:
    """Fades the end of a clip linearly to zero, in place, and returns it."""
    length = round(settings.fade_out * settings.sample_rate)
    if length:
        audio[-length:] *= np.linspace(1, 0, length, dtype=audio.dtype)
    return audio


def render_many(
    renderer: Renderer,
    values: Iterable[np.ndarray],
    *,
    workers: int = 1,
    notes: Iterable[int | None] | None = None,
) -> Generator[np.ndarray | RenderError, None, None]:
    """Renders a stream of presets in threads, in order, in bounded memory.

    For engines that release the interpreter lock while they compute, as Dexed
    does: n threads then render n times as fast. At most 4 clips per worker
    are in flight, so `values` may be endless.

    Args:
      renderer: its `render` is called from several threads.
      values: raw plug-in values, one array [parameters] for each preset.
      workers: number of threads.
      notes: MIDI note for each preset; `settings.note` when left out.

    Yields:
      The clip [samples] of each preset in turn, or the `RenderError` that it
      raised, so that one bad preset does not end the stream.

    Raises:
      ValueError: `workers` is below 1.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: at least 1 is needed")

    def render(
        preset: np.ndarray, note: int | None
    ) -> np.ndarray | RenderError:
        try:
            return renderer.render(preset, note)
        except RenderError as error:
            return error

    presets = iter(values)
    pitches = iter(notes) if notes is not None else None
    work = (
        (preset, None if pitches is None else next(pitches))
        for preset in presets
    )
    if workers == 1:
        for preset, note in work:
            yield render(preset, note)
        return
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque = collections.deque()
        try:
            for preset, note in work:
                pending.append(pool.submit(render, preset, note))
                if len(pending) >= 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # A consumer that stops early must not wait for the queue.
            for future in pending:
                future.cancel()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_workers(workers: int = 0) -> int:
    """Number of workers: as asked, or, for 0, one per usable core."""
    return workers if workers > 0 else usable_cores()


def embedded(name: str, plugin: str = "") -> bool:
    """Whether a synthesizer is rendered without a plug-in; see `get`."""
    return name == "dexed" and not plugin


def check(name: str, plugin: str = "") -> None:
    """Checks, without loading anything, that there is something to render.

    Raises:
      MissingPluginError: (a `ValueError`) the plug-in is not there.
    """
    if name in proxy.spaces.names() and not embedded(name, plugin):
        from datasets.engines.vst3 import engine as vst3

        vst3.find(name, plugin)


def get(
    name: str,
    settings: RenderSettings | None = None,
    *,
    plugin: str = "",
    host: Mapping[str, Any] | None = None,
    engine: str = "dexed-py",
) -> Renderer:
    """Returns a renderer by name.

    Args:
      name: a synthesizer's, one of `proxy.spaces.names()`.
      settings: how presets are made to sound; the defaults when left out.
      plugin: path of the synthesizer's VST3 plug-in. When empty, Dexed is
        rendered by its embedded engine, and any other by the plug-in that
        its environment variable names (`vst3.variable`).
      host: fields of the plug-in's render contract, `vst3.Contract`, that
        are to be other than usual.
      engine: one of `ENGINES`: what renders Dexed without a plug-in. "jax"
        renders batches, "dexed-py" starts at once; "auto" is the first where
        it can render at this sample rate.

    Raises:
      ValueError: no engine has this name, or `host` is out of range.
      MissingPluginError: (a `ValueError`) the plug-in is not there.
      ImportError: the engine's library is not installed.
    """
    settings = settings or RenderSettings()
    if engine not in ENGINES:
        raise ValueError(unknown("config.engine", engine, ENGINES))
    if embedded(name, plugin):
        from datasets.engines import dexed, dexed_batch

        if engine == "auto":
            fast = settings.sample_rate >= dx7.LOWEST_RATE
            engine = "jax" if fast else "dexed-py"
        if engine == "jax":
            return dexed_batch.BatchedDexed(settings)
        return dexed.DexedRenderer(settings)
    if name not in proxy.spaces.names():
        raise ValueError(unknown("engine", name, proxy.spaces.names()))
    from datasets.engines.vst3 import engine as vst3

    return vst3.get(name, settings, plugin, host)
