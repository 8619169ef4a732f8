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
import dataclasses
import mmap
import multiprocessing.connection
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

import proxy.spaces
from datasets.engines import (
    MissingPluginError,
    RenderError,
    RenderSettings,
    fade,
)
from datasets.engines.vst3 import binding as vst3_binding
from datasets.engines.vst3 import state as vst3_state
from proxy import unknown
from proxy.space import ParameterSpace

_WORKER = pathlib.Path(__file__).with_name("vst3_worker.py")
# Loading may read gigabytes of samples, or ask a licence server.
_LOAD_SECONDS = 120.0
# A worker that has grown by this much is replaced: some plug-ins leak.
_MAX_GROWTH = 256 * 2**20
# Faults in a row that end a run: the plug-in is broken, not the presets.
_MAX_FAULTS = 20
# Silent presets in a row that do: of random Dexed presets, 92 % are.
_MAX_SILENT = 256


class PluginError(RuntimeError):
    """A plug-in that cannot be used at all; the message says why."""


@dataclasses.dataclass(frozen=True)
class Contract:
    """How a plug-in is driven so that a render depends on its preset alone.

    `python -m launch.plugin noise PATH` measures whether it does.

    Attributes:
      isolation: "reset" makes the plug-in anew before each render, in one
        process; "process" starts a fresh process for each, for plug-ins whose
        state outlives that.
      srand: call the C library's srand(0) before each render, for plug-ins
        that draw on rand(). It harms no other.
      warm_up: seconds, at most, for which the host plays a plug-in made anew
        a note and waits for its sound, which some need to load; 0 for not at
        all. How much it plays depends on how busy the machine is, so where a
        plug-in remembers what it played, only 0 repeats exactly.
      timeout: seconds after which a render has hung.
    """

    isolation: Literal["reset", "process"] = "reset"
    srand: bool = True
    warm_up: float = 0.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: naming the field and what it may be.
        """
        if self.isolation not in ("reset", "process"):
            kinds = ("reset", "process")
            raise ValueError(unknown("host.isolation", self.isolation, kinds))
        if not self.warm_up >= 0:
            raise ValueError(f"host.warm_up={self.warm_up}, need >= 0 seconds")
        if not self.timeout > 0:
            raise ValueError(f"host.timeout={self.timeout}, need > 0 seconds")


# Diva goes on where it was, even in an instance made anew; in a fresh process
# and after this wait its renders were seen to repeat.
CONTRACTS: Mapping[str, Contract] = {
    "diva": Contract(isolation="process", warm_up=0.1)
}


def contract(synth: str, **fields: Any) -> Contract:
    """The render contract of a synthesizer.

    Args:
      synth: name of its space.
      **fields: of `Contract`, to override; "" and None change nothing.

    Raises:
      ValueError: a field is unknown, or out of range.
    """
    known = {field.name for field in dataclasses.fields(Contract)}
    for name in set(fields) - known:
        raise ValueError(unknown("host setting", name, sorted(known)))
    given = {k: v for k, v in fields.items() if v not in ("", None)}
    return dataclasses.replace(CONTRACTS.get(synth, Contract()), **given)


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


# One process -----------------------------------------------------------------


class _DeadError(Exception):
    """A worker is gone; the message is "crash" or "hang"."""


def _end(process: subprocess.Popen[bytes], *files: Any) -> None:
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
    for file in files:
        file.close()


class Worker:
    """A plug-in in a fresh process (started, never forked from this one).

    Args:
      path: of the plug-in.
      contract: how it is driven.
      name: of the plug-in, where a file holds several.
      samples: length of the sounds that it will render.

    Raises:
      PluginError: the plug-in cannot be loaded; tells what it said.
    """

    def __init__(
        self,
        path: str,
        contract: Contract,
        name: str | None = None,
        samples: int = 1,
    ) -> None:
        self.path = path
        ours, theirs = socket.socketpair()
        # What plug-ins print would spoil our own output.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115, see `close`
        # Sounds come through memory: a pipe would cost a tenth of a render.
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with theirs, tempfile.TemporaryFile(dir=memory) as sound:
            sound.truncate(samples * np.dtype(np.float32).itemsize)
            self._sound = mmap.mmap(sound.fileno(), 0)
            handles = [theirs.fileno(), sound.fileno()]
            command = [sys.executable, "-P", str(_WORKER), *map(str, handles)]
            self._process = subprocess.Popen(
                command,
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
            )
        self._pipe = multiprocessing.connection.Connection(ours.detach())
        # Ends the worker; only by whoever uses it. Others may `kill` it.
        self.close = weakref.finalize(
            self, _end, self._process, self._pipe, self._said, self._sound
        )
        self.renders = 0
        self._first: int | None = None
        self.growth = 0
        try:
            self.info = self.ask(
                "load",
                path,
                name,
                contract.warm_up,
                contract.srand,
                timeout=_LOAD_SECONDS,
            )
        except (_DeadError, RenderError) as error:
            words = self._last_words()
            self.close()
            raise PluginError(
                f"{path} cannot be loaded as a VST3 plug-in: {error}{words}"
            ) from None

    def kill(self) -> None:
        """Ends the process; whoever waits for its reply sees it crash."""
        _end(self._process)

    def _last_words(self) -> str:
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(self._said.tell() - 2000, 0))
        lines = self._said.read().decode(errors="replace").split("\n")
        lines = [line.strip() for line in lines if line.strip()]
        return f" (it said: {lines[-1][:200]})" if lines else ""

    def ask(self, method: str, *arguments: Any, timeout: float) -> Any:
        """Calls a method of the worker's `Host`.

        Args:
          method: its name.
          *arguments: its arguments.
          timeout: seconds until it has hung.

        Returns:
          What it returned.

        Raises:
          _DeadError: it crashed or hung; the worker is of no use any more.
          RenderError: it raised; the worker is as it was.
        """
        try:
            self._pipe.send((method, timeout, arguments))
            if not self._pipe.poll(timeout):
                raise _DeadError("hang")
            fine, reply = self._pipe.recv()
        except (EOFError, OSError):
            raise _DeadError("crash") from None
        if not fine:
            raise RenderError(reply)
        return reply

    def sound(self) -> Float[np.ndarray, " samples"]:
        """A copy of the sound that was rendered last."""
        return np.frombuffer(self._sound, np.float32).copy()

    def remember(self, memory: int) -> None:
        """Notes the memory in use after a render, in bytes."""
        self.renders += 1
        if self._first is None:
            self._first = memory
        self.growth = memory - self._first


# The engine ------------------------------------------------------------------


class PluginRenderer:
    """Renders the presets of a space through a VST3 plug-in.

    Safe to share between threads: each render under way has a worker process
    of its own, kept for the next one.

    Args:
      path: of the .vst3 file or bundle.
      space: the parameters of presets.
      settings: how presets are made to sound.
      contract: how the plug-in is driven; `CONTRACTS` when left out.
      max_growth: bytes by which a worker may grow until it is replaced.

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
        *,
        max_growth: int = _MAX_GROWTH,
    ) -> None:
        self.path, self.space = path, space
        self.settings = settings or RenderSettings()
        self.contract = contract or CONTRACTS.get(space.name, Contract())
        self.max_growth = max_growth
        self.name = space.name
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._lock = threading.Lock()
        self._reader: Worker | None = None
        self._reading = threading.Lock()
        self._closings = self._faults = self._silent = 0
        self.started = 0
        with self._worker() as worker:
            self.info = worker.info
        self.version = (
            f"{self.info['name']} {self.info['version']} "
            f"(VST3, {self.contract.isolation})"
        )
        if not self.info["instrument"]:
            raise PluginError(f"{path}: {self.info['name']} is no instrument")
        names = [p["name"] for p in self.info["parameters"]]
        binding = vst3_binding.bind(space, names)
        binding.check(space, self.info["name"])
        self._positions = dict(binding.positions)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (
            self.path,
            self.space,
            self.settings,
            self.contract,
        )

    @property
    def workers_per_core(self) -> int:
        """How many workers keep a core busy: more where they wait."""
        return 2 if self.contract.warm_up else 1

    def close(self) -> None:
        """Ends all workers at once; renders under way raise `PluginError`."""
        with self._lock:
            self._closings += 1
            idle, self._idle = self._idle, []
            busy = list(self._busy)
            if self._reader is not None:
                idle.append(self._reader)
                self._reader = None
        for worker in idle:
            worker.close()
        for worker in busy:
            worker.kill()

    @contextlib.contextmanager
    def _worker(self, fresh: bool = False) -> Any:
        """Lends a worker, an idle one unless it is to be `fresh`."""
        with self._lock:
            closings = self._closings
            worker = None
            if self._idle and not fresh:
                worker = self._idle.pop()
        if worker is None:
            samples = self.settings.samples
            worker = Worker(self.path, self.contract, samples=samples)
            self.started += 1
        with self._lock:
            self._busy.add(worker)
        keep = False
        try:
            yield worker
            used = worker.renders and self.contract.isolation == "process"
            keep = not used and worker.growth <= self.max_growth
        except _DeadError:
            if closings != self._closings:
                raise PluginError("closed while it was rendering") from None
            raise
        finally:
            with self._lock:
                self._busy.discard(worker)
                if keep and closings == self._closings:
                    self._idle.append(worker)
                else:
                    keep = False
            if not keep:
                worker.close()

    def _attempt(
        self, values: dict[int, float], note: int, fresh: bool
    ) -> np.ndarray:
        """One render; raises `RenderError`, its message one of the faults."""
        settings, contract = self.settings, self.contract
        times = (settings.note_on, settings.note_on + settings.hold)
        try:
            # A worker with a fault, whatever it is, is not used again.
            with self._worker(fresh) as worker:
                length, memory = worker.ask(
                    "render",
                    values,
                    note,
                    settings.velocity,
                    times,
                    settings.samples,
                    settings.sample_rate,
                    contract.isolation == "reset",
                    timeout=contract.timeout,
                )
                worker.remember(memory)
                if length != settings.samples:
                    raise RenderError("wrong length")
                audio = worker.sound()
                # One pass tells nearly always; two more when in doubt.
                energy = np.dot(audio, audio)
                if not np.isfinite(energy) and not np.isfinite(audio).all():
                    raise RenderError("nan")
                if energy == 0 and not audio.any():
                    raise RenderError("silent")
        except _DeadError as error:
            raise RenderError(str(error)) from None
        return audio

    def render(
        self,
        values: Float[np.ndarray, " parameters"],
        note: int | None = None,
    ) -> Float[np.ndarray, " samples"]:
        """Renders one preset; the result depends on the arguments alone.

        Args:
          values: raw values in [0, 1] of all parameters of the space.
          note: MIDI note, 0 to 127, in place of `settings.note`.

        Returns:
          Mono audio (the mean of both channels), float32, `settings.samples`
          long, faded out.

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
                f"{self.info['name']}: {number} presets in a row gave no "
                f"sound, the last one for this reason: {fault}. Check that "
                "the plug-in plays, and is licensed, in an ordinary host; if "
                "it loads slowly, set --config.host.warm_up to some seconds. "
                "Finished shards are kept"
            )

    def read_state(
        self, data: bytes, kind: str
    ) -> Float[np.ndarray, " parameters"]:
        """Raw values of all parameters of the space in a plug-in's state.

        Args:
          data: of a file.
          kind: "vstpreset", "h2p" (u-he's), or "state" for what `raw_state`
            of pedalboard gives.

        Returns:
          Raw values in [0, 1]; those of parameters that the plug-in lacks are
          at their defaults.

        Raises:
          ValueError: it is damaged, or the plug-in does not take it.
        """
        with self._reading:
            self._open_reader()
            if kind == "h2p":
                data, kind = vst3_state.with_h2p(self._initial, data), ""
            if kind != "state":
                vst3_state.read(data)
            found = self._ask_reader("read_state", data, kind)
        values = np.array([p.default for p in self.space.parameters])
        for row, place in self._positions.items():
            values[row] = found[place]
        return values

    def write_state(self, values: Float[np.ndarray, " parameters"]) -> bytes:
        """The plug-in's own state of a preset, as hosts load it.

        Args:
          values: raw values in [0, 1] of all parameters of the space.

        Returns:
          The content of a .vstpreset file.

        Raises:
          RenderError: a value is out of range.
          ValueError: the plug-in gives no state.
        """
        bound = self._bound(values)
        with self._reading:
            self._open_reader()
            return self._ask_reader("write_state", bound)

    def _open_reader(self) -> None:
        if self._reader is None:
            self._reader = Worker(self.path, self.contract)
            self._initial = self._ask_reader("state")

    def _ask_reader(self, method: str, *arguments: Any) -> Any:
        """Asks the worker for states, which renders no sounds."""
        assert self._reader is not None
        try:
            return self._reader.ask(method, *arguments, timeout=_LOAD_SECONDS)
        except (_DeadError, RenderError) as error:
            self._reader.close()
            self._reader = None
            raise ValueError(
                f"{self.info['name']} does not take or give this state: {error}"
            ) from None


def get(
    synth: str,
    settings: RenderSettings,
    plugin: str = "",
    host: Mapping[str, Any] | None = None,
) -> PluginRenderer:
    """The renderer of a synthesizer's plug-in.

    Args:
      synth: name of its space.
      settings: how presets are made to sound.
      plugin: path, or "" for the environment variable's.
      host: fields of the render contract to override.

    Raises:
      MissingPluginError: there is no plug-in.
      PluginError: it cannot be loaded, or is none of this synthesizer.
      ValueError: a field of `host` is out of range.
    """
    space = proxy.spaces.get(synth)
    driven = contract(synth, **(host or {}))
    return PluginRenderer(find(synth, plugin), space, settings, driven)


def examine(
    path: str, contract: Contract | None = None, points: int = 1001
) -> dict[str, Any]:
    """Loads a plug-in and reads what it says about itself.

    Args:
      path: of the .vst3 file or bundle.
      contract: how it is driven.
      points: raw values at which value texts are read.

    Returns:
      "name", "version", "maker", "host" and "parameters": dictionaries with
      "name", "label", "value" (initial raw value) and "texts"; those that are
      no part of a preset have no texts.

    Raises:
      PluginError: it cannot be loaded, or crashes when asked.
    """
    worker = Worker(path, contract or Contract())
    try:
        info = worker.info
        parameters: Sequence[dict[str, Any]] = info["parameters"]
        places = [
            i
            for i, p in enumerate(parameters)
            if not vst3_binding.skipped(p["name"])
        ]
        texts = worker.ask("texts", places, points, timeout=_LOAD_SECONDS)
        for place, text in zip(places, texts, strict=True):
            parameters[place]["texts"] = text
        return info
    except (_DeadError, RenderError) as error:
        raise PluginError(f"{path}: {error} while it was examined") from None
    finally:
        worker.close()
