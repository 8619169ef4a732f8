"""Hand-crafted presets: files of voices to presets of a space, and back.

    bank = handcrafted.load("banks/", spaces.get("dexed"))
    bank = handcrafted.gate(bank, engines.get("dexed"), workers=4)
    print(bank.report)
    parts = handcrafted.split(bank.presets)
    handcrafted.save("match.syx", bank.presets[:1], ["MATCH"], bank.space)

For Dexed, `load` reads DX7 voices (`sysex` lists the formats) from
files, folders and zip archives; for every space, JSON files. A plug-in's own
states (.vstpreset, u-he's .h2p, and .state for what pedalboard's `raw_state`
gives) are read by the plug-in.
"""

import collections
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tabulate
import tqdm
from jaxtyping import Float, Int, UInt8

from datasets import engines
from datasets.engines import dexed
from datasets.presets import sysex
from proxy import unknown
from proxy.space import ParameterSpace

SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}

# What a folder or an archive is searched for. A file named on its own may
# have any name.
_STATES = (".vstpreset", ".h2p", ".state")
_SUFFIXES = (".syx", ".bin", ".dx7", ".vmem", ".json", ".zip", *_STATES)
# No archive of voices is larger; a larger one is a mistake, or a trap.
_MOST_BYTES = 256 * 2**20
# A raw file in which more voices than this are out of the DX7's range is
# something else of the right size.
_MOST_GARBAGE = 0.5
# Half a step of the finest grid a DX7 parameter has.
_AT_DEFAULT = 0.005

Counts = Mapping[str, int]
# A state's bytes and kind (its suffix without the dot) to plug-in values.
ReadState = Callable[[bytes, str], Float[np.ndarray, " parameters"]]


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the voices that were found.

    Attributes:
      files: files with voices in them.
      found: voices found.
      kept: presets left.
      duplicates: voices dropped because an earlier one is the same preset.
      dropped: voices dropped by the level gate, by reason ("silent", "too
        loud", "nan", or what the engine said).
      repaired: voices with a byte out of its DX7 range, which was
        clipped.
      clipped: voices with a value outside its interval, by parameter.
      replaced: voices with an excluded category, by parameter.
      defaulted: voices with an excluded parameter that was not at its
        default, by parameter.
      warnings: what was wrong with files that were read all the same.
      skipped: files in folders and archives that hold no voice, and why.
    """

    files: int = 0
    found: int = 0
    kept: int = 0
    duplicates: int = 0
    dropped: Counts = dataclasses.field(default_factory=dict)
    repaired: int = 0
    clipped: Counts = dataclasses.field(default_factory=dict)
    replaced: Counts = dataclasses.field(default_factory=dict)
    defaulted: Counts = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, int]]:
        """The figures, as rows of a table."""

        def largest(counts: Counts, what: str) -> Iterator[tuple[str, int]]:
            by_count = sorted(counts.items(), key=lambda item: -item[1])
            for name, count in by_count[:5]:
                yield f"  {what}: {name}", count
            if len(by_count) > 5:
                rest = sum(count for _, count in by_count[5:])
                yield f"  {what}: {len(by_count) - 5} others", rest

        return [
            ("files read", self.files),
            ("files without voices", len(self.skipped)),
            ("voices found", self.found),
            ("changed: bytes out of range clipped", self.repaired),
            *largest(self.clipped, "value clipped"),
            *largest(self.replaced, "excluded category replaced"),
            *largest(self.defaulted, "excluded parameter to default"),
            ("dropped: duplicate", self.duplicates),
            *(
                (f"dropped: {reason}", count)
                for reason, count in sorted(self.dropped.items())
            ),
            ("presets kept", self.kept),
        ]

    def __str__(self) -> str:
        table = tabulate.tabulate(self.rows(), intfmt=",", tablefmt="simple")
        notes = [f"warning: {line}" for line in self.warnings]
        notes += [f"skipped: {line}" for line in self.skipped]
        if len(notes) > 10:
            notes = [*notes[:10], f"... and {len(notes) - 10} more"]
        return "\n".join([table, *notes])


@dataclasses.dataclass(frozen=True)
class Bank:
    """Hand-crafted presets.

    Attributes:
      space: the space of the presets.
      presets: float32 [presets, parameters], no two alike.
      names: one for each preset, as its author wrote it.
      sources: where each came from: file name, and position in the file.
      report: what became of the voices that were found.
    """

    space: ParameterSpace
    presets: Float[np.ndarray, "presets parameters"]
    names: tuple[str, ...]
    sources: tuple[str, ...]
    report: Report

    def __len__(self) -> int:
        return len(self.presets)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Bank":
        """Returns the bank of these rows, under the same report."""
        return dataclasses.replace(
            self,
            presets=self.presets[np.asarray(rows, np.int64)],
            names=tuple(self.names[i] for i in rows),
            sources=tuple(self.sources[i] for i in rows),
        )


# Reading ---------------------------------------------------------------------


@dataclasses.dataclass
class _Found:
    """Plug-in values collected from files."""

    space: ParameterSpace
    read_state: ReadState | None = None
    values: list[np.ndarray] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    sources: list[str] = dataclasses.field(default_factory=list)
    repaired: list[np.ndarray] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    def add(
        self,
        file: str,
        values: np.ndarray,
        names: Iterable[str],
        repaired: np.ndarray | None = None,
    ) -> None:
        self.values.append(np.asarray(values, np.float32))
        self.names.extend(names)
        self.sources.extend(f"{file}#{i + 1}" for i in range(len(values)))
        if repaired is None:
            repaired = np.zeros(len(values), bool)
        self.repaired.append(repaired)


def load(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    space: ParameterSpace,
    read_state: ReadState | None = None,
) -> Bank:
    """Reads hand-crafted presets; nothing is rendered.

    Values are clipped to their intervals and moved to their grids, excluded
    categories become the nearest allowed one, excluded parameters go to
    their defaults, and of equal presets the first is kept. The report counts
    all of it.

    Args:
      paths: files, folders (searched recursively) and zip archives. DX7
        voices in any format of `sysex` (space "dexed" only), or
        JSON as `save` writes it, or a table of a plug-in's values; states of
        the plug-in.
      space: the space of the presets.
      read_state: reads states, as `read_state` of a plug-in's renderer does.

    Returns:
      The presets, in the order of the paths and, in folders, of the names.

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: a file named in `paths` holds no preset of the space, or
        the paths hold none at all. Unfit files in folders and archives are
        reported instead.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    paths = [pathlib.Path(path).expanduser() for path in paths]
    found = _Found(space, read_state)
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and file.suffix.lower() in _SUFFIXES:
                    _read(str(file), file.read_bytes(), found, named=False)
        elif path.is_file():
            _read(str(path), path.read_bytes(), found, named=True)
        else:
            raise FileNotFoundError(
                f"no bank at {path}: give a file, a folder or a zip archive, "
                "or download one with python -m launch.presets fetch"
            )
    if not found.values:
        listed = ", ".join(str(path) for path in paths) or "(no path)"
        why = f" ({found.skipped[0]})" if found.skipped else ""
        raise ValueError(f"no {space.name} preset in {listed}{why}")
    return _bank(found)


def _read(file: str, data: bytes, found: _Found, *, named: bool) -> None:
    """Adds what a file holds; see `load` for files that hold nothing."""
    try:
        suffix = pathlib.PurePath(file).suffix.lower()
        if suffix == ".zip" or data[:4] == b"PK\x03\x04":
            _read_archive(file, data, found)
        elif suffix == ".json":
            values, names = _parse_json(data, found.space)
            found.add(file, values, names)
        elif suffix in _STATES:
            if found.read_state is None:
                raise ValueError(
                    f"{suffix} files are read by the plug-in, and there is "
                    f"none for {found.space.name}: set --config.plugin, or "
                    f"the environment variable {found.space.name.upper()}_VST3"
                )
            values = found.read_state(data, suffix[1:])
            found.add(file, values[None], [pathlib.PurePath(file).stem])
        elif found.space.name != "dexed":
            raise ValueError(
                f"only JSON presets and states of the plug-in can be read for "
                f"{found.space.name}"
            )
        else:
            _read_voices(file, data, found)
    except ValueError as error:
        if named:
            raise ValueError(f"{file}: {error}") from None
        found.skipped.append(f"{file}: {error}")


def _read_archive(file: str, data: bytes, found: _Found) -> None:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        entries = [
            entry
            for entry in archive.infolist()
            if pathlib.PurePosixPath(entry.filename).suffix.lower() in _SUFFIXES
        ]
        if sum(entry.file_size for entry in entries) > _MOST_BYTES:
            raise ValueError("the archive holds more than 256 MiB")
        for entry in sorted(entries, key=lambda entry: entry.filename):
            _read(
                f"{file}/{entry.filename}",
                archive.read(entry),
                found,
                named=False,
            )
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"not a readable zip archive ({error})") from None


def _read_voices(file: str, data: bytes, found: _Found) -> None:
    voices, problems = sysex.parse(data)
    voices, repaired = repair(voices)
    if repaired.mean() > _MOST_GARBAGE:
        raise ValueError(
            f"{repaired.sum()} of {len(voices)} voices are out of the DX7's "
            "range, so these are no DX7 voices"
        )
    found.warnings += [f"{file}: {problem}" for problem in problems]
    found.add(
        file,
        dexed.from_voices(voices, found.space),
        sysex.read_names(voices),
        repaired,
    )


def repair(
    voices: UInt8[np.ndarray, "voices bytes"],
) -> tuple[UInt8[np.ndarray, "voices bytes"], np.ndarray]:
    """Clips the bytes of VCED voices to their DX7 ranges.

    Args:
      voices: VCED voices [voices, 156] as found in a file.

    Returns:
      The voices within range, and which of them were not [voices]. Names do
      not count.
    """
    clipped = np.minimum(voices, dexed.largest()).astype(np.uint8)
    changed = clipped != voices
    changed[:, dexed.NAME_BYTES] = False
    return clipped, changed.any(axis=1)


def _parse_json(
    data: bytes, space: ParameterSpace
) -> tuple[np.ndarray, list[str]]:
    """Plug-in values [presets, parameters] and names of a JSON file."""
    try:
        document = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if isinstance(document, dict) and "parameter_names" in document:
        return _parse_table(document, space)
    if not isinstance(document, list) or not document:
        raise ValueError(
            'expected a list of {"name": ..., "parameters": {parameter: raw '
            "value in [0, 1]}}"
        )
    column = {p.name: i for i, p in enumerate(space.parameters)}
    defaults = [p.default for p in space.parameters]
    values = np.tile(np.array(defaults, np.float32), (len(document), 1))
    names = []
    for i, entry in enumerate(document):
        given = (
            entry.get("parameters", entry.get("values"))
            if isinstance(entry, dict)
            else None
        )
        if not isinstance(given, dict):
            raise ValueError(f'preset {i + 1} has no "parameters"')
        names.append(str(entry.get("name", f"preset {i + 1}")))
        for name, value in given.items():
            if name not in column:
                kind = f"parameter of {space.name}"
                message = unknown(kind, name, column)
                raise ValueError(f"preset {names[-1]!r}: {message}")
            values[i, column[name]] = _raw(value, names[-1], name)
    return values, names


def _parse_table(
    document: dict[str, Any], space: ParameterSpace
) -> tuple[np.ndarray, list[str]]:
    """Presets as lists of values in the order of `parameter_names`.

    Those are a plug-in's own names, of all its parameters: they are compared
    without case and punctuation, and may hold more than the space has.
    """

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")

    presets = document.get("presets")
    if not isinstance(presets, dict) or not presets:
        raise ValueError('expected "presets": {name: [values]}')
    plugin = {plain(n): i for i, n in enumerate(document["parameter_names"])}
    missing = [p.name for p in space.parameters if plain(p.name) not in plugin]
    if missing:
        raise ValueError(
            f"parameters of {space.name} without a column: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
        )
    columns = [plugin[plain(p.name)] for p in space.parameters]
    rows = []
    for name, row in presets.items():
        if len(row) != len(document["parameter_names"]):
            raise ValueError(
                f"preset {name!r} has {len(row)} values for "
                f"{len(document['parameter_names'])} parameters"
            )
        rows.append([_raw(row[c], name, f"column {c}") for c in columns])
    return np.array(rows, np.float32), list(presets)


def _raw(value: Any, preset: str, parameter: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"preset {preset!r}: {parameter} is {value!r}, not a number"
        )
    # Written so that a NaN fails.
    if not 0 <= value <= 1:
        raise ValueError(
            f"preset {preset!r}: {parameter} is {value}, not in [0, 1]"
        )
    return float(value)


# Into the space --------------------------------------------------------------


def _bank(found: _Found) -> Bank:
    space = found.space
    values = np.concatenate(found.values)
    presets = np.asarray(space.from_plugin(values), np.float32)
    _, first = np.unique(presets, axis=0, return_index=True)
    kept = np.sort(first)
    changes = _changes(values, space)
    report = Report(
        files=len(found.values),
        found=len(values),
        kept=len(kept),
        duplicates=len(values) - len(kept),
        repaired=int(np.concatenate(found.repaired).sum()),
        warnings=tuple(found.warnings),
        skipped=tuple(found.skipped),
        **changes,
    )
    bank = Bank(
        space, presets, tuple(found.names), tuple(found.sources), report
    )
    return bank.take(kept)


def _changes(
    values: np.ndarray, space: ParameterSpace
) -> dict[str, dict[str, int]]:
    """Counts, by parameter, what keeps plug-in values out of the space."""
    counts: dict[str, dict[str, int]] = {
        "clipped": {},
        "replaced": {},
        "defaulted": {},
    }
    for parameter, column in zip(space.parameters, values.T, strict=True):
        if not parameter.used:
            kind = "defaulted"
            wrong = np.abs(column - parameter.default) > _AT_DEFAULT
        elif parameter.interval is not None:
            kind = "clipped"
            low, high = parameter.interval
            wrong = (column < low - 1e-6) | (column > high + 1e-6)
        elif parameter.excluded_category_indices:
            kind = "replaced"
            excluded = parameter.excluded_category_indices
            last = len(parameter.values or ()) + len(excluded) - 1
            wrong = np.isin(np.rint(column * last), excluded)
        else:
            continue
        if wrong.any():
            counts[kind][parameter.name] = int(wrong.sum())
    return counts


# The level gate --------------------------------------------------------------


def gate(
    bank: Bank,
    renderer: engines.Renderer,
    *,
    workers: int = 1,
    progress: bool = False,
) -> Bank:
    """Renders every preset and drops those that are silent or too loud.

    Args:
      bank: presets.
      renderer: an engine for the space of the bank.
      workers: rendering threads.
      progress: show a progress bar.

    Returns:
      The presets whose sound passes `engines.check_level`; the report counts
      the others by reason.

    Raises:
      ValueError: the engine plays another synthesizer.
    """
    if renderer.space != bank.space:
        raise ValueError(
            f"the engine {renderer.name!r} renders {renderer.space.name}, "
            f"the presets are of {bank.space.name}"
        )
    kept: list[int] = []
    dropped = collections.Counter(bank.report.dropped)
    failed: list[str] = []
    values = np.asarray(bank.space.to_plugin(bank.presets), np.float32)
    sounds = engines.render_many(renderer, values, workers=workers)
    for row, sound in enumerate(
        tqdm.tqdm(
            sounds,
            "rendering hand-crafted presets",
            total=len(bank),
            disable=not progress,
        )
    ):
        if isinstance(sound, engines.RenderError):
            reason = str(sound)
            failed.append(f"preset {bank.names[row]!r} set aside: {reason}")
        else:
            reason = engines.check_level(sound, renderer.settings)
        if reason is None:
            kept.append(row)
        else:
            dropped[reason] += 1
    report = dataclasses.replace(
        bank.report,
        kept=len(kept),
        dropped=dict(dropped),
        warnings=(*bank.report.warnings, *failed),
    )
    return dataclasses.replace(bank.take(kept), report=report)


# Splitting -------------------------------------------------------------------


def split(
    presets: Float[np.ndarray, "presets parameters"], seed: int = 0
) -> dict[str, Int[np.ndarray, "rows"]]:
    """Divides presets 80/10/10 into train, validation and test.

    A preset's part follows from its content and the seed alone: adding or
    removing files moves no preset, and equal presets share a part.

    Args:
      presets: presets of one space.
      seed: another seed divides them differently.

    Returns:
      Rows of each part, ascending. The parts are near 80, 10 and 10 %, as
      each preset is dealt by itself.
    """
    # Rounded, so that the last bits of a float32 do not decide.
    content = np.rint(np.asarray(presets, np.float64) * 10_000).astype("<i4")
    key = int(seed).to_bytes(8, "little", signed=True)
    drawn = np.array(
        [
            int.from_bytes(
                hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest(),
                "little",
            )
            for row in content
        ],
        np.float64,
    )
    edges = np.cumsum(list(SPLITS.values()))[:-1] * 2.0**64
    part = np.searchsorted(edges, drawn, side="right")
    return {name: np.flatnonzero(part == i) for i, name in enumerate(SPLITS)}


# Writing ---------------------------------------------------------------------


def to_voices(
    presets: Float[np.ndarray, "presets parameters"],
    names: Sequence[str],
    space: ParameterSpace,
) -> UInt8[np.ndarray, "presets 156"]:
    """Converts Dexed presets to named VCED voices.

    Raises:
      ValueError: the space is not Dexed's.
    """
    if space.name != "dexed":
        raise ValueError(
            f"a preset of {space.name} cannot be written as a DX7 voice; "
            "write JSON"
        )
    values = np.asarray(space.to_plugin(presets), np.float32)
    return sysex.write_names(dexed.to_voices(values, space), names)


def to_syx(
    presets: Float[np.ndarray, "presets parameters"],
    names: Sequence[str],
    space: ParameterSpace,
) -> bytes:
    """Writes Dexed presets as one system-exclusive message.

    Args:
      presets: 1 to 32 presets. Continuous values go to the nearest of the
        DX7's integers, as they do when they are rendered.
      names: one for each; cut to 10 characters of ASCII.
      space: the Dexed space.

    Returns:
      A single-voice message (163 bytes) for one preset, else a bank (4,104
      bytes) filled up with "INIT VOICE".

    Raises:
      ValueError: there are no presets, or more than 32, or the space is not
        Dexed's.
    """
    if not 1 <= len(presets) <= sysex.BANK_VOICES:
        raise ValueError(
            f"a DX7 bank takes 1 to 32 presets, not {len(presets)}"
        )
    voices = to_voices(presets, names, space)
    if len(voices) == 1:
        return sysex.voice_message(voices[0])
    missing = sysex.BANK_VOICES - len(voices)
    blank = np.tile(_init_voice(space), (missing, 1))
    return sysex.bank_message(np.concatenate([voices, blank]))


def _init_voice(space: ParameterSpace) -> np.ndarray:
    """The voice a DX7 starts from: one plain sine, of operator 1."""
    defaults = np.array([p.default for p in space.parameters], np.float32)
    voice = dexed.to_voices(defaults, space)
    for operator in range(2, 7):
        voice[dexed.PARAMETERS[f"op{operator}_output_level"][0]] = 0
    return voice


def to_json(
    presets: Float[np.ndarray, "presets parameters"],
    names: Sequence[str],
    space: ParameterSpace,
) -> str:
    """Writes presets as JSON: raw plug-in values by parameter name.

    `load` reads them back exactly.
    """
    values = np.asarray(space.to_plugin(presets), np.float32)
    columns = [p.name for p in space.parameters]
    return json.dumps(
        [
            {
                "name": name,
                "parameters": dict(
                    # The shortest text that reads back as the same float32.
                    zip(columns, map(float, map(str, row)), strict=True)
                ),
            }
            for name, row in zip(names, values, strict=True)
        ],
        indent=1,
    )


def save(
    path: str | os.PathLike[str],
    presets: Float[np.ndarray, "presets parameters"],
    names: Sequence[str],
    space: ParameterSpace,
) -> list[pathlib.Path]:
    """Writes presets to a file, in the format its ending names.

    Args:
      path: ends in .json (any space) or .syx (Dexed). More than 32 presets
        go to numbered .syx files, one bank each, as a DX7 has room for one.
      presets: at least one preset.
      names: one for each.
      space: their space.

    Returns:
      The files written.

    Raises:
      ValueError: the ending is another, or the space has no such format.
    """
    path = pathlib.Path(path)
    if len(presets) == 0:
        raise ValueError(f"no presets to write to {path}")
    if path.suffix.lower() == ".json":
        path.write_text(to_json(presets, names, space) + "\n")
        return [path]
    if path.suffix.lower() != ".syx":
        raise ValueError(f"{path}: presets are written as .syx or .json")
    size = sysex.BANK_VOICES
    starts = range(0, len(presets), size)
    files = [
        path if len(starts) == 1 else path.with_stem(f"{path.stem}-{i + 1:03}")
        for i in range(len(starts))
    ]
    for file, start in zip(files, starts, strict=True):
        rows = slice(start, start + size)
        file.write_bytes(to_syx(presets[rows], names[rows], space))
    return files
