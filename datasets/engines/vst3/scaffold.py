"""A first parameter table for a new synthesizer, from its plug-in.

Kinds and cardinalities are read from value texts, as many plug-ins say of
every parameter that it is continuous; defaults are the initial values. The
result is a module to be edited by hand: a plug-in does not tell which of its
parameters a single note can hear, nor which values are worth drawing.
"""

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from datasets.engines.vst3 import binding as vst3_binding
from proxy.space import Kind

# Above as many different texts, they are those of a continuous parameter.
_MOST_CHOICES = 64
_SWITCHES = (
    {"off", "on"},
    {"0", "1"},
    {"no", "yes"},
    {"false", "true"},
    {"disabled", "enabled"},
)
_NUMBER = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*[a-z%°]{0,5}\s*", re.IGNORECASE)
# What one held note cannot hear, or what only makes everything louder.
_HELD = re.compile(
    r"(.*_)?(master|main|output)(_(volume|level|gain|output))?"
    r"|volume|gain|(.*_)?(voices|polyphony|unison_voices|pitch_?bend.*"
    r"|bend_range|portamento.*|glide.*|mono_?mode|legato)"
)


@dataclasses.dataclass(frozen=True)
class Guess:
    """What a plug-in's parameter seems to be.

    Attributes:
      name: name of the parameter in the space.
      kind: kind of parameter.
      default: the plug-in's initial raw value.
      values: raw values of a discrete parameter, one for each text; None for
        a continuous one.
      texts: what the plug-in shows at these values; at 0 and 1 for a
        continuous one.
      regular: whether `values` are evenly spaced from 0 to 1.
      used: whether a preset is to vary it.
    """

    name: str
    kind: Kind
    default: float
    values: tuple[float, ...] | None
    texts: tuple[str, ...]
    regular: bool
    used: bool


def guess(name: str, value: float, texts: Sequence[str]) -> Guess:
    """Guesses what a parameter is.

    Args:
      name: name of the parameter in the space.
      value: initial raw value.
      texts: value texts at evenly spaced raw values from 0 to 1.

    Returns:
      The guess, not used when its text never changes.
    """
    last = len(texts) - 1
    groups = itertools.groupby(range(len(texts)), lambda i: texts[i])
    runs = [(text, list(places)) for text, places in groups]
    shown = tuple(text for text, _ in runs)
    distinct = len(set(shown)) == len(shown)
    if len(runs) < 2 or len(runs) > _MOST_CHOICES or not distinct:
        ends = (texts[0], texts[-1])
        used = len(runs) > 1 and not _HELD.fullmatch(name)
        return Guess(name, "numerical", value, None, ends, True, used)
    count = len(runs)
    grid = [i / (count - 1) for i in range(count)]
    regular = all(
        texts[round(raw * last)] == text
        for raw, text in zip(grid, shown, strict=True)
    )
    middles = [(places[0] + places[-1]) / 2 / last for _, places in runs]
    values = grid if regular else [round(m, 3) for m in middles]
    kind: Kind = "categorical"
    lower = {text.strip().lower() for text in shown}
    if lower in _SWITCHES and regular:
        kind = "binary"
    elif all(_NUMBER.fullmatch(text) for text in shown):
        kind = "numerical"
    used = not _HELD.fullmatch(name)
    return Guess(name, kind, value, tuple(values), shown, regular, used)


def guess_all(
    parameters: Sequence[Mapping[str, Any]], held: Collection[str] = ()
) -> list[tuple[int, Guess]]:
    """Guesses what the parameters of a plug-in are.

    Args:
      parameters: as `vst3.examine` gives them.
      held: names, as the plug-in shows them or qualified, of parameters that
        presets are not to vary.

    Returns:
      (position in the plug-in's list, guess) of those that belong to a
      preset.

    Raises:
      ValueError: a name in `held` is none of the plug-in's.
    """
    places = [i for i, p in enumerate(parameters) if "texts" in p]
    shown = [parameters[i]["name"] for i in places]
    names = vst3_binding.qualified(shown)
    plain_held = {vst3_binding.plain(name) for name in held}
    known = {vst3_binding.plain(name) for name in [*shown, *names]}
    if unknown := sorted(plain_held - known):
        raise ValueError(f"the plug-in has no parameter {', '.join(unknown)}")
    out = []
    for place, name, text in zip(places, names, shown, strict=True):
        parameter = parameters[place]
        found = guess(name, parameter["value"], parameter["texts"])
        if {vst3_binding.plain(name), vst3_binding.plain(text)} & plain_held:
            found = dataclasses.replace(found, used=False)
        out.append((place, found))
    return out


def _number(value: float) -> str:
    return repr(round(float(value), 6))


def _call(found: Guess) -> list[str]:
    """Constructor and arguments, the constructor first."""
    default, count = _number(found.default), len(found.values or ())
    quoted = '"' + found.name.replace('"', "") + '"'
    used = [] if found.used else ["used=False"]
    if found.values is None:
        return ["numerical", quoted, default, *used]
    if found.kind == "binary":
        return ["binary", quoted, default, *used]
    values = f"({', '.join(_number(v) for v in found.values)})"
    if found.kind == "numerical":
        steps = str(count) if found.regular else values
        return ["stepped", quoted, default, steps, *used]
    if found.regular:
        return ["categorical", quoted, default, str(count), *used]
    kind = ['"categorical"', default]
    return ["Parameter", quoted, *kind, f"values={values}", *used]


def _comment(found: Guess) -> Iterator[str]:
    if found.values is None:
        if found.texts[0] == found.texts[1]:
            yield "# Shows one text only: it is not known what it does."
        return
    if found.kind == "binary":
        return
    line = "#"
    for i, text in enumerate(found.texts):
        word = text.strip() + ("," if i < len(found.texts) - 1 else "")
        if len(line) + 1 + len(word) > 71 and line != "#":
            yield line
            line = "#"
        line += f" {word}"
    yield line


def _lines(found: Guess) -> Iterator[str]:
    for comment in _comment(found):
        yield f"        {comment}"
    constructor, *arguments = _call(found)
    line = f"        {constructor}({', '.join(arguments)}),"
    if len(line) <= 80:
        yield line
        return
    yield f"        {constructor}("
    line = f"            {', '.join(arguments)}"
    if len(line) <= 80:
        yield line
    else:
        yield from (f"            {argument}," for argument in arguments)
    yield "        ),"


def source(
    name: str,
    info: Mapping[str, Any],
    held: Collection[str] = (),
) -> str:
    """The module of a new parameter space.

    Args:
      name: name of the space.
      info: as `vst3.examine` gives it.
      held: see `guess_all`.

    Returns:
      Python source; `proxy.spaces` finds it as proxy/spaces/NAME.py.

    Raises:
      ValueError: the plug-in has no parameter, or the name will not do.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"--name={name}: use lower-case letters, digits and underscores, "
            "a letter first"
        )
    guesses = guess_all(info["parameters"], held)
    if not guesses:
        raise ValueError(f"{info['name']} has no parameters to vary")
    used = sum(found.used for _, found in guesses)
    kept = [place for place, _ in guesses]
    gaps = sorted(set(range(max(kept))) - set(kept))
    makers = sorted({_call(found)[0] for _, found in guesses} | {"space"})
    lines = [
        f'"""{info["name"]} {info["version"]}: {len(guesses)} parameters, '
        f"{used} of them varied.",
        "",
        "Written by `python -m launch.plugin scaffold`, to be edited by hand.",
        '"""',
        "",
        f"from proxy.space import {', '.join(sorted(makers, key=_import_key))}",
        "",
        "SPACE = space(",
        f'    "{name}",',
        "    [",
        *(line for _, found in guesses for line in _lines(found)),
        "    ],",
    ]
    if gaps:
        lines.append(f"    missing={_ranges(gaps)},")
    return "\n".join([*lines, ")", ""])


def _import_key(name: str) -> tuple[bool, str]:
    """Classes before functions, as the linter wants imports sorted."""
    return not name[0].isupper(), name


def _ranges(numbers: Sequence[int]) -> str:
    """A tuple of ascending numbers, as Python source."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [
        str(a) if a == b else f"*range({f'{a}, ' if a else ''}{b + 1})"
        for a, b in runs
    ]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
