"""A plug-in in a process of its own, and the contract it is driven under."""

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from datasets import child
from datasets.child import DeadError
from datasets.engines import RenderError
from proxy import unknown

_WORKER = pathlib.Path(__file__).with_name("worker.py")
# Loading may read gigabytes of samples, or ask a licence server.
LOAD_SECONDS = 120.0


class PluginError(RuntimeError):
    """A plug-in that cannot be used at all; the message says why."""


@dataclasses.dataclass(frozen=True)
class Contract:
    """How a plug-in is driven so that a render depends on its preset alone.

    `python -m launch.plugin noise PATH` measures whether it does.

    Attributes:
      isolation: "reset" makes the plug-in anew before each render, in one
        process; "flush" loads the initial state and plays silence, and makes
        it anew only where that is not silent to the last bit: for plug-ins
        that take long to make and in which nothing else goes on, such as an
        oscillator that runs freely; "process" starts a fresh process for each
        render, for plug-ins whose state outlives a new instance; "none" lets
        each render depend on those before, to be compared with studies that
        did so.
      srand: call the C library's srand(0) before each render, for plug-ins
        that draw on rand(). It harms no other.
      warm_up: seconds, at most, for which the host plays a plug-in made anew
        a note and waits for its sound, which some need to load; 0 for not at
        all. How much it plays depends on how busy the machine is, so where a
        plug-in remembers what it played, only 0 repeats exactly.
      timeout: seconds after which a render has hung.
      grid: samples on a multiple of which the plug-in lets events fall. It is
        played a little longer then, so that the note-on is on one, and the
        start is cut off: the note starts where it should. Its end may be up
        to a step of the grid late.
    """

    isolation: Literal["reset", "flush", "process", "none"] = "reset"
    srand: bool = True
    warm_up: float = 0.0
    timeout: float = 60.0
    grid: int = 1

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: naming the field and what it may be.
        """
        known = ("reset", "flush", "process", "none")
        if self.isolation not in known:
            raise ValueError(
                f"host.isolation={self.isolation!r} (known: {', '.join(known)})"
            )
        if not self.warm_up >= 0:
            raise ValueError(f"host.warm_up={self.warm_up}, need >= 0 seconds")
        if not self.timeout > 0:
            raise ValueError(f"host.timeout={self.timeout}, need > 0 seconds")
        if self.grid < 1:
            raise ValueError(f"host.grid={self.grid}, need >= 1 sample")


CONTRACTS: Mapping[str, Contract] = {
    # 441 samples, .01 s at 44.1 kHz, were seen to become 448.
    "dexed": Contract(grid=64),
    # It goes on where it was, even in an instance made anew; in a fresh
    # process and after this wait its renders were seen to repeat.
    "diva": Contract(isolation="process", warm_up=0.1),
}


def contract(synth: str, **fields: Any) -> Contract:
    """The render contract of a synthesizer.

    Args:
      synth: name of its space.
      **fields: fields of `Contract` to override, none by "" or None.

    Raises:
      ValueError: a field is unknown, or out of range.
    """
    known = {field.name for field in dataclasses.fields(Contract)}
    for name in sorted(set(fields) - known):
        raise ValueError(unknown("host setting", name, sorted(known)))
    given = {k: v for k, v in fields.items() if v not in ("", None)}
    return dataclasses.replace(CONTRACTS.get(synth, Contract()), **given)


class Worker(child.Child):
    """A plug-in in a fresh process (started, never forked from this one).

    Args:
      path: path of the plug-in.
      contract: how it is driven.

    Raises:
      PluginError: the plug-in cannot be loaded; tells what it said.
    """

    def __init__(self, path: str, contract: Contract) -> None:
        super().__init__(_WORKER)
        self.renders = 0
        self._first: int | None = None
        self.growth = 0
        try:
            self.info = self.ask(
                "load",
                path,
                contract.warm_up,
                contract.srand,
                timeout=LOAD_SECONDS,
            )
        except (DeadError, RenderError) as error:
            words = self.last_words()
            self.close()
            raise PluginError(
                f"{path} cannot be loaded as a VST3 plug-in: {error}{words}"
            ) from None

    def ask(self, method: str, *arguments: Any, timeout: float) -> Any:
        """As `Child.ask`, of the `Host` of worker.py.

        Raises:
          DeadError: it crashed or hung; the worker is of no use any more.
          RenderError: it raised; the worker is as it was.
        """
        try:
            return super().ask(method, *arguments, timeout=timeout)
        except child.ReplyError as error:
            raise RenderError(": ".join(error.args)) from None

    def remember(self, memory: int) -> None:
        """Notes the memory in use after a render, in bytes."""
        self.renders += 1
        if self._first is None:
            self._first = memory
        self.growth = memory - self._first


class Pool:
    """Worker processes of a plug-in; each render under way has one to itself.

    Args:
      path: path of the .vst3 file or bundle.
      contract: how the plug-in is driven.
    """

    # Bytes by which a worker may grow until it is replaced: some leak.
    max_growth = 256 * 2**20

    def __init__(self, path: str, contract: Contract) -> None:
        self.path, self.contract = path, contract
        self.started = 0
        self.busy: set[Worker] = set()
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._closings = 0

    def close(self) -> None:
        """Ends all workers at once; renders under way raise `PluginError`."""
        with self._lock:
            self._closings += 1
            idle, self._idle = self._idle, []
            busy = list(self.busy)
        for worker in idle:
            worker.close()
        for worker in busy:
            worker.kill()

    @contextlib.contextmanager
    def lend(self, fresh: bool = False) -> Iterator[Worker]:
        """Lends a worker, an idle one unless it is to be `fresh`.

        A worker with a fault, whatever it is, is not lent again.
        """
        with self._lock:
            closings = self._closings
            worker = None
            if self._idle and not fresh:
                worker = self._idle.pop()
        if worker is None:
            worker = Worker(self.path, self.contract)
            self.started += 1
        with self._lock:
            self.busy.add(worker)
        keep = False
        try:
            yield worker
            used = worker.renders and self.contract.isolation == "process"
            keep = not used and worker.growth <= self.max_growth
        except DeadError:
            if closings != self._closings:
                raise PluginError("closed while it was rendering") from None
            raise
        finally:
            with self._lock:
                self.busy.discard(worker)
                if keep and closings == self._closings:
                    self._idle.append(worker)
                else:
                    keep = False
            if not keep:
                worker.close()
