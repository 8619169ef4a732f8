"""One plug-in in a process of its own, which the engine starts.

See `datasets.child`, which runs it.
"""

import ctypes
import importlib.metadata
import itertools
import os
import pathlib
import re
import resource
import runpy
from typing import Any

import numpy as np

# Plug-ins render blocks of this many samples.
_BLOCK = 8192
# Seconds of silence that show what a plug-in still has to say, and how often
# it is asked.
_SILENCE = 0.5
_TRIES = 4
_FOLDER = pathlib.Path(__file__).parent

_libc = ctypes.CDLL(None)


def _memory() -> int:
    """Memory in use, in bytes; where that is not told, the most ever used."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _parameter(parameter: Any) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "label": parameter.label,
        "value": parameter.raw_value,
        "steps": parameter.num_steps,
        "switch": parameter.is_boolean,
    }


class Host:
    """A loaded plug-in, and what may be asked of it.

    Args:
      sound: where rendered sounds go, float32.
    """

    def __init__(self, sound: np.ndarray) -> None:
        self.sound = sound

    def load(self, path: str, warm_up: float, srand: bool) -> dict[str, Any]:
        """Loads the plug-in and tells what it is."""
        import pedalboard
        from pedalboard import _pedalboard

        # Loading a plug-in, or setting any attribute of it, reads a thousand
        # value texts of every parameter: half a minute for one with a
        # parameter for each MIDI controller. Ignored names are left alone.
        ignored = getattr(_pedalboard, "PARAMETER_NAME_REGEXES_TO_IGNORE", None)
        if ignored is not None:
            ignored.add(re.compile(""))
        self._class: Any = pedalboard.VST3Plugin
        self.srand = srand
        self._seed()
        self.plugin: Any = self._class(path, initialization_timeout=warm_up)
        self.initial = self.plugin.raw_state
        self.channels = 2
        self.note = 0
        return {
            "name": self.plugin.name,
            "version": self.plugin.version,
            "maker": self.plugin.manufacturer_name,
            "instrument": self.plugin.is_instrument,
            "host": f"pedalboard {importlib.metadata.version('pedalboard')}",
            "parameters": [_parameter(p) for p in self.plugin._parameters],
        }

    def _seed(self) -> None:
        if self.srand:
            _libc.srand(0)

    def _reset(self) -> None:
        # A plug-in is made anew with the state of the one before; so that
        # nothing of the preset before is in it, that is the initial one.
        self._class.raw_state.fset(self.plugin, self.initial)
        self._seed()
        self.plugin.reset()

    def _flush(self, rate: int) -> None:
        """Ends what sounds; a plug-in that goes on sounding is made anew."""
        self._class.raw_state.fset(self.plugin, self.initial)
        released = [(bytes([0x80, self.note, 0]), 0.0)]
        for _ in range(_TRIES):
            if not self._process(released, _SILENCE, rate).any():
                return
        self._reset()

    def _set(self, values: dict[int, float]) -> None:
        # A list held across a reset would point into freed memory.
        parameters = self.plugin._parameters
        for place, value in values.items():
            parameters[place].raw_value = value

    def _process(
        self, messages: list[tuple[bytes, float]], duration: float, rate: int
    ) -> np.ndarray:
        """Plays, on two channels or, where there is but one, on that."""
        try:
            return self.plugin.process(
                messages, duration, rate, self.channels, _BLOCK, False
            )
        except ValueError as error:
            if self.channels == 1 or "channel output" not in str(error):
                raise
            self.channels = 1
            return self._process(messages, duration, rate)

    def render(
        self,
        values: dict[int, float],
        note: int,
        velocity: int,
        times: tuple[float, float],
        samples: int,
        rate: int,
        isolation: str,
    ) -> tuple[int, int]:
        """Renders a preset, mono; its length, and the memory in use."""
        if isolation == "reset":
            self._reset()
        elif isolation == "flush":
            self._flush(rate)
        self.note = note
        self._set(values)
        messages = [
            (bytes([0x90, note, velocity]), times[0]),
            (bytes([0x80, note, 0]), times[1]),
        ]
        # Half a sample more, as the host rounds down.
        duration = (samples + 0.5) / rate
        self._seed()
        audio = self._process(messages, duration, rate)
        kept = min(audio.shape[1], len(self.sound))
        audio[:, :kept].mean(axis=0, out=self.sound[:kept])
        return audio.shape[1], _memory()

    def texts(self, places: list[int]) -> list[list[str]]:
        """Value texts of parameters, at 1,001 raw values from 0 to 1."""
        grid = [float(x) for x in np.linspace(0, 1, 1001)]
        parameters = self.plugin._parameters
        found = {
            p: [parameters[p].get_text_for_raw_value(x) for x in grid]
            for p in places
        }
        # Old plug-ins show their current value's, whatever they are asked
        # about. That takes longer, so a few values are tried first.
        same = [p for p in places if len(set(found[p])) == 1]
        tried = self._current_texts(same, grid[::500])
        moving = [p for p in same if len(set(tried[p])) > 1]
        found.update(self._current_texts(moving, grid))
        return [found[p] for p in places]

    def _current_texts(
        self, places: list[int], grid: list[float]
    ) -> dict[int, list[str]]:
        """Value texts of parameters that are moved, all of them at once."""
        parameters = self.plugin._parameters
        before = {p: parameters[p].raw_value for p in places}
        found: dict[int, list[str]] = {p: [] for p in places}
        for x in grid if places else ():
            self._set(dict.fromkeys(places, x))
            # The part that shows texts is told when the other has to play.
            self._process([], 0.001, 44_100)
            for p in places:
                found[p].append(parameters[p].get_text_for_raw_value(x))
        self._set(before)
        return found

    def moved(
        self, values: dict[int, float], moves: list[tuple[int, float]]
    ) -> list[bool]:
        """Whether each of some moves, one after the other, is in the state.

        All False where the state changes by itself, or there is none.
        """
        self._reset()
        self._set(values)

        # Imported as a file: this one is run as a script.
        read = runpy.run_path(str(_FOLDER / "state.py"))["read"]

        def state() -> bytes:
            # The part that makes the sound is told when it next has to. What
            # the other part remembers proves nothing.
            self._process([], 0.02, 44_100)
            return read(bytes(self.plugin.preset_data))[1].get("Comp", b"")

        state()
        states = [state(), state()]
        if states[0] != states[1]:
            return [False] * len(moves)
        for place, value in moves:
            self._set({place: value})
            states.append(state())
        return [a != b for a, b in itertools.pairwise(states[1:])]

    def state(self) -> bytes:
        """The plug-in's initial state, in the layout of .vstpreset files."""
        return bytes(self.plugin.preset_data)

    def write_state(self, values: dict[int, float]) -> bytes:
        """The state of a preset, in the layout of .vstpreset files."""
        self._reset()
        self._set(values)
        # The part that makes the sound is told when it next has to.
        self._process([], 0.1, 44_100)
        return bytes(self.plugin.preset_data)

    def read_state(self, data: bytes, kind: str) -> list[float]:
        """Raw values of all parameters after loading a state."""
        name = "raw_state" if kind == "state" else "preset_data"
        getattr(self._class, name).fset(self.plugin, data)
        return [p.raw_value for p in self.plugin._parameters]
