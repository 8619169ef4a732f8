"""Folders in NSynth's format: `examples.json` beside `audio/<note>.wav`.

    notes = nsynth.find("nsynth-test", families=["bass"], pitches=range(36, 61))
    clips = nsynth.load(notes, sample_rate=32_000, samples=160_000)

Engel et al., "Neural Audio Synthesis of Musical Notes with WaveNet
Autoencoders", https://arxiv.org/abs/1704.01279. Its notes are mono, 16 kHz,
four seconds long and held for the first three.
"""

import dataclasses
import math
import os
import pathlib
import warnings
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from datasets import files, limits
from proxy import unknown

HOLD = 3.0  # seconds that every note is held
# Sample rates that sounds have, in Hz.
RATES = (1_000, 1_000_000)


@dataclasses.dataclass(frozen=True)
class Note:
    """A note of a folder.

    Attributes:
      name: key of the note in `examples.json`, as a file's name.
      path: file of its audio.
      pitch: MIDI note.
      velocity: MIDI velocity.
      family: instrument family, such as "bass".
      source: "acoustic", "electronic" or "synthetic".
    """

    name: str
    path: pathlib.Path
    pitch: int
    velocity: int
    family: str
    source: str


def find(
    folder: str | os.PathLike[str],
    *,
    families: Sequence[str] = (),
    sources: Sequence[str] = (),
    pitches: Container[int] | None = None,
) -> list[Note]:
    """Lists the notes of a folder.

    Args:
      folder: a folder in NSynth's format.
      families: the only families to list, all when empty.
      sources: the only sources to list, all when empty.
      pitches: the only pitches to list, all when None.

    Returns:
      Notes in the order of their names; at least one.

    Raises:
      FileNotFoundError: the folder, its table or a note's audio is missing.
      ValueError: the table is not NSynth's, or no note passes the filter.
    """
    folder = pathlib.Path(folder).expanduser()
    table = folder / "examples.json"
    if not table.is_file():
        raise FileNotFoundError(
            f"{folder} is no folder in NSynth's format: {table.name} is "
            "missing (it lies beside the folder audio)"
        )
    try:
        examples = limits.read_json(table)
        named = {files.filename(k): v for k, v in sorted(examples.items())}
        notes = [
            Note(
                name=name,
                path=folder / "audio" / f"{name}.wav",
                pitch=int(example["pitch"]),
                velocity=int(example["velocity"]),
                family=example["instrument_family_str"],
                source=example["instrument_source_str"],
            )
            for name, example in named.items()
        ]
    except KeyError as error:
        raise ValueError(f"{table}: a note has no {error}") from None
    except (AttributeError, TypeError, ArithmeticError, ValueError) as error:
        raise ValueError(f"{table}: not NSynth's table ({error})") from None
    for what, wanted in (("family", families), ("source", sources)):
        known = sorted({getattr(note, what) for note in notes})
        for name in wanted:
            if name not in known:
                raise ValueError(f"{table}: {unknown(what, name, known)}")
    chosen = [
        note
        for note in notes
        if (not families or note.family in families)
        and (not sources or note.source in sources)
        and (pitches is None or note.pitch in pitches)
    ]
    if not chosen:
        raise ValueError(
            f"{table}: none of its {len(notes)} notes passes the filter; "
            "widen families, sources or pitches"
        )
    for note in chosen:
        if not note.path.is_file():
            raise FileNotFoundError(
                f"{table} names {note.name}, but {note.path} is missing"
            )
    return chosen


def load(
    notes: Sequence[Note], sample_rate: int, samples: int
) -> Float[np.ndarray, "notes samples"]:
    """Reads notes at one rate and length.

    Args:
      notes: notes from `find`.
      sample_rate: the sample rate wanted, in Hz.
      samples: length of a clip; longer notes are cut, shorter ones followed
        by silence.

    Returns:
      Clips in [-1, 1], float32, channels averaged.

    Raises:
      ValueError: a file is not audio or not finite; names it.
    """
    clips = np.zeros((len(notes), samples), np.float32)
    for clip, note in zip(clips, notes, strict=True):
        audio, rate = _read(note.path)
        # A second more than is kept, as a filter looks ahead.
        audio = audio[: round(samples / sample_rate * rate) + rate]
        audio = resample(audio, rate, sample_rate)[:samples]
        clip[: len(audio)] = audio
    return clips


def _read(path: pathlib.Path) -> tuple[np.ndarray, int]:
    """Mono audio in [-1, 1], and its rate."""
    from scipy.io import wavfile

    try:
        limits.Meter().spend(bytes=path.stat().st_size)
        with warnings.catch_warnings():
            # Of chunks that are no audio, such as comments.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, data = wavfile.read(path)
    except Exception as error:
        # Whatever a malformed file provokes, the file is to blame.
        raise ValueError(f"{path}: not a WAV file ({error})") from None
    if data.size == 0:
        raise ValueError(f"{path}: holds no sample")
    low, high = RATES
    if not low <= rate <= high:
        raise ValueError(f"{path}: {rate:,} Hz, not {low:,} to {high:,} Hz")
    kind: Any = data.dtype
    if kind == np.uint8:
        audio = data / 128 - 1
    elif np.issubdtype(kind, np.integer):
        audio = data / -float(np.iinfo(kind).min)
    else:
        audio = data.astype(np.float64)
    if audio.ndim > 1:
        audio = audio.mean(1)
    if not np.isfinite(audio).all():
        raise ValueError(f"{path}: has samples that are NaN or infinite")
    return audio, rate


def resample(
    audio: Float[np.ndarray, " samples"], rate: int, wanted: int
) -> Float[np.ndarray, " resampled"]:
    """Changes the sample rate with a linear-phase filter.

    Args:
      audio: one channel.
      rate: sample rate of the audio, in Hz.
      wanted: the new rate, in Hz.

    Returns:
      The audio at the new rate, as long in seconds.
    """
    if rate == wanted:
        return audio
    from scipy import signal

    common = math.gcd(rate, wanted)
    return signal.resample_poly(audio, wanted // common, rate // common)
