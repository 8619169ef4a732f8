"""Banks of hand-crafted presets, their level gate and their split.

voices = reading.load("banks/", spaces.get("dexed"))
voices = bank.gate(voices, engines.get("dexed"), workers=4)
print(voices.report)
parts = splits.split(voices.presets)
writing.save("match.syx", voices.presets[:1], ["MATCH"], voices.space)
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tabulate
import tqdm
from jaxtyping import Float

from datasets import engines
from proxy.space import ParameterSpace

Counts = Mapping[str, int]


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


def gate(
    bank: Bank,
    renderer: engines.Renderer,
    *,
    workers: int = 1,
    progress: bool = False,
) -> Bank:
    """Renders every preset and drops those that are silent or too loud.

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
    size = workers * max(renderer.batch, 16)
    clips = np.empty((size, renderer.settings.samples), np.float32)
    with tqdm.tqdm(
        desc="rendering hand-crafted presets",
        total=len(bank),
        disable=not progress,
    ) as bar:
        for start in range(0, len(bank), size):
            part = values[start : start + size]
            reasons = renderer.render_into(
                list(clips[: len(part)]), part, workers=workers
            )
            bar.update(len(part))
            for row, reason in enumerate(reasons, start):
                if reason is None:
                    kept.append(row)
                    continue
                dropped[reason] += 1
                if reason not in engines.UNFIT:
                    name = bank.names[row]
                    failed.append(f"preset {name!r} set aside: {reason}")
    report = dataclasses.replace(
        bank.report,
        kept=len(kept),
        dropped=dict(dropped),
        warnings=(*bank.report.warnings, *failed),
    )
    return dataclasses.replace(bank.take(kept), report=report)
