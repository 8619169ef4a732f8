"""VST3 plug-ins: look into one, start a synthesizer from it, measure it.

    python -m launch.plugin inspect PATH [--synth=NAME]
    python -m launch.plugin scaffold PATH --name=NAME [--hold=Volume,Voices]
    python -m launch.plugin noise PATH [--synth=NAME]

`inspect` lists a plug-in's parameters, says which of them are those of a known
synthesizer, and which of those change nothing. `scaffold` writes a first table
of a new one's parameters, to be edited by hand; proxy/spaces/README.md goes on
from there. `noise` says how far renders of the same preset differ.
"""

import pathlib
from typing import Any

import tabulate
from absl import flags

import proxy.spaces
from datasets import engines
from datasets.engines.vst3 import binding as vst3_binding
from datasets.engines.vst3 import engine as vst3
from datasets.engines.vst3 import process
from datasets.engines.vst3 import scaffold as vst3_scaffold
from launch import cli
from launch.runs import noise

_SYNTH = flags.DEFINE_string(
    "synth",
    None,
    "Synthesizer whose parameters to look for (default: the most alike).",
)
_NAME = flags.DEFINE_string("name", None, "Name of the new synthesizer.")
_HOLD = flags.DEFINE_list("hold", [], "Parameters that presets do not vary.")
_FOLDER = flags.DEFINE_string(
    "folder",
    str(pathlib.Path(proxy.spaces.__file__).parent),
    "Where to write the table.",
)
_PRESETS = flags.DEFINE_integer(
    "presets", 8, "Presets to render.", lower_bound=2
)
_SAMPLE_RATE = flags.DEFINE_integer(
    "sample_rate", 32_000, "To render at, in Hz."
)
_ISOLATION = flags.DEFINE_enum(
    "isolation",
    None,
    ["reset", "flush", "process"],
    "Render contract (default: the synthesizer's).",
)
_WARM_UP = flags.DEFINE_float(
    "warm_up",
    None,
    "Seconds, at most, until a first sound (default: the synthesizer's).",
)


def closest(names: list[str]) -> str | None:
    """The known synthesizer that a plug-in looks like.

    Args:
      names: names of the plug-in's parameters.

    Returns:
      The one most of whose varied parameters are there; None when it is less
      than half of them.
    """

    def share(synth: str) -> float:
        space = proxy.spaces.get(synth)
        missing = set(vst3_binding.bind(space, names).missing)
        return sum(name not in missing for name in space.names) / space.num_used

    best = max(proxy.spaces.names(), key=share)
    return best if share(best) >= 0.5 else None


def _shape(guess: vst3_scaffold.Guess) -> str:
    """What a parameter seems to be, in a few words."""
    if guess.values is None:
        return "continuous" if guess.texts[0] != guess.texts[1] else "one text"
    kind = "steps" if guess.kind == "numerical" else "choices"
    texts = ", ".join(guess.texts[:4])
    more = ", ..." if len(guess.texts) > 4 else ""
    return f"{len(guess.values)} {kind}: {texts}{more}"[:60]


def describe(info: dict[str, Any], synth: str | None) -> str:
    """A plug-in's parameters, which matched and which did not.

    Args:
      info: see `vst3.examine`.
      synth: synthesizer whose parameters to look for, None for the most
        alike.

    Returns:
      Text, several lines.

    Raises:
      ValueError: there is no such synthesizer.
    """
    parameters = info["parameters"]
    guesses = dict(vst3_scaffold.guess_all(parameters))
    names = [p["name"] for p in parameters]
    synth = synth or closest(names)
    lines = [
        f"{info['name']} {info['version']} by {info['maker']}: "
        f"{len(guesses)} parameters, and {len(names) - len(guesses)} that are "
        "no part of a preset (bypass, program, panic, MIDI controllers)"
    ]
    head = ["index", "plug-in's name", "initial", "looks like"]
    rows = {
        i: [i, names[i], f"{parameters[i]['value']:.3f}", _shape(guess)]
        for i, guess in guesses.items()
    }
    if not synth:
        lines += [
            tabulate.tabulate(rows.values(), head, disable_numparse=True),
            "looks like no known synthesizer: start a table of it with "
            "scaffold PATH --name=NAME",
        ]
        return "\n".join(lines)
    space = proxy.spaces.get(synth)
    binding = vst3_binding.bind(space, names)
    for row, place in binding.positions.items():
        if place in rows:
            rows[place].append(space.parameters[row].name)
    head.append(f"in {synth}")
    lines.append(tabulate.tabulate(rows.values(), head, disable_numparse=True))
    used = {p.name for p in space.used}
    lost = [name for name in binding.missing if name in used]
    lines.append(
        f"{synth}: {space.num_used - len(lost)} of {space.num_used} varied "
        f"parameters matched, {space.num_parameters - len(binding.missing)} "
        f"of {space.num_parameters} in all"
    )
    for name in binding.missing:
        held = "" if name in used else ", held at its default"
        lines.append(
            f"  not matched: {name}{held} (near: {binding.near(name)})"
        )
    lines += [f"  not in {synth}: {names[place]}" for place in binding.extra]
    return "\n".join(lines)


def unheard(path: str, names: list[str], synth: str | None) -> str:
    """What to say of parameters that a plug-in ignores.

    Args:
      path: path of the plug-in.
      names: names of its parameters.
      synth: as for `describe`.

    Returns:
      A line; "" for a plug-in that is no known synthesizer, or that lacks
      parameters.
    """
    synth = synth or closest(names)
    if not synth:
        return ""
    space = proxy.spaces.get(synth)
    if {p.name for p in space.used} & set(
        vst3_binding.bind(space, names).missing
    ):
        return ""
    renderer = vst3.get(synth, engines.RenderSettings(), path)
    try:
        dead = renderer.dead()
    finally:
        renderer.close()
    if not dead:
        return "every varied parameter changes its sound or its state"
    return (
        f"warning: {len(dead)} of {space.num_used} varied parameters change "
        f"neither its sound nor its state: {', '.join(dead)}"
    )


def scaffold(path: str, name: str | None) -> tuple[pathlib.Path, int]:
    """Writes the parameter table of a new synthesizer.

    Returns:
      The table, and how many parameters vary in it.

    Raises:
      ValueError: there is no name, or it is taken.
    """
    if not name:
        raise ValueError("scaffold needs --name=NAME for the new synthesizer")
    target = pathlib.Path(_FOLDER.value) / f"{name}.py"
    if target.exists():
        raise ValueError(f"{target} is there already; choose another --name")
    info = vst3.examine(path)
    target.write_text(vst3_scaffold.source(name, info, _HOLD.value))
    guesses = vst3_scaffold.guess_all(info["parameters"], _HOLD.value)
    return target, sum(found.used for _, found in guesses)


def measure(path: str, synth: str | None) -> dict[str, Any]:
    """Measures a plug-in's noise floor; see `noise.measure`.

    Raises:
      ValueError: it looks like no known synthesizer.
    """
    if synth is None:
        worker = process.Worker(path, process.Contract())
        synth = closest([p["name"] for p in worker.info["parameters"]])
        worker.close()
    if synth is None:
        raise ValueError(
            f"{path} looks like no known synthesizer: name it with --synth, "
            "or write its parameter table with scaffold first"
        )
    renderer = vst3.get(
        synth,
        engines.RenderSettings(sample_rate=_SAMPLE_RATE.value),
        path,
        {"isolation": _ISOLATION.value, "warm_up": _WARM_UP.value},
    )
    try:
        return noise.measure(renderer, count=_PRESETS.value)
    finally:
        renderer.close()


def main(words: list[str]) -> None:
    """Runs the command."""
    commands = ("inspect", "scaffold", "noise")
    if len(words) != 2 or words[0] not in commands:
        raise ValueError(f"say {' or '.join(commands)}, and the plug-in's path")
    command, path = words[0], str(pathlib.Path(words[1]).expanduser())
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"there is no plug-in at {path}")
    if command == "inspect":
        info = vst3.examine(path)
        print(describe(info, _SYNTH.value), flush=True)
        names = [p["name"] for p in info["parameters"]]
        if told := unheard(path, names, _SYNTH.value):
            print(told)
    elif command == "scaffold":
        target, varied = scaffold(path, _NAME.value)
        if not varied:
            print(
                "warning: nothing would vary, as the plug-in does not tell "
                "what its parameters' values mean: say in the table which "
                "ones presets are to vary"
            )
        print(
            f"wrote {target}: edit it, then build data with --config.synth="
            f"{_NAME.value} --config.plugin={path}"
        )
    else:
        print(noise.table(measure(path, _SYNTH.value)))


if __name__ == "__main__":
    cli.run(main, arguments=True)
