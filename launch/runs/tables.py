"""Tables as text."""

from collections.abc import Sequence

import tabulate


def markdown(
    rows: Sequence[Sequence[str]],
    headers: Sequence[str],
    form: str = "github",
) -> str:
    """A table of finished cells, without the columns that nothing is in.

    Args:
      rows: cells; the last ones of a row may be missing.
      headers: titles of the columns.
      form: format of the library tabulate.
    """
    used = [
        i
        for i in range(len(headers))
        if any(len(row) > i and row[i] for row in rows)
    ]
    return tabulate.tabulate(
        [[row[i] for i in used if i < len(row)] for row in rows],
        [headers[i] for i in used],
        tablefmt=form,
        disable_numparse=True,
    )


def interval(summary: dict[str, float], sign: str = "") -> str:
    """A mean and its 95 % interval, such as "0.512 [0.480, 0.551]".

    Args:
      summary: numbers named mean, low and high.
      sign: "+" to show the sign of positive numbers, too.
    """
    mean, low, high = (
        f"{summary[name]:{sign}.3f}" for name in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}]"
