"""Finds presets that sound like a recording.

    python -m launch.match SOUND.wav --run RUN --out DIR
    python -m launch.match nsynth-test/ --run RUN --out DIR --seconds 60

Takes WAV, FLAC and MP3 files, folders of them, and folders in NSynth's format.
RUN is the run of an estimator, or, with --noestimator, of a proxy. For each
sound a folder in DIR holds the ranked presets (.json; .syx for Dexed,
.vstpreset for a plug-in), their sounds, their distances and a picture. Ctrl-C
keeps the best so far; the same command goes on with the sounds that are not
finished.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

from absl import flags

from datasets import sounds
from launch import cli
from launch.match import output, search
from launch.runs import devices, making, noise, opened

_DEFAULT = search.Options()
_RUN = flags.DEFINE_string("run", None, "Run directory.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for results.", required=True)
_PRESETS = flags.DEFINE_string(
    "presets",
    None,
    "File or folder of banks, in place of the run's.",
)
_PLUGIN = flags.DEFINE_string(
    "plugin",
    None,
    "Path of the synthesizer's VST3 plug-in, in place of the run's.",
)
_NOTE = flags.DEFINE_integer(
    "note",
    None,
    "MIDI note of the sounds; detected when left out.",
    lower_bound=0,
    upper_bound=127,
)
_HOLD = flags.DEFINE_float(
    "hold",
    None,
    "Seconds that the note is held; detected when left out.",
    lower_bound=0.01,
)
_STAGES = {
    name: flags.DEFINE_bool(name, True, f"Whether to do this: {name}.")
    for name in search.STAGES
}
_NUMBERS = {
    name: (flags.DEFINE_float if name == "seconds" else flags.DEFINE_integer)(
        name,
        getattr(_DEFAULT, name),
        text,
    )
    for name, text in (
        ("seconds", "Time for a sound."),
        ("evaluations", "Renders for a sound, in place of seconds; 0: none."),
        ("candidates", "Presets to keep of each sound."),
        ("nearest", "Presets of the bank to render."),
        ("starts", "Starts of gradient descent."),
        ("workers", "Rendering workers, 0: one per core."),
        ("seed", "Of all random choices."),
    )
}


def options() -> search.Options:
    """The options that the flags ask for."""
    numbers = {name: flag.value for name, flag in _NUMBERS.items()}
    stages = tuple(name for name, flag in _STAGES.items() if flag.value)
    return search.Options(stages=stages, **numbers)


def match_file(
    setup: opened.Setup,
    item: sounds.Item,
    how: search.Options,
    folder: pathlib.Path,
    asked: dict[str, Any],
    warm: set[int],
) -> dict[str, Any]:
    """Matches one file and writes what was found; see `match_output.write`.

    Args:
      setup: what the run offers.
      item: the file.
      how: options of the search.
      folder: where to.
      asked: what the result is to be recognised by.
      warm: lengths that searches are compiled for; grows.

    Returns:
      The content of result.json.
    """
    rate = setup.settings.sample_rate
    sound = sounds.read(item.path, rate, most=setup.settings.duration)
    remarks = list(sound.remarks)
    note = item.note if _NOTE.value is None else _NOTE.value
    if note is None:
        note = sounds.pitch(sound.audio, rate)
        if note is None:
            note = setup.settings.note
            remarks.append(f"no clear pitch: rendered at note {note} (--note)")
    hold = item.hold if _HOLD.value is None else _HOLD.value
    if hold is None:
        hold = sounds.hold(sound.audio, rate)
    for remark in remarks:
        print(f"{item.name}: {remark}", flush=True)
    if len(sound.audio) not in warm and not how.evaluations:
        search.warm_up(setup, len(sound.audio), how)
        warm.add(len(sound.audio))
    found = search.search(setup, sound.audio, note, hold, how, label=item.name)
    about = {
        "file": str(item.path),
        "note": note,
        "hold": round(hold, 3),
        "length": round(len(sound.audio) / rate, 3),
        "sample_rate": rate,
        "bank": f"{len(setup.bank.presets)} {setup.bank.source} presets",
        "remarks": remarks,
        "asked": asked,
    }
    return output.write(
        folder,
        item.name,
        found,
        sound.audio,
        setup.space,
        rate,
        about,
        setup.engine().write_state,
    )


def _open(run: str, presets: str | None, plugin: str | None) -> opened.Setup:
    setup = opened.setup(run, plugin)
    if presets:
        setup.config.presets = presets
        source = making.matching_source(setup.config, engine=setup.engine)
        setup = dataclasses.replace(setup, bank=opened.open_bank(source))
    return setup


def _finished(folder: pathlib.Path, asked: dict[str, Any]) -> Any:
    """The result of a sound that was matched in the same way, or None."""
    path = folder / output.RESULT
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    same = result["asked"] == asked and not result["interrupted"]
    return result if same else None


def match(paths: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Matches files and folders.

    Args:
      paths: of audio files and folders.

    Returns:
      What is in the result.json of each, and how many files failed. After
      Ctrl-C, the list ends with the sound at hand.

    Raises:
      ValueError: for mistakes that concern all sounds, or the only one.
      FileNotFoundError: likewise.
    """
    if not paths:
        raise ValueError("no sound given: name audio files or folders of them")
    items, how, out = sounds.find(paths), options(), pathlib.Path(_OUT.value)
    asked = {
        "run": _RUN.value,
        "presets": _PRESETS.value,
        "note": _NOTE.value,
        "hold": _HOLD.value,
        **dataclasses.asdict(how),
        "stages": list(how.stages),
    }
    results: list[dict[str, Any]] = []
    failed, warm = 0, set[int]()
    setup: opened.Setup | None = None
    for item in items:
        folder = out / item.name
        result = _finished(folder, asked)
        if result is None:
            try:
                # Before anything is loaded, so that its mistakes come first.
                sounds.read(item.path, 32_000)
            except cli.EXPECTED as error:
                if len(items) == 1:
                    raise
                failed += 1
                print(f"error: {error}", file=sys.stderr, flush=True)
                continue
            if setup is None:
                setup = _open(_RUN.value, _PRESETS.value, _PLUGIN.value)
            result = match_file(setup, item, how, folder, asked, warm)
            score = result["candidates"][0]["distances"]["a_mean"]
            print(
                f"{item.name}: note {result['note']}, a_mean {score:.3f}, "
                f"{result['renders']:,} renders, {result['seconds']:.1f} s",
                flush=True,
            )
        results.append(result)
        if result["interrupted"]:
            break
    return results, failed


def main(words: list[str]) -> None:
    """Runs the command."""
    print(devices.describe(), flush=True)
    results, failed = match(words)
    out = pathlib.Path(_OUT.value)
    if len(results) == 1:
        print(f"\n{output.candidates(results[0])}")
    summary = output.summarise(results)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    floor = noise.of_run(_RUN.value)
    print(f"\n{output.summary_table(summary)}{floor}\nwrote {out}")
    if results and results[-1]["interrupted"]:
        raise KeyboardInterrupt
    if failed:
        raise ValueError(f"{failed} of the sounds could not be matched")


if __name__ == "__main__":
    cli.run(main, arguments=True)
