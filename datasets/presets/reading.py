"""Files of voices to presets of a space.

For Dexed, `load` reads DX7 voices (`sysex` lists the formats) from files,
folders and zip archives; for every space, JSON files. A plug-in's own states
(.vstpreset, u-he's .h2p, and .state for what pedalboard's `raw_state` gives)
are read by the plug-in.
"""

import dataclasses
import io
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from datasets import limits
from datasets.engines import dexed
from datasets.engines.vst3 import binding as vst3_binding
from datasets.presets import sysex
from datasets.presets.bank import Bank, Report
from proxy import spaces, unknown
from proxy.space import ParameterSpace

# What a folder or an archive is searched for. A file named on its own may
# have any name.
_STATES = (".vstpreset", ".h2p", ".state")
_SUFFIXES = (".syx", ".bin", ".dx7", ".vmem", ".json", ".zip", *_STATES)
# A raw file in which more voices than this are out of the DX7's range is
# something else of the right size.
_MOST_GARBAGE = 0.5
# Half a step of the finest grid a DX7 parameter has.
_AT_DEFAULT = 0.005
# Parameters that a plug-in may have.
_MOST_COLUMNS = 4096

# A state's bytes and kind (its suffix without the dot) to plug-in values.
ReadState = Callable[[bytes, str], Float[np.ndarray, " parameters"]]


@dataclasses.dataclass
class _Collected:
    """Plug-in values collected from files."""

    space: ParameterSpace
    read_state: ReadState | None = None
    values: list[np.ndarray] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    sources: list[str] = dataclasses.field(default_factory=list)
    repaired: list[np.ndarray] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    def skip(self, file: str, error: Exception) -> None:
        """Notes why a file of a folder or archive was not read."""
        self.skipped.append(limits.shorten(f"{file}: {error}", 500))

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
    budget: limits.Budget | None = None,
) -> Bank:
    """Reads hand-crafted presets; nothing is rendered.

    Values are clipped to their intervals and moved to their grids, excluded
    categories become the nearest allowed one, excluded parameters go to
    their defaults, and of equal presets the first is kept. The report counts
    all of it.

    Args:
      paths: files, folders (searched recursively) and zip archives. They hold
        DX7 voices in any format of `sysex` (space "dexed" only), JSON as
        `writing.save` writes it, tables of a plug-in's values, or states of
        the plug-in.
      space: the space of the presets.
      read_state: reads states, as `read_state` of a plug-in's renderer does.
      budget: what each file may cost; `limits.usual` when left out.

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
    collected = _Collected(space, read_state)
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file() and file.suffix.lower() in _SUFFIXES:
                    try:
                        _read_file(file, collected, limits.Meter(budget))
                    except (ValueError, OSError) as error:
                        collected.skip(str(file), error)
        elif path.is_file():
            try:
                _read_file(path, collected, limits.Meter(budget))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        else:
            raise FileNotFoundError(
                f"no bank at {path}: give a file, a folder or a zip archive, "
                "or download one with python -m launch.presets fetch"
            )
    if not collected.values:
        listed = ", ".join(str(path) for path in paths) or "(no path)"
        why = f" ({collected.skipped[0]})" if collected.skipped else ""
        raise ValueError(f"no {space.name} preset in {listed}{why}")
    return _bank(collected)


def _read_file(
    path: pathlib.Path, collected: _Collected, meter: limits.Meter
) -> None:
    meter.spend(bytes=path.stat().st_size)
    _read(str(path), path.read_bytes(), collected, meter)


def _read(
    file: str, data: bytes, collected: _Collected, meter: limits.Meter
) -> None:
    """Adds what a file holds; raises `ValueError` when that is nothing."""
    space = collected.space
    suffix = pathlib.PurePath(file).suffix.lower()
    if suffix == ".zip" or data[:4] == b"PK\x03\x04":
        with meter.deeper():
            _read_archive(file, data, collected, meter)
    elif suffix == ".json":
        values, names = parse_json(data, space, meter)
        collected.add(file, values, names)
    elif suffix in _STATES:
        if collected.read_state is None:
            raise ValueError(
                f"{suffix} files are read by the plug-in, and there is "
                f"none for {space.name}: set --config.plugin, or the "
                f"environment variable {space.name.upper()}_VST3"
            )
        values = collected.read_state(data, suffix[1:])
        collected.add(file, values[None], [pathlib.PurePath(file).stem])
    elif space.name != "dexed":
        raise ValueError(
            f"only JSON presets and states of the plug-in can be read for "
            f"{space.name}"
        )
    else:
        _read_voices(file, data, collected, meter)


def _read_archive(
    file: str, data: bytes, collected: _Collected, meter: limits.Meter
) -> None:
    """Adds what an archive's entries hold; those that are damaged, are told.

    What an archive inside it costs counts for the outermost one.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception as error:
        # Whatever a malformed archive provokes, the archive is to blame.
        raise ValueError(f"not a readable zip archive ({error})") from None
    for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
        suffix = pathlib.PurePosixPath(entry.filename).suffix.lower()
        if suffix not in _SUFFIXES:
            continue
        name = f"{file}/{limits.shorten(entry.filename)}"
        size = entry.file_size
        meter.spend(bytes=size)
        try:
            _read(name, limits.unzip(archive, entry, size), collected, meter)
        except limits.OverBudgetError:
            raise
        except ValueError as error:
            collected.skip(name, error)


def _read_voices(
    file: str, data: bytes, collected: _Collected, meter: limits.Meter
) -> None:
    # As many as there may be, however the data are read.
    meter.spend(voices=max(len(data) // 128, data.count(b"\xf0")))
    voices, problems = sysex.parse(data)
    voices, repaired = repair(voices)
    if repaired.mean() > _MOST_GARBAGE:
        raise ValueError(
            f"{repaired.sum()} of {len(voices)} voices are out of the DX7's "
            "range, so these are no DX7 voices"
        )
    collected.warnings += [f"{file}: {problem}" for problem in problems]
    collected.add(
        file,
        dexed.from_voices(voices, collected.space),
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


def parse_json(
    data: bytes, space: ParameterSpace, meter: limits.Meter
) -> tuple[np.ndarray, list[str]]:
    """Plug-in values [presets, parameters] and names of a JSON file."""
    document = limits.parse_json(data, meter.budget)
    if isinstance(document, dict) and "parameter_names" in document:
        return _parse_table(document, space, meter)
    if not isinstance(document, list) or not document:
        raise ValueError(
            'expected a list of {"name": ..., "parameters": {parameter: raw '
            "value in [0, 1]}}"
        )
    meter.spend(voices=len(document))
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
        names.append(_shown(entry.get("name", f"preset {i + 1}")))
        for name, value in given.items():
            if name not in column:
                kind = f"parameter of {space.name}"
                message = unknown(kind, name, column)
                message += _elsewhere([*given][:_MOST_COLUMNS], space)
                raise ValueError(f"preset {names[-1]!r}: {message}")
            values[i, column[name]] = _raw(value, names[-1], name)
    return values, names


def _shown(value: Any) -> str:
    """A text from outside, not longer than anybody would read."""
    return limits.shorten(value if isinstance(value, str) else repr(value))


def _parse_table(
    document: dict[str, Any], space: ParameterSpace, meter: limits.Meter
) -> tuple[np.ndarray, list[str]]:
    """Presets as lists of values in the order of `parameter_names`.

    Those are a plug-in's own names, of all its parameters: they are matched as
    a plug-in's are, and may hold more than the space has.
    """
    listed, presets = document["parameter_names"], document.get("presets")
    if not isinstance(listed, list):
        raise ValueError('expected "parameter_names": [names]')
    if not isinstance(presets, dict) or not presets:
        raise ValueError('expected "presets": {name: [values]}')
    meter.spend(voices=len(presets))
    given = [_shown(name) for name in listed[:_MOST_COLUMNS]]
    binding = vst3_binding.bind(space, given)
    used = {p.name for p in space.used}
    missing = [name for name in binding.missing if name in used]
    if missing:
        raise ValueError(
            f"parameters of {space.name} without a column: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
            f"{_elsewhere(given, space)}"
        )
    defaults = [p.default for p in space.parameters]
    values = np.tile(np.array(defaults, np.float32), (len(presets), 1))
    for out, (name, row) in zip(values, presets.items(), strict=True):
        if not isinstance(row, list) or len(row) != len(listed):
            count = len(row) if isinstance(row, list) else "no"
            raise ValueError(
                f"preset {_shown(name)!r} has {count} values for "
                f"{len(listed)} parameters"
            )
        for parameter, column in binding.positions.items():
            out[parameter] = _raw(row[column], name, f"column {column}")
    return values, [_shown(name) for name in presets]


def _elsewhere(names: Sequence[str], space: ParameterSpace) -> str:
    """What to say when names are of another synthesizer's parameters."""
    given = {vst3_binding.joined(name) for name in names}
    for synth in spaces.names():
        other = spaces.get(synth)
        known = {vst3_binding.joined(p.name) for p in other.parameters}
        enough = 0.9 * min(len(given), other.num_used)
        if given and other != space and len(given & known) >= enough:
            return f"; they look like {synth}'s: --synth={synth}"
    return ""


def _raw(value: Any, preset: str, parameter: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"preset {_shown(preset)!r}: {parameter} is {_shown(repr(value))}, "
            "not a number"
        )
    # Written so that a NaN fails.
    if not 0 <= value <= 1:
        raise ValueError(
            f"preset {_shown(preset)!r}: {parameter} is {_shown(value)}, not "
            "in [0, 1]"
        )
    return float(value)


def _bank(collected: _Collected) -> Bank:
    space = collected.space
    values = np.concatenate(collected.values)
    presets = np.asarray(space.from_plugin(values), np.float32)
    _, first = np.unique(presets, axis=0, return_index=True)
    kept = np.sort(first)
    changes = _changes(values, space)
    report = Report(
        files=len(collected.values),
        found=len(values),
        kept=len(kept),
        duplicates=len(values) - len(kept),
        repaired=int(np.concatenate(collected.repaired).sum()),
        warnings=tuple(collected.warnings),
        skipped=tuple(collected.skipped),
        **changes,
    )
    bank = Bank(
        space, presets, tuple(collected.names), tuple(collected.sources), report
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
