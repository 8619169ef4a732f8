"""Presets to files: DX7 voices as system-exclusive messages, and JSON."""

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from datasets.engines import dexed
from datasets.presets import sysex
from proxy.space import ParameterSpace


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

    `reading.load` reads them back exactly.
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
      space: space of the presets.

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
