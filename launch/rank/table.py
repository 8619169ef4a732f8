"""Tables of sweeps: which parameters of which preset move, from where to where.

A table is a dictionary, as JSON or from `configs/ranking/<synth>.py`:

    {"synth": "dexed", "steps": 20, "note": 60, "velocity": 100,
     "held_seconds": 2.0, "render_seconds": 4.0,
     "presets": {NAME: {PARAMETER: raw value}},
     "attributes": {ATTRIBUTE: [
       {"preset": NAME, "parameters": {PARAMETER: [first, last]},
        "overrides": {PARAMETER: raw value}}]}}

A sweep of one parameter may say "parameter" and "interval" instead. Names are
compared without case and punctuation; raw values are the plug-in's, in
[0, 1]. A preset is held at the space's defaults where it says nothing, and
"default" needs no entry.
"""

import dataclasses
import importlib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from datasets import engines, limits
from datasets.engines.vst3 import binding as vst3_binding
from proxy import unknown
from proxy.space import ParameterSpace

_Presets = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One parameter, or several together, moved in equal steps.

    Attributes:
      attribute: what is heard to change.
      preset: name of the base preset.
      values: raw plug-in values in [0, 1] of every step, `[steps,
        parameters]`, all parameters in table order.
    """

    attribute: str
    preset: str
    values: Float[np.ndarray, "steps parameters"]


def load(synth: str, file: str | None = None) -> dict[str, Any]:
    """Reads a table.

    Args:
      synth: name of the synthesizer.
      file: JSON; None for the project's own table of this synthesizer.

    Returns:
      The table.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no table, one of another synthesizer, or the project
        has none for this one.
    """
    if file is None:
        module = f"configs.ranking.{synth}"
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"the project has no table of sweeps for {synth!r}: give one "
                "with --table FILE"
            )
        return importlib.import_module(module).get_table()
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no table of sweeps at {path} (--table)")
    table = limits.read_json(path)
    if not isinstance(table, dict) or not table.get("attributes"):
        raise ValueError(
            f'{path} is no table of sweeps: it has no "attributes"'
        )
    if table.get("synth", synth) != synth:
        raise ValueError(
            f"{path} is a table for {table['synth']!r}, not for {synth!r}: "
            f"add --synth {table['synth']}"
        )
    return table


def load_presets(file: str) -> dict[str, dict[str, float]]:
    """Reads base presets for a table that has none.

    Args:
      file: JSON: {"presets": {NAME: {PARAMETER: raw value}}}, or with
        "parameter_names": [...] and a list of values for each preset.

    Returns:
      Raw values by parameter, by preset.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is of another layout.
    """
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no base presets at {path} (--presets)")
    document = limits.read_json(path)
    presets = document.get("presets") if isinstance(document, dict) else None
    if not isinstance(presets, dict):
        raise ValueError(f'{path} holds no "presets": {{name: values}}')
    columns = document.get("parameter_names")
    read = {}
    for name, values in presets.items():
        if isinstance(values, dict):
            read[name] = values
        elif columns and len(values) == len(columns):
            read[name] = dict(zip(columns, values, strict=True))
        else:
            raise ValueError(
                f"{path}: preset {name!r} is a list of {len(values)}, and "
                f'"parameter_names" names {len(columns or ())}'
            )
    return read


def settings(table: Mapping[str, Any], rate: int) -> engines.RenderSettings:
    """How a table's sweeps are played, at a sample rate in Hz."""
    names = {"held_seconds": "hold", "render_seconds": "duration"}
    names |= {"note": "note", "velocity": "velocity"}
    given = {names[k]: v for k, v in table.items() if k in names}
    return engines.RenderSettings(**given, sample_rate=rate)


def sweeps(
    table: Mapping[str, Any],
    space: ParameterSpace,
    presets: _Presets | None = None,
) -> list[Sweep]:
    """The sweeps of a table.

    Args:
      table: the table, from `load`.
      space: parameters of its synthesizer.
      presets: base presets beside those of the table, from `load_presets`.

    Returns:
      One sweep for each row, attribute by attribute.

    Raises:
      ValueError: naming the row and what is wrong in it: an unknown preset or
        parameter, a value outside [0, 1], nothing that moves.
    """
    steps = table.get("steps", 20)
    if not isinstance(steps, int) or steps < 3:
        raise ValueError(f"steps: {steps} in the table, at least 3 are needed")
    known = {**(presets or {}), **table.get("presets", {})}
    moves = []
    for attribute, rows in table["attributes"].items():
        for row in rows:
            preset = row.get("preset", "default")
            try:
                base = _base(preset, known, space)
                for name, value in row.get("overrides", {}).items():
                    base[_column(name, space)] = _value(name, value)
                values = _moved(base, row, steps, space)
            except ValueError as error:
                raise ValueError(f"{attribute}, {preset!r}: {error}") from None
            moves.append(Sweep(attribute, preset, values))
    return moves


def _base(preset: str, known: _Presets, space: ParameterSpace) -> np.ndarray:
    base = np.array([p.default for p in space.parameters], np.float64)
    if preset not in known and preset != "default":
        raise ValueError(
            f"{unknown('base preset', preset, known)}; --presets FILE takes "
            "the plug-in's"
        )
    columns = _columns(space)
    for name, value in known.get(preset, {}).items():
        # A plug-in has parameters that no preset varies.
        column = columns.get(vst3_binding.plain(name))
        if column is not None:
            base[column] = _value(name, value)
    return base


def _columns(space: ParameterSpace) -> dict[str, int]:
    return {
        vst3_binding.plain(p.name): i for i, p in enumerate(space.parameters)
    }


def _column(name: str, space: ParameterSpace) -> int:
    columns = _columns(space)
    plain = vst3_binding.plain(name)
    if plain not in columns:
        raise ValueError(unknown(f"parameter of {space.name}", plain, columns))
    return columns[plain]


def _value(name: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Written so that a NaN fails.
    if not number or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}, not a number in [0, 1]")
    return float(value)


def _moved(
    base: np.ndarray, row: Mapping[str, Any], steps: int, space: ParameterSpace
) -> np.ndarray:
    moved = row.get("parameters")
    if moved is None and "parameter" in row:
        moved = {row["parameter"]: row.get("interval")}
    if not moved:
        raise ValueError('nothing moves: give "parameters" or "parameter"')
    values = np.tile(base, (steps, 1))
    for name, interval in moved.items():
        if not isinstance(interval, (list, tuple)) or len(interval) != 2:
            raise ValueError(f"{name} moves over {interval!r}, not two values")
        first, last = (_value(name, end) for end in interval)
        values[:, _column(name, space)] = np.linspace(first, last, steps)
    return values.astype(np.float32)
