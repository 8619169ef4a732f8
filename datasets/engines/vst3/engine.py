"""VST3 instruments as engines, each instance in a process of its own.

A plug-in is code of others: it may crash, hang, return NaN, or remember the
sound before. So it never runs in our process, it is driven under a contract
that makes its renders repeatable (`Contract`), and what goes wrong costs one
preset: the worker is replaced, the preset tried once more, and then a
`RenderError` sets it aside.

    renderer = PluginRenderer("Diva.vst3", spaces.get("diva"), settings)
    audio = renderer.render(renderer.space.to_plugin(preset))

pedalboard (GPL-3) is imported by the workers only.
"""

import contextlib
import functools
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

import proxy.spaces
from datasets.engines import (
    MissingPluginError,
    Renderer,
    RenderError,
    RenderSettings,
    fade,
)
from datasets.engines.vst3 import binding as vst3_binding
from datasets.engines.vst3 import state as vst3_state
from datasets.engines.vst3.process import (
    CONTRACTS,
    LOAD_SECONDS,
    Contract,
    DeadError,
    PluginError,
    Pool,
    Worker,
    contract,
)
from proxy.space import ParameterSpace

# Faults in a row that end a run: the plug-in is broken, not the presets.
_MAX_FAULTS = 20
# Silent presets in a row that do: of random Dexed presets, 92 % are.
_MAX_SILENT = 256


def variable(synth: str) -> str:
    """Environment variable that names a synthesizer's plug-in."""
    return f"{synth.upper()}_VST3"


def find(synth: str, plugin: str = "") -> str:
    """Where a synthesizer's plug-in is.

    Args:
      synth: name of its space.
      plugin: path of a .vst3 file or bundle, as `Config.plugin` gives it;
        when empty, the environment variable `variable(synth)` does.

    Returns:
      The path, absolute.

    Raises:
      MissingPluginError: naming every way to do without or with it.
    """
    name = variable(synth)
    given = plugin or os.environ.get(name, "")
    remedy = (
        f"set the environment variable {name} or --config.plugin to its "
        ".vst3 file or folder, or take data made elsewhere: "
        "--config.data=DIR"
    )
    if not given:
        raise MissingPluginError(
            f"{synth} is rendered by its VST3 plug-in, and none is named: "
            f"{remedy}"
        )
    path = pathlib.Path(given).expanduser()
    if not path.exists():
        source = "config.plugin" if plugin else name
        raise MissingPluginError(
            f"there is no {synth} plug-in at {path} ({source}): {remedy}"
        )
    return str(path.resolve())


# The engine ------------------------------------------------------------------


class PluginRenderer(Renderer):
    """Renders the presets of a space through a VST3 plug-in.

    Safe to share between threads: each render under way has a worker process
    of its own, kept for the next one.

    Args:
      path: path of the .vst3 file or bundle.
      space: the parameters of presets.
      settings: how presets are made to sound.
      contract: how the plug-in is driven; `CONTRACTS` when left out.

    Raises:
      PluginError: the plug-in cannot be loaded.
      vst3_binding.BindingError: it lacks parameters that presets vary.
    """

    def __init__(
        self,
        path: str,
        space: ParameterSpace,
        settings: RenderSettings | None = None,
        contract: Contract | None = None,
    ) -> None:
        self.space = space
        self.settings = settings or RenderSettings()
        self.name = space.name
        contract = contract or CONTRACTS.get(space.name, Contract())
        self.pool = Pool(path, contract)
        if contract.warm_up:
            self.workers_per_core = 2
        self._lock = threading.Lock()
        self._reader: Worker | None = None
        self._reading = threading.Lock()
        self._faults = self._silent = 0
        with self.pool.lend() as worker:
            info = worker.info
        self.title, self.host = info["name"], info["host"]
        aligned = ", aligned" if contract.grid > 1 else ""
        self.version = (
            f"{self.title} {info['version']} "
            f"(VST3, {contract.isolation}{aligned})"
        )
        if not info["instrument"]:
            raise PluginError(f"{path}: {self.title} is no instrument")
        names = [p["name"] for p in info["parameters"]]
        binding = vst3_binding.bind(space, names)
        binding.check(space, self.title)
        self._positions = dict(binding.positions)

    def __reduce__(self) -> tuple[Any, ...]:
        pool = self.pool
        return type(self), (pool.path, self.space, self.settings, pool.contract)

    def at(self, settings: RenderSettings) -> "PluginRenderer":
        """As `Renderer.at`; on the same workers."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, settings=settings)
        return other

    def close(self) -> None:
        """Ends all workers at once; renders under way raise `PluginError`."""
        self.pool.close()
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _attempt(
        self, values: dict[int, float], note: int, fresh: bool
    ) -> np.ndarray:
        """One render; raises `RenderError`, its message one of the faults."""
        settings, contract = self.settings, self.pool.contract
        rate = settings.sample_rate
        shift = -round(settings.note_on * rate) % contract.grid
        start = settings.note_on + shift / rate
        samples = settings.samples + shift
        try:
            with self.pool.lend(fresh) as worker:
                length, memory = worker.ask(
                    "render",
                    values,
                    note,
                    settings.velocity,
                    (start, start + settings.hold),
                    samples,
                    rate,
                    contract.isolation,
                    timeout=contract.timeout,
                )
                worker.remember(memory)
                if length != samples:
                    raise RenderError("wrong length")
                audio = worker.sound(length)[shift:]
                # One pass tells nearly always; two more when in doubt.
                energy = np.dot(audio, audio)
                if not np.isfinite(energy) and not np.isfinite(audio).all():
                    raise RenderError("nan")
                if energy == 0 and not audio.any():
                    raise RenderError("silent")
        except DeadError as error:
            raise RenderError(str(error)) from None
        return audio

    def render(
        self,
        values: Float[np.ndarray, " parameters"],
        note: int | None = None,
    ) -> Float[np.ndarray, " samples"]:
        """As `Renderer.render`: the mean of both channels, faded out.

        Raises:
          RenderError: twice in a row, the second time in a fresh process, the
            plug-in gave no sound: "crash", "hang", "nan", "wrong length",
            "silent" (every sample is zero) or what it said. Or a value is
            out of range.
          PluginError: too many presets in a row did, or the plug-in cannot
            be loaded any more.
        """
        bound = self._bound(values)
        note = self.settings.note if note is None else note
        if not 0 <= note <= 127:
            raise RenderError(f"MIDI note {note} is outside 0 to 127")
        try:
            try:
                audio = self._attempt(bound, note, fresh=False)
            except RenderError:
                # The preset's fault, or that of those before it?
                audio = self._attempt(bound, note, fresh=True)
        except RenderError as error:
            self._count(str(error))
            raise
        with self._lock:
            self._faults = self._silent = 0
        return fade(audio, self.settings)

    def _bound(self, values: np.ndarray) -> dict[int, float]:
        """Values by their place in the plug-in, checked."""
        values = np.asarray(values, np.float64)
        if values.shape != (self.space.num_parameters,):
            raise RenderError(
                f"{values.size} plug-in values given, {self.space.name} has "
                f"{self.space.num_parameters} parameters (use "
                "space.to_plugin(preset))"
            )
        wrong = ~((values >= 0) & (values <= 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise RenderError(
                f"plug-in value of {self.space.parameters[row].name!r} is "
                f"{values[row]}, outside [0, 1]"
            )
        return {p: float(values[i]) for i, p in self._positions.items()}

    def _count(self, fault: str) -> None:
        """Ends the run when a fault is the last of too many in a row."""
        with self._lock:
            if fault == "silent":
                self._silent += 1
            else:
                self._faults += 1
            faults, silent = self._faults, self._silent
        if faults >= _MAX_FAULTS or silent >= _MAX_SILENT:
            number = faults if faults >= _MAX_FAULTS else silent
            raise PluginError(
                f"{self.title}: {number} presets in a row gave no "
                f"sound, the last one for this reason: {fault}. Check that "
                "the plug-in plays, and is licensed, in an ordinary host; if "
                "it loads slowly, set --config.host.warm_up to some seconds. "
                "Finished shards are kept"
            )

    def dead(self) -> list[str]:
        """As `Renderer.dead`: neither in the plug-in's state nor in its sound.

        Each is moved as far from its default as presets move it; those that
        the state does not show, in three presets that are heard.

        Raises:
          PluginError: the plug-in cannot be loaded any more.
        """
        rows = [
            row
            for row, parameter in enumerate(self.space.parameters)
            if parameter.used and row in self._positions
        ]
        base = np.array([p.default for p in self.space.parameters])
        moves = [
            (self._positions[row], self._far(row, base[row])) for row in rows
        ]
        try:
            with self.pool.lend() as worker:
                # In a process for one render, this was it.
                worker.renders += 1
                bound = self._bound(base)
                ask = functools.partial(worker.ask, timeout=LOAD_SECONDS)
                shown = ask("moved", bound, moves)
        except (DeadError, RenderError):
            shown = [False] * len(rows)
        left = [row for row, seen in zip(rows, shown, strict=True) if not seen]
        uniform = np.random.default_rng(0).random((2, self.space.num_used))
        drawn = self.space.from_uniform(uniform.astype(np.float32))
        for values in (base, *np.asarray(self.space.to_plugin(drawn))):
            if left:
                left = self._unheard(values, left)
        return [self.space.parameters[row].name for row in left]

    def _far(self, row: int, value: float) -> float:
        """The raw value of a parameter that is furthest from another."""
        parameter = self.space.parameters[row]
        ends = parameter.interval or parameter.values or (value,)
        return float(max(ends, key=lambda end: abs(end - value)))

    def _unheard(self, values: np.ndarray, rows: list[int]) -> list[int]:
        """Those parameters that do not change how a preset sounds."""

        def sound(values: np.ndarray) -> np.ndarray:
            bound = self._bound(values)
            return self._attempt(bound, self.settings.note, fresh=False)

        try:
            first, again = sound(values), sound(values)
        except RenderError:
            return rows
        # Of a plug-in that does not repeat, a change has to be larger.
        noise = 2 * np.abs(first - again).max()
        left = []
        for row in rows:
            moved = np.array(values)
            moved[row] = self._far(row, values[row])
            try:
                if np.abs(sound(moved) - first).max() > noise:
                    continue
            except RenderError:
                continue  # silence, too, is a change
            left.append(row)
        return left

    def read_state(
        self, data: bytes, kind: str
    ) -> Float[np.ndarray, " parameters"]:
        """As `Renderer.read_state`; what the plug-in lacks is at its default.

        The kind is "vstpreset", "h2p" (u-he's), or "state" for what
        `raw_state` of pedalboard gives.

        Raises:
          ValueError: it is damaged, or the plug-in does not take it.
        """
        with self._reading, self._told():
            if self._reader is None:
                self._reader = Worker(self.pool.path, self.pool.contract)
            ask = functools.partial(self._reader.ask, timeout=LOAD_SECONDS)
            try:
                if kind == "h2p":
                    data, kind = vst3_state.with_h2p(ask("state"), data), ""
                if kind != "state":
                    vst3_state.read(data)
                found = ask("read_state", data, kind)
            except (DeadError, RenderError):
                self._reader.close()
                self._reader = None
                raise
        values = np.array([p.default for p in self.space.parameters])
        for row, place in self._positions.items():
            values[row] = found[place]
        return values

    def write_state(self, values: Float[np.ndarray, " parameters"]) -> bytes:
        """As `Renderer.write_state`: the state as hosts load it.

        Raises:
          RenderError: a value is out of range.
          ValueError: the plug-in gives no state.
        """
        bound = self._bound(values)
        with self._told(), self.pool.lend() as worker:
            # In a process for one render, this was it.
            worker.renders += 1
            return worker.ask("write_state", bound, timeout=LOAD_SECONDS)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what goes wrong with states into one error."""
        try:
            yield
        except (DeadError, RenderError) as error:
            raise ValueError(
                f"{self.title} does not take or give this state: {error}"
            ) from None


def get(
    synth: str,
    settings: RenderSettings,
    plugin: str = "",
    host: Mapping[str, Any] | None = None,
) -> PluginRenderer:
    """The renderer of a synthesizer's plug-in; arguments as of `engines.get`.

    Raises:
      MissingPluginError: there is no plug-in.
      PluginError: it cannot be loaded, or is none of this synthesizer.
      ValueError: a field of `host` is out of range.
    """
    space = proxy.spaces.get(synth)
    driven = contract(synth, **(host or {}))
    return PluginRenderer(find(synth, plugin), space, settings, driven)


def examine(path: str) -> dict[str, Any]:
    """Loads a .vst3 file or bundle and reads what it says about itself.

    Returns:
      "name", "version", "maker", "host" and "parameters": dictionaries with
      "name", "label", "value" (initial raw value) and "texts", at 1,001 raw
      values; those that are no part of a preset have no texts.

    Raises:
      PluginError: it cannot be loaded, or crashes when asked.
    """
    worker = Worker(path, Contract())
    try:
        info = worker.info
        parameters: Sequence[dict[str, Any]] = info["parameters"]
        places = [
            i
            for i, p in enumerate(parameters)
            if not vst3_binding.skipped(p["name"])
        ]
        texts = worker.ask("texts", places, timeout=LOAD_SECONDS)
        for place, text in zip(places, texts, strict=True):
            parameters[place]["texts"] = text
        return info
    except (DeadError, RenderError) as error:
        raise PluginError(f"{path}: {error} while it was examined") from None
    finally:
        worker.close()
