"""What the application remembers: sounds, searches, candidates, the way back.

Each search, and each branch from a candidate, is a step; steps are kept in
order, so that one can go back and forth. Nothing is written to disk.
"""

import dataclasses
import functools
import itertools
import pathlib
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyloudnorm
from jaxtyping import Float

from datasets import sounds
from datasets.presets import sysex, writing
from launch import cli
from launch.match import judge, search
from launch.runs import plots
from launch.runs.opened import Setup
from matching import distances, refine
from proxy import priors
from proxy.space import ParameterSpace

# Seconds of a file that is taken for one sound, and steps that are kept.
LONGEST, _STEPS = 120.0, 40
# Sounds are cut to multiples of this many seconds: searches are compiled for
# a length.
_GRID = 0.25
# Presets that "more like this" shows, and variations that a branch starts
# from.
_ALIKE, _VARIATIONS = 12, 63
# Seconds between two looks at a search that goes on.
_EVERY = 1.0


@dataclasses.dataclass(eq=False)
class Target:
    """A sound to be matched, and how it is to be played.

    Attributes:
      id: what its sound and picture are asked for by.
      name: name of its file, without the ending.
      audio: mono, as loud as it is to be matched.
      note: MIDI note.
      hold: seconds that the note is held.
      level: peak, in dB of full scale.
      remarks: what the user should know about it.
      detected: note, hold and level that were heard.
      gain: factor at which it is played.
      bank: least a_mean of a bank's preset, None before one was heard.
    """

    id: str
    name: str
    audio: Float[np.ndarray, " samples"]
    note: int
    hold: float
    level: float
    remarks: tuple[str, ...]
    detected: tuple[int, float, float]
    gain: float
    bank: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A preset that was found.

    Attributes:
      id: what it is asked for by.
      target: what it is to sound like.
      preset: the hard preset.
      audio: its sound.
      a_mean: distance to the target.
      gain: factor at which it is as loud as the target.
    """

    id: str
    target: Target
    preset: Float[np.ndarray, " parameters"]
    audio: Float[np.ndarray, " samples"]
    a_mean: float
    gain: float


@dataclasses.dataclass(eq=False)
class Step:
    """A search and what it found.

    Attributes:
      number: its place in the history, from 1.
      title: what was asked for.
      target: the sound.
      origin: the candidate that it branched from; None for a whole search.
      locked: names of the parts that were kept of it.
      seconds: time it may take.
      state: "waiting", "compiling", "searching", "done", "stopped" or
        "failed".
      message: why it failed.
      candidates: best first.
      renders: presets rendered so far.
      spent: seconds so far.
    """

    number: int
    title: str
    target: Target
    origin: Candidate | None
    locked: tuple[str, ...]
    seconds: float
    state: str = "waiting"
    message: str = ""
    candidates: list[Candidate] = dataclasses.field(default_factory=list)
    renders: int = 0
    spent: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("done", "stopped", "failed")


class Session:
    """One user's work; methods may be called from any thread.

    Args:
      setup: the run that sounds are matched with.
      options: how they are matched.
      floor: a_mean of two renders of one preset, see `launch.runs.noise`.
    """

    def __init__(
        self, setup: Setup, options: judge.Options, floor: float = 0.0
    ) -> None:
        self.setup = setup
        self.options = options
        self.floor = floor
        # Goes up with every change, so that who shows it knows of it.
        self.version = 0
        self._steps: list[Step] = []
        self._current = -1
        self._numbers = itertools.count(1)
        self._known: dict[str, Target | Candidate] = {}
        self._warm: set[int] = set()
        self._changing = threading.RLock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # What the user does ------------------------------------------------------

    def add(self, path: pathlib.Path, name: str, seconds: float) -> None:
        """Reads a sound, hears what note it holds, starts to match it.

        Args:
          path: the file.
          name: what the user calls it.
          seconds: time for the search.

        Raises:
          ValueError: it is silent, too long, damaged, or no audio.
        """
        settings = self.setup.settings
        rate = settings.sample_rate
        try:
            sound = sounds.read(path, rate, most=settings.duration)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from None
        if sound.seconds > LONGEST:
            raise ValueError(
                f"{name} is {sound.seconds / 60:.0f} minutes long: cut out "
                f"one note, of which {settings.duration:g} s are matched"
            )
        grid = round(_GRID * rate)
        audio = sound.audio[: max(len(sound.audio) // grid, 4) * grid]
        remarks = list(sound.remarks)
        note = sounds.pitch(audio, rate)
        if note is None:
            note = settings.note
            remarks.append(
                f"no clear pitch: played at note {note}; if it has one, set it"
            )
        if sounds.chord(audio, rate):
            remarks.append(
                "more than one note, it seems: a voice plays one, so match "
                "the notes one by one"
            )
        hold = round(sounds.hold(audio, rate), 2)
        level = round(20 * float(np.log10(np.abs(audio).max())), 1)
        self._search_for(
            pathlib.PurePath(name).stem or name,
            audio,
            (note, hold, level),
            tuple(remarks),
            (note, hold, level),
            seconds,
        )

    def again(
        self, note: int, hold: float, level: float, seconds: float
    ) -> None:
        """Matches the sound at hand, played in another way.

        Args:
          note: MIDI note.
          hold: seconds that it is held.
          level: peak of the sound, in dB of full scale.
          seconds: time for the search.

        Raises:
          ValueError: there is no sound.
        """
        target = self._step().target
        factor = 10 ** ((level - target.level) / 20)
        self._search_for(
            target.name,
            np.float32(factor) * target.audio,
            (note, hold, level),
            target.remarks,
            target.detected,
            seconds,
        )

    def go_on(
        self, candidate: str, locked: Sequence[str], seconds: float
    ) -> None:
        """Searches from a candidate, parts of which are kept.

        Args:
          candidate: its id.
          locked: names among the space's `parts`.
          seconds: time for the search.

        Raises:
          ValueError: there is no such candidate or part, or nothing is left
            to change.
        """
        origin, space = self._candidate(candidate), self.setup.space
        mask = space.mask(locked)
        if mask.all():
            raise ValueError("everything is locked: unlock what may change")

        def varied() -> np.ndarray:
            key, own = jax.random.key(self.options.seed), origin.preset[None]
            found = priors.propose(key, jnp.asarray(own), space, _VARIATIONS)
            return np.concatenate([own, np.asarray(found)])

        kept = ", ".join(locked)
        self._begin(
            f"on from {_label(origin)}" + (f", {kept} kept" if kept else ""),
            origin.target,
            seconds,
            origin=origin,
            locked=tuple(locked),
            propose=varied,
            kept=refine.Kept(origin.preset, mask),
        )

    def like(self, candidate: str) -> None:
        """Renders the bank's presets that the proxy takes for alike.

        Args:
          candidate: id of what they are to be like.

        Raises:
          ValueError: there is no such candidate.
        """
        origin, setup = self._candidate(candidate), self.setup

        def near() -> np.ndarray:
            embedding = _embedding(
                setup.proxy,
                setup.space,
                setup.proxy_variables,
                jnp.asarray(origin.preset),
            )
            rows = refine.nearest(
                embedding, jnp.asarray(setup.bank.embeddings), _ALIKE
            )
            return setup.bank.presets[np.asarray(rows)]

        self._begin(
            f"more like {_label(origin)}",
            origin.target,
            self.options.seconds,
            origin=origin,
            propose=near,
            alike=True,
        )

    def stop(self) -> None:
        """Ends the search that goes on, with what it has found."""
        self._stopping.set()

    def show(self, number: int) -> None:
        """Goes to a step of the history.

        Raises:
          ValueError: there is no such step.
        """
        with self._changing:
            places = {step.number: i for i, step in enumerate(self._steps)}
            if number not in places:
                raise ValueError(f"there is no step {number}")
            self._current = places[number]
            self.version += 1

    # Searching ---------------------------------------------------------------

    def _search_for(
        self,
        name: str,
        audio: np.ndarray,
        played: tuple[int, float, float],
        remarks: tuple[str, ...],
        detected: tuple[int, float, float],
        seconds: float,
    ) -> None:
        note, hold, level = played
        rate = self.setup.settings.sample_rate
        target = Target(
            id=f"t{next(self._numbers)}",
            name=name,
            audio=audio,
            note=note,
            hold=hold,
            level=level,
            remarks=remarks,
            detected=detected,
            gain=gain(audio, audio, rate),
        )
        self._known[target.id] = target
        self._begin(f"{name}, note {note}", target, seconds)

    def _begin(
        self,
        title: str,
        target: Target,
        seconds: float,
        *,
        origin: Candidate | None = None,
        locked: tuple[str, ...] = (),
        **given: Any,
    ) -> None:
        """Adds a step and starts its search once the one before has ended."""
        with self._changing:
            self._stopping.set()
            stopping, before = threading.Event(), self._thread
            last = self._steps[-1].number if self._steps else 0
            step = Step(last + 1, title, target, origin, locked, seconds)
            dropped, kept = self._steps[: 1 - _STEPS], self._steps[1 - _STEPS :]
            self._steps = [*kept, step]
            needed = {s.target.id for s in self._steps}
            for old in dropped:
                for thing in (*old.candidates, old.target):
                    if thing.id not in needed:
                        self._known.pop(thing.id, None)
            self._current = len(self._steps) - 1
            self._stopping = stopping
            self._thread = threading.Thread(
                target=self._run,
                args=(step, stopping, before),
                kwargs=given,
                daemon=True,
            )
            self.version += 1
            self._thread.start()

    def _run(
        self,
        step: Step,
        stopping: threading.Event,
        before: threading.Thread | None,
        **given: Any,
    ) -> None:
        if before is not None:
            before.join()
        try:
            self._search(step, stopping, **given)
        except cli.EXPECTED as error:
            # One that is stopped at once has found nothing.
            if not stopping.is_set():
                step.state, step.message = "failed", str(error)
        except Exception:
            traceback.print_exc()
            step.state = "failed"
            step.message = "a defect of this program: the terminal says more"
        finally:
            if not step.ended:
                step.state = "stopped" if stopping.is_set() else "done"
            self.version += 1

    def _search(
        self,
        step: Step,
        stopping: threading.Event,
        *,
        propose: Callable[[], np.ndarray] | None = None,
        kept: refine.Kept | None = None,
        alike: bool = False,
    ) -> None:
        options, target = self.options, step.target
        stages, count = options.stages, options.candidates
        if alike:
            stages, count = ("neighbours",), _ALIKE
        elif propose is not None:
            stages = tuple(s for s in stages if s != "estimator")
        options = dataclasses.replace(
            options, stages=stages, candidates=count, seconds=step.seconds
        )
        if len(target.audio) not in self._warm and not options.evaluations:
            step.state = "compiling"
            self.version += 1
            search.warm_up(self.setup, len(target.audio), self.options)
            self._warm.add(len(target.audio))
        if stopping.is_set():
            return
        step.state = "searching"
        self.version += 1
        parents = None if propose is None else propose()
        found: dict[bytes, Candidate] = {}
        match = search.search(
            self.setup,
            target.audio,
            target.note,
            target.hold,
            options,
            parents=parents,
            kept=kept,
            watch=self._watcher(step, stopping, found, parents is None),
        )
        step.renders, step.spent = match.renders, match.seconds
        candidates = self._candidates(
            target, match.presets, match.clips, match.distances["a_mean"], found
        )
        if alike and parents is not None:
            near = [
                parent.tobytes() for parent in np.asarray(parents, np.float32)
            ]
            candidates.sort(key=lambda c: near.index(c.preset.tobytes()))
        for stage in match.stages:
            if stage["stage"] == "neighbours" and parents is None:
                target.bank = stage["distances"]["a_mean"]
        with self._changing:
            step.candidates = candidates
            for candidate in found.values():
                if candidate not in candidates:
                    self._known.pop(candidate.id, None)

    def _watcher(
        self,
        step: Step,
        stopping: threading.Event,
        found: dict[bytes, Candidate],
        from_bank: bool,
    ) -> Callable[[judge.Judge], bool]:
        """What shows the best presets while a search goes on."""
        count, least = self.options.candidates, self.setup.space.num_used // 10
        shown, looked = np.inf, time.monotonic()

        def watch(judging: judge.Judge) -> bool:
            nonlocal shown, looked
            step.renders, step.spent = judging.renders, judging.seconds
            self.version += 1
            if judging.best_score < shown and (
                shown == np.inf or time.monotonic() > looked + _EVERY
            ):
                best = judging.best(64)
                best = best[search.different(best, count, least)]
                new = [p for p in best if p.tobytes() not in found]
                if new:
                    clips, apart = judging.measure(np.stack(new), ("a_mean",))
                    self._candidates(
                        step.target, new, clips, apart["a_mean"], found
                    )
                candidates = [found[preset.tobytes()] for preset in best]
                candidates.sort(key=lambda c: c.a_mean)
                if from_bank and judging.stage == "neighbours":
                    step.target.bank = candidates[0].a_mean
                step.candidates = candidates
                shown, looked = judging.best_score, time.monotonic()
            return not stopping.is_set()

        return watch

    def _candidates(
        self,
        target: Target,
        presets: Iterable[np.ndarray],
        clips: Iterable[np.ndarray],
        apart: Iterable[float],
        found: dict[bytes, Candidate],
    ) -> list[Candidate]:
        """Candidates of presets, each the same whenever it is found."""
        rate = self.setup.settings.sample_rate
        for preset, clip, distance in zip(presets, clips, apart, strict=True):
            if preset.tobytes() not in found:
                candidate = Candidate(
                    id=f"c{next(self._numbers)}",
                    target=target,
                    preset=np.array(preset, np.float32),
                    audio=clip,
                    a_mean=float(distance),
                    gain=gain(clip, target.audio, rate),
                )
                found[preset.tobytes()] = candidate
                self._known[candidate.id] = candidate
        return [found[preset.tobytes()] for preset in presets]

    # What the user sees and hears --------------------------------------------

    def _step(self) -> Step:
        if not self._steps:
            raise ValueError("there is no sound yet: drop or record one")
        return self._steps[self._current]

    def _candidate(self, name: str) -> Candidate:
        found = self._known.get(name)
        if not isinstance(found, Candidate):
            raise ValueError(f"the candidate {name!r} is there no more")
        return found

    def sound(self, name: str) -> tuple[Float[np.ndarray, " samples"], float]:
        """A target's or candidate's sound, and the factor to play it at.

        Raises:
          KeyError: there is none of this id.
        """
        found = self._known[name]
        return found.audio, found.gain

    def picture(self, name: str) -> bytes:
        """The mel spectrogram of a sound as it is played, a PNG file.

        Raises:
          KeyError: there is none of this id.
        """
        found = self._known[name]
        target = found if isinstance(found, Target) else found.target
        rate = self.setup.settings.sample_rate
        levels = distances.kaldi_decibels(
            jnp.asarray(target.gain * target.audio[None]), rate
        )
        return plots.mel(found.gain * found.audio, rate, float(levels.max()))

    @property
    def endings(self) -> tuple[str, ...]:
        """Endings of the files that a candidate can be had as."""
        dexed = self.setup.space.name == "dexed"
        hosted = bool(self.setup.engine().host)
        endings = {".syx": dexed, ".vstpreset": hosted, ".json": True}
        return tuple(ending for ending, there in endings.items() if there)

    def file(self, name: str, ending: str) -> bytes:
        """A candidate as a file of the synthesizer.

        Raises:
          KeyError: there is none of this id.
          ValueError: the synthesizer has no such file.
        """
        found, space = self._known[name], self.setup.space
        if not isinstance(found, Candidate):
            raise KeyError(name)
        if ending == ".vstpreset" and ending in self.endings:
            values = np.asarray(space.to_plugin(found.preset), np.float32)
            return self.setup.engine().write_state(values) or b""
        return _written([found], ending, space)

    def bank(self, number: int, ending: str) -> bytes:
        """All candidates of a step as one file.

        Raises:
          KeyError: there is no such step, or it has found nothing.
          ValueError: the synthesizer has no such file.
        """
        with self._changing:
            steps = {step.number: step for step in self._steps}
            candidates = list(steps[number].candidates)
        if not candidates:
            raise KeyError(number)
        return _written(candidates, ending, self.setup.space)

    def describe(self) -> dict[str, Any]:
        """All there is to show, for JSON."""
        with self._changing:
            steps = [
                {"number": s.number, "title": s.title, "state": s.state}
                for s in self._steps
            ]
            return {
                "synth": self.setup.space.name,
                "engine": self.setup.engine().version,
                "bank": f"{len(self.setup.bank.presets):,} "
                f"{self.setup.bank.source} presets",
                "parts": list(self.setup.space.parts),
                "endings": self.endings,
                "floor": self.floor,
                "duration": self.setup.settings.duration,
                "seconds": self.options.seconds,
                "steps": steps,
                "step": self._described(self._step()) if steps else None,
            }

    def _described(self, step: Step) -> dict[str, Any]:
        target = step.target
        rate = self.setup.settings.sample_rate
        return {
            "number": step.number,
            "title": step.title,
            "state": step.state,
            "message": step.message,
            "seconds": step.seconds,
            "spent": round(step.spent, 1),
            "renders": step.renders,
            "origin": step.origin.id if step.origin else None,
            "locked": step.locked,
            "target": {
                "id": target.id,
                "name": target.name,
                "note": target.note,
                "hold": target.hold,
                "level": target.level,
                "detected": target.detected,
                "remarks": target.remarks,
                "length": len(target.audio) / rate,
                "bank": target.bank,
            },
            "candidates": [
                {
                    "id": candidate.id,
                    "a_mean": candidate.a_mean,
                    "graph": graph(candidate.preset, self.setup.space),
                }
                for candidate in step.candidates
            ],
        }


def gain(
    audio: Float[np.ndarray, " samples"],
    reference: Float[np.ndarray, " samples"],
    sample_rate: int,
) -> float:
    """The factor at which a sound is as loud as another one (ITU-R BS.1770).

    Args:
      audio: the sound, at least 0.4 s long.
      reference: the other one, taken as played so that it peaks at a half,
        which leaves room for sounds with higher peaks.
      sample_rate: sample rate of both, in Hz.

    Returns:
      The factor; less where the sound would exceed full scale, and 1 for a
      sound that is silent.
    """
    meter = pyloudnorm.Meter(sample_rate)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logarithms and means of silence
        own, wanted = map(meter.integrated_loudness, (audio, reference))
    if not np.isfinite(own - wanted):
        return 1.0
    factor = 0.5 / float(np.abs(reference).max()) * 10 ** ((wanted - own) / 20)
    return float(min(factor, 1 / np.abs(audio).max()))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embedding(
    proxy: Any, space: ParameterSpace, variables: Any, preset: jax.Array
) -> jax.Array:
    """What the proxy says that a preset sounds like."""
    relaxed = space.to_relaxed(preset[None])
    return proxy.apply(variables, relaxed, train=False)[0]


def _label(candidate: Candidate) -> str:
    """What the page calls a candidate."""
    return f"#{candidate.id[1:]}"


def _written(
    candidates: Sequence[Candidate], ending: str, space: ParameterSpace
) -> bytes:
    candidates = candidates[: sysex.BANK_VOICES]
    presets = np.stack([candidate.preset for candidate in candidates])
    names = [f"{c.target.name[:5]} {c.id}" for c in candidates]
    if ending == ".syx":
        return writing.to_syx(presets, names, space)
    if ending == ".json":
        return (writing.to_json(presets, names, space) + "\n").encode()
    raise ValueError(f"presets of {space.name} are not written as {ending}")


def graph(
    preset: Float[np.ndarray, " parameters"], space: ParameterSpace
) -> dict[str, Any] | None:
    """The routing of a preset in words and numbers, to be drawn.

    Returns:
      "title", names of the "nodes", "edges" and "loops" as pairs of their
      numbers, and "outputs"; None for a space without a routing.
    """
    routing = space.routing
    if routing is None:
        return None
    chosen = int(preset[space.index(routing.parameter)])
    heard = preset[space.index(routing.feedback)] > 0
    return {
        "title": f"{routing.parameter} {chosen + 1}",
        "nodes": routing.modules,
        "edges": routing.edges[chosen],
        "loops": routing.loops[chosen] if heard else (),
        "outputs": routing.outputs[chosen],
    }
