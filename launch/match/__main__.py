"""Finds presets that sound like a recording.

    python -m launch.match SOUND.wav
    python -m launch.match nsynth-test/ --run RUN --out DIR --seconds 60

Takes WAV, FLAC and MP3 files, folders of them, and folders in NSynth's format.
RUN is the run of an estimator or of a proxy; when left out, the proxy of Dexed
that comes with the project, and presets drawn from its prior. For each
sound a folder in DIR holds the ranked presets (.json; .syx for Dexed,
.vstpreset for a plug-in), their sounds, their distances and a picture. Ctrl-C
keeps the best so far; the same command goes on with the sounds that are not
finished.
"""

import dataclasses
import functools
import json
import pathlib

from absl import flags

from datasets import sounds
from launch import cli
from launch.match import files, judge, output
from launch.runs import checkpoints, devices, noise

_RUN = flags.DEFINE_string("run", "pretrained:dexed", "Run directory.")
_OUT = flags.DEFINE_string("out", "matches", "Folder for results.")
_PRESETS = flags.DEFINE_string(
    "presets", None, "File or folder of banks, in place of the run's."
)
_PLUGIN = flags.DEFINE_string(
    "plugin", None, "Path of the VST3 plug-in, in place of the run's."
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
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Time for a sound.")
_EVALUATIONS = flags.DEFINE_integer(
    "evaluations", 0, "Renders for a sound, in place of seconds; 0: none."
)
_CANDIDATES = flags.DEFINE_integer(
    "candidates", 5, "Presets to keep of each sound."
)
_NEAREST = flags.DEFINE_integer("nearest", 64, "Presets of the bank to render.")
_SCREENED = flags.DEFINE_integer(
    "screened",
    4,
    "Children proposed for each one rendered; 1: the proxy chooses none.",
)
_LEVEL = flags.DEFINE_bool(
    "level", True, "Whether presets are brought to the level of the sound."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Rendering workers, 0: one per core."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all random choices.")
_STAGES = [
    flags.DEFINE_bool(
        stage,
        None if stage == "estimator" else True,
        f"Whether to do this: {stage}"
        + (" (default: if the run is one)." if stage == "estimator" else "."),
    )
    for stage in judge.STAGES
]


def main(words: list[str]) -> None:
    """Runs the command."""
    print(devices.describe(), flush=True)
    if not words:
        raise ValueError("no sound given: name audio files or folders of them")
    run = checkpoints.place(_RUN.value)
    kind = checkpoints.read_config(run).kind
    wanted = {flag.name: flag.value for flag in _STAGES}
    if wanted["estimator"] is None:
        wanted["estimator"] = kind == "estimator"
    options = judge.Options(
        stages=tuple(stage for stage, value in wanted.items() if value),
        seconds=_SECONDS.value,
        evaluations=_EVALUATIONS.value,
        candidates=_CANDIDATES.value,
        nearest=_NEAREST.value,
        screened=_SCREENED.value,
        level=_LEVEL.value,
        workers=_WORKERS.value,
        seed=_SEED.value,
    )
    asked = {
        "run": _RUN.value,
        "plugin": _PLUGIN.value,
        "presets": _PRESETS.value,
        "note": _NOTE.value,
        "hold": _HOLD.value,
        **dataclasses.asdict(options),
        "stages": list(options.stages),
    }
    out = pathlib.Path(_OUT.value)

    open_setup = functools.partial(
        files.open_setup, run, _PLUGIN.value, _PRESETS.value
    )
    items = sounds.find(words)
    matched, interrupted = [], False
    try:
        for result in files.match(items, out, open_setup, options, asked):
            matched.append(result)
    except KeyboardInterrupt:
        interrupted = True
    results = [result for result in matched if result is not None]
    if interrupted and not results:
        raise KeyboardInterrupt
    if len(results) == 1:
        print(f"\n{output.candidates(results[0])}")
    summary = output.summarise(results)
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    floor = noise.of_run(run)
    print(f"\n{output.summary_table(summary)}{floor}\nwrote {out}")
    if interrupted or (results and results[-1]["interrupted"]):
        raise KeyboardInterrupt
    if failed := len(matched) - len(results):
        raise ValueError(f"{failed} of the sounds could not be matched")


if __name__ == "__main__":
    cli.run(main, arguments=True)
