"""The notes of the paper's out-of-domain table, chosen from NSynth names."""

import re
from collections.abc import Sequence

# Family and source of the ten columns (Combes et al. 2025, web supplement).
COLUMNS = (
    ("bass", "electronic"),
    ("bass", "synthetic"),
    ("brass", "acoustic"),
    ("flute", "synthetic"),
    ("guitar", "electronic"),
    ("keyboard", "electronic"),
    ("mallet", "acoustic"),
    ("reed", "acoustic"),
    ("string", "acoustic"),
    ("vocal", "acoustic"),
)
_SOURCES = ("acoustic", "electronic", "synthetic")
_NAME = re.compile(rf"(.+)_({'|'.join(_SOURCES)})_\d+-(\d+)-(\d+)")
_PITCH = 60


def pick(names: Sequence[str]) -> list[int | None]:
    """Chooses a note for each of `COLUMNS`.

    Args:
      names: NSynth names, such as "bass_electronic_018-060-100".

    Returns:
      Position of the note of that family whose pitch is nearest to 60; of
      its source when there is any, else of another; None when the family is
      missing. Ties go to the higher velocity, then to the first.
    """
    notes = []
    for position, name in enumerate(names):
        if found := _NAME.fullmatch(name):
            family, source, pitch, velocity = found.groups()
            notes.append((family, source, int(pitch), int(velocity), position))
    chosen: list[int | None] = []
    for family, source in COLUMNS:
        ranked = sorted(
            (
                s != source,
                abs(pitch - _PITCH),
                -velocity,
                position,
            )
            for f, s, pitch, velocity, position in notes
            if f == family
        )
        chosen.append(ranked[0][-1] if ranked else None)
    return chosen
