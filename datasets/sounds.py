"""Sounds to be matched: audio files, what note they hold and for how long.

    for item in sounds.find(["kick.wav", "nsynth-test/"]):
        sound = sounds.read(item.path, 32_000)
        note = item.note or sounds.pitch(sound.audio, sound.sample_rate)

Files are read by pedalboard (GPL-3.0), in a process of its own (see
`datasets.decoder`): damaged MP3 and AIFF files crash it, and some WAV files
keep it busy for ever.
"""

import dataclasses
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from datasets import child, files, limits, nsynth

SUFFIXES = (".wav", ".flac", ".mp3", ".aif", ".aiff", ".ogg")
# Below this peak, -80 dB of full scale, there is nothing to match.
_SILENCE = 1e-4
# The sound starts where it first comes within 60 dB of its peak, and keeps
# this many seconds before that.
_ONSET = 1e-3
_LEAD = 0.01
# Seconds of silence before a sound that are skipped.
_SEARCHED = 120.0
_DECODER = pathlib.Path(__file__).with_name("decoder.py")
# MIDI notes that are told apart: C1 to C8.
_LOWEST, _HIGHEST = 24, 108
# Cents by which a partial may waver around its place.
_WAVER = 80
# YIN's absolute threshold: the aperiodic share of a voiced frame's power.
_APERIODIC = 0.15


@dataclasses.dataclass(frozen=True)
class Item:
    """A file to be matched.

    Attributes:
      path: the file.
      name: unique among the items of a call, and fit for a folder.
      note: MIDI note of the sound, None where nothing says so.
      hold: seconds that the note was held, None where nothing says so.
    """

    path: pathlib.Path
    name: str
    note: int | None = None
    hold: float | None = None


@dataclasses.dataclass(frozen=True)
class Sound:
    """What was read of a file.

    Attributes:
      audio: mono, float32, from just before the sound starts.
      sample_rate: sample rate, in Hz.
      remarks: what the user should know about it, in words.
      seconds: length of the file from where the sound starts.
    """

    audio: Float[np.ndarray, " samples"]
    sample_rate: int
    remarks: tuple[str, ...]
    seconds: float


def find(paths: Iterable[str]) -> list[Item]:
    """Lists the audio files under paths.

    Args:
      paths: files, folders, or folders in NSynth's format (`examples.json`
        beside `audio/`), whose notes are known.

    Returns:
      Items, those of a folder in the order of their names.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: a folder holds no audio file, or two files have one name.
    """
    items: list[Item] = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            inside = list(_folder(path))
            if not inside:
                raise ValueError(
                    f"{path} holds no audio file ({', '.join(SUFFIXES)})"
                )
            items += inside
        elif path.exists():
            items.append(Item(path, files.filename(path.stem)))
        else:
            raise FileNotFoundError(f"there is no file {path}")
    seen: dict[str, pathlib.Path] = {}
    for item in items:
        if item.name in seen:
            raise ValueError(
                f"{seen[item.name]} and {item.path} would be written to the "
                "same folder: match them with two --out folders"
            )
        seen[item.name] = item.path
    return items


def _folder(folder: pathlib.Path) -> Iterator[Item]:
    if (folder / "examples.json").exists():
        for note in nsynth.find(folder):
            yield Item(note.path, note.name, note.pitch, nsynth.HOLD)
        return
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            parts = path.relative_to(folder).with_suffix("").parts
            yield Item(path, files.filename("-".join(parts)))


# Reading ---------------------------------------------------------------------


def read(
    path: pathlib.Path,
    sample_rate: int,
    *,
    least: float = 1.0,
    most: float = 5.0,
) -> Sound:
    """Reads an audio file from where its sound starts.

    Channels are averaged, the rate is converted, up to two minutes of silence
    at the start are skipped. The file is read in blocks, so a long one costs
    no memory, in a process that is kept for the next one.

    Args:
      path: WAV, FLAC, MP3 and what else pedalboard reads.
      sample_rate: the sample rate wanted, in Hz.
      least: seconds that a shorter sound is padded to with silence.
      most: seconds after which a longer sound is cut.

    Returns:
      The sound, `least` to `most` seconds long.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not audio, damaged, costs more time or memory
        than `limits.usual` allows, holds NaN or infinite samples, or is
        silent.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    audio, total = _decode(path, sample_rate, most)
    peak = float(np.abs(audio).max())
    if peak < _SILENCE:
        raise ValueError(
            f"{path} is silent (its peak is {peak:.1g} of full scale): there "
            "is nothing to match"
        )
    remarks = []
    start = int(np.argmax(np.abs(audio) > _ONSET * peak))
    start = max(start - round(_LEAD * sample_rate), 0)
    if start > 0.1 * sample_rate:
        remarks.append(f"{start / sample_rate:.2f} s of silence skipped")
    audio = audio[start:]
    longest, shortest = round(most * sample_rate), round(least * sample_rate)
    if total - start / sample_rate > most:
        remarks.append(f"{total:.1f} s long: only {most:g} s are matched")
    audio = audio[:longest]
    clipped = _clipped(audio)
    if clipped > 10:
        remarks.append(
            f"clipped: {clipped:,} samples at full scale, matched as they are"
        )
    if len(audio) < shortest:
        remarks.append(
            f"{len(audio) / sample_rate:.3g} s short: followed by silence up "
            f"to {least:g} s"
        )
        audio = np.pad(audio, (0, shortest - len(audio)))
    return Sound(
        np.ascontiguousarray(audio, np.float32),
        sample_rate,
        tuple(remarks),
        total - start / sample_rate,
    )


_child: child.Child | None = None
_asking = threading.Lock()


def _decode(
    path: pathlib.Path, sample_rate: int, most: float
) -> tuple[np.ndarray, float]:
    """As `decoder.Host.read`: the audio, and seconds from its start."""
    global _child
    budget = limits.usual()
    with _asking:
        try:
            if _child is None:
                _child = child.Child(_DECODER)
                _child.ask("limit", 2 * budget.bytes, timeout=budget.seconds)
            count, total = _child.ask(
                "read",
                os.fsencode(path.absolute()),
                sample_rate,
                most,
                _SEARCHED,
                _SILENCE,
                timeout=budget.seconds,
            )
            return _child.sound(count) if count else np.zeros(1), total
        except child.ReplyError as error:
            kind, words = error.args
            if kind == "MemoryError":
                words = f"takes more than {2 * budget.bytes:,} bytes to read"
                words += "; raise what is allowed with --budget=4"
            elif kind != "ValueError":
                words = f"is damaged: {kind} {words}"
            raise ValueError(f"{path} {words}") from None
        except BaseException as error:
            # Ctrl-C, too: its reply would be taken for the next one's.
            words = ""
            if _child is not None:
                words = _child.last_words()
                _child.close()
            _child = None
            if not isinstance(error, child.DeadError):
                raise
            if str(error) == "hang":
                words = (
                    f"keeps its decoder busy for more than {budget.seconds:g} "
                    "s; raise what is allowed with --budget=4, or export it "
                    "again"
                )
            else:
                words = f"is damaged: its decoder crashes{words}"
            raise ValueError(f"{path} {words}") from None


def _clipped(audio: Float[np.ndarray, " samples"]) -> int:
    """Samples at the peak, near full scale, whose neighbour is there too."""
    peak = np.abs(audio).max()
    if peak < 0.99:
        return 0
    flat = np.abs(audio) >= 0.9999 * min(peak, 1.0)
    return int((flat[1:] & flat[:-1]).sum())


# Note and length -------------------------------------------------------------


def pitch(audio: Float[np.ndarray, " samples"], sample_rate: int) -> int | None:
    """The MIDI note that a sound holds.

    The median of YIN's estimates (de Cheveigné and Kawahara, 2002, "YIN, a
    fundamental frequency estimator for speech and music", JASA 111(4)) over
    the frames that are periodic and loud. Steps 1 to 5 of the paper.

    Args:
      audio: one note.
      sample_rate: sample rate, in Hz.

    Returns:
      The note, 24 to 108; None where too few frames are periodic, as in
      noise and clicks.
    """
    longest = int(sample_rate / _hertz(_LOWEST)) + 2
    shortest = int(sample_rate / _hertz(_HIGHEST + 1))
    frames = _frames(audio, 2 * longest, max(sample_rate // 20, 1))
    loud = np.square(frames).mean(1)
    frames = frames[loud > 0.01 * loud.max()]
    aperiodic = _normalised_difference(frames, longest)
    hertz = []
    for row in aperiodic:
        below = np.flatnonzero(row[shortest:] < _APERIODIC)
        if not len(below):
            continue
        # Down from the first crossing to its local minimum.
        lag = shortest + int(below[0])
        while lag + 1 < longest and row[lag + 1] < row[lag]:
            lag += 1
        if lag + 1 < longest:
            hertz.append(sample_rate / (lag + _vertex(*row[lag - 1 : lag + 2])))
    if len(hertz) < max(0.2 * len(frames), 3):
        return None
    note = 69 + 12 * np.log2(np.median(hertz) / 440)
    return int(np.clip(np.rint(note), _LOWEST, _HIGHEST))


def _hertz(note: float) -> float:
    return 440 * 2 ** ((note - 69) / 12)


def _frames(audio: np.ndarray, size: int, hop: int) -> np.ndarray:
    audio = np.pad(audio.astype(np.float64), (0, max(size - len(audio), 0)))
    return np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]


def _normalised_difference(frames: np.ndarray, longest: int) -> np.ndarray:
    """YIN's cumulative mean normalised difference, lags 0 to `longest`."""
    window = frames.shape[1] - longest
    size = 1 << (frames.shape[1] + window - 1).bit_length()
    spectrum = np.fft.rfft(frames, size)
    head = np.fft.rfft(frames[:, :window], size)
    product = np.fft.irfft(spectrum * head.conj(), size)[:, :longest]
    energy = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), axis=1)
    moved = energy[:, window : window + longest] - energy[:, :longest]
    difference = np.maximum(moved + moved[:, :1] - 2 * product, 0)
    lags = np.arange(1, longest)
    mean = np.cumsum(difference[:, 1:], axis=1) / lags
    ratio = difference[:, 1:] / np.maximum(mean, 1e-20)
    return np.concatenate([np.ones((len(frames), 1)), ratio], axis=1)


def _vertex(left: float, middle: float, right: float) -> float:
    """Where the parabola through three neighbours has its minimum."""
    curvature = left - 2 * middle + right
    return 0.0 if curvature <= 0 else 0.5 * (left - right) / curvature


def chord(audio: Float[np.ndarray, " samples"], sample_rate: int) -> bool:
    """Whether a sound seems to hold two notes or more.

    The lowest strong partial or its half is taken for the fundamental of one
    note. There is another note where a strong partial is no
    multiple of it, and has at least two multiples of its own that are not
    either. So octaves and fifths pass for one note, and most bells, whose
    partials are no multiples of anything, do too.

    Args:
      audio: a sound; its loudest second counts.
      sample_rate: sample rate, in Hz.
    """
    seconds = max(len(audio) // sample_rate, 1)
    parts = np.array_split(audio, seconds)
    part = max(parts, key=lambda x: float(np.square(x).sum()))
    size = 1 << (4 * len(part) - 1).bit_length()
    # Its side lobes are below what counts here.
    level = np.abs(np.fft.rfft(part * np.blackman(len(part)), size))
    level = 20 * np.log10(np.maximum(level / max(level.max(), 1e-9), 1e-9))
    top = (level[1:-1] > level[:-2]) & (level[1:-1] >= level[2:])
    place = np.flatnonzero(top & (level[1:-1] > -45)) + 1
    hertz, level = place * sample_rate / size, level[place]
    kept = (hertz > 50) & (hertz < 5_000)
    # Where a partial wavers, its highest peak stands for all.
    near = np.abs(np.log2(hertz[:, None] / hertz)) < _WAVER / 1200
    kept &= level >= np.where(near, level, -np.inf).max(1, initial=-np.inf)
    hertz, level = hertz[kept], level[kept]
    strong = hertz[level > -20]
    # Noise is full of peaks.
    if not 0 < len(strong) < 25:
        return False

    def apart(multiples: np.ndarray) -> np.ndarray:
        """Cents from the nearest whole number."""
        whole = np.maximum(np.rint(multiples), 1)
        return np.abs(1200 * np.log2(multiples / whole))

    def another(fundamental: float) -> bool:
        foreign = hertz[apart(hertz / fundamental) > 40]
        own = strong[apart(strong / fundamental) > 40]
        for other in own[own < 4 * strong[0]]:
            multiples = foreign[foreign > 1.5 * other] / other
            near = np.rint(multiples)[apart(multiples) < 25]
            if len(set(near[near <= 5])) >= 2:
                return True
        return False

    return all(another(strong[0] / part) for part in (1, 2))


def hold(audio: Float[np.ndarray, " samples"], sample_rate: int) -> float:
    """When the note was let go, as far as the sound tells.

    The level in dB after its peak is taken for two straight lines; where
    they meet, the note was released, if the second falls by at least 20 dB/s
    more than the first.

    Args:
      audio: one note, from its start.
      sample_rate: sample rate, in Hz.

    Returns:
      Seconds; the length of the audible sound where nothing like a release
      is heard.
    """
    step = max(sample_rate // 50, 1)
    count = len(audio) // step
    power = np.square(audio[: count * step], dtype=np.float64)
    level = power.reshape(count, step).mean(1)
    level = 10 * np.log10(np.maximum(level, 1e-12))
    end = int(np.flatnonzero(level > level.max() - 60)[-1]) + 1
    first = int(np.argmax(level))
    seconds = step / sample_rate
    best, release = np.inf, end
    for middle in range(first + 5, end - 2):
        before = _line(level[first:middle])
        after = _line(level[middle:end])
        if before[1] + after[1] < best:
            best = before[1] + after[1]
            steeper = (before[0] - after[0]) / seconds
            release = middle if steeper > 20 else end
    return max(release, 1) * seconds


def _line(values: np.ndarray) -> tuple[float, float]:
    """Slope and squared error of the line of least squares."""
    place = np.arange(len(values)) - (len(values) - 1) / 2
    slope = float(place @ values / max(place @ place, 1e-9))
    error = values - values.mean() - slope * place
    return slope, float(error @ error)
