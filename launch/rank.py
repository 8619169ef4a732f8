"""Ranks audio models by how well distances tell the order of a sweep.

    python -m launch.rank --synth dexed --models mel128,mn04,transport640

One parameter of a preset moves in 20 steps; the 20 sounds are embedded and
ranked by L1 distance to the first and to the last; Spearman's correlation
with the true order, averaged over presets and attributes, is a model's score.
Writes ranking.json, ranking.md, ranking.tex and ranking.png. Scores are noted
as they are found, so an interrupted study goes on with the same command.
"""

import pathlib

from absl import flags

from datasets import engines
from launch import cli, devices, rank_output, rank_study, rank_table
from proxy import audio, spaces

_FLAGS = cli.flag_values(__name__)
_SYNTH = flags.DEFINE_string(
    "synth", "dexed", "Synthesizer: dexed, diva, talnm.", flag_values=_FLAGS
)
_MODELS = flags.DEFINE_list(
    "models",
    ["mel128", "mfcc40", "mstft", "transport640"],
    "Audio models, separated by commas.",
    flag_values=_FLAGS,
)
_TABLE = flags.DEFINE_string(
    "table",
    None,
    "JSON file of sweeps; the project's own table of the synthesizer if none.",
    flag_values=_FLAGS,
)
_PRESETS = flags.DEFINE_string(
    "presets",
    None,
    "JSON file of the base presets that the table names.",
    flag_values=_FLAGS,
)
_WEIGHTS = flags.DEFINE_multi_string(
    "weights",
    [],
    "Weights instead of downloaded ones: FILE when all models that need some "
    "take the same, else MODEL=FILE, once for each.",
    flag_values=_FLAGS,
)
_PLUGIN = flags.DEFINE_string(
    "plugin", "", "Path of the synthesizer's VST3 plug-in.", flag_values=_FLAGS
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the results; runs/rank_SYNTH.", flag_values=_FLAGS
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Rendering threads; 0: one per core.", flag_values=_FLAGS
)


def weight_files(given: list[str], models: list[str]) -> dict[str, str]:
    """Files of weights by model, from `--weights`.

    Args:
      given: "FILE" or "MODEL=FILE".
      models: names of the audio models.

    Returns:
      Files by name of audio model or of weights.

    Raises:
      ValueError: a bare file while several models take different weights, or
        none takes any; a file that is missing.
    """
    files = {}
    for word in given:
        name, equals, file = word.partition("=")
        if not equals:
            needed = sorted({w for m in models if (w := audio.get(m).weights)})
            if len(needed) != 1:
                raise ValueError(
                    f"--weights {word}: the models take "
                    f"{', '.join(needed) or 'no weights'}; say which it is, "
                    "--weights MODEL=FILE"
                )
            name, file = needed[0], word
        if not pathlib.Path(file).expanduser().exists():
            raise FileNotFoundError(f"no weights at {file} (--weights)")
        files[name] = file
    return files


def main() -> None:
    """Runs the command."""
    print(devices.describe(), flush=True)
    models = list(dict.fromkeys(_MODELS.value))
    if not models:
        raise ValueError("--models names no audio model")
    space = spaces.get(_SYNTH.value)
    table = rank_table.load(_SYNTH.value, _TABLE.value)
    presets = rank_table.load_presets(_PRESETS.value) if _PRESETS.value else {}
    sweeps = rank_table.sweeps(table, space, presets)
    files = weight_files(_WEIGHTS.value, models)

    def renderer(rate: int) -> engines.Renderer:
        return engines.get(
            _SYNTH.value,
            rank_table.settings(table, rate),
            plugin=_PLUGIN.value,
        )

    # A plug-in that is missing is told before weights are downloaded.
    renderer(44_100)
    loaded = rank_study.load_models(models, files)
    folder = pathlib.Path(_OUT.value or f"runs/rank_{_SYNTH.value}")
    result = rank_study.run(
        sweeps,
        loaded,
        renderer,
        folder / "scores.jsonl",
        workers=_WORKERS.value,
    )
    summary = rank_study.summary(result["scores"])
    about = {
        "synth": _SYNTH.value,
        "table": _TABLE.value or f"configs/ranking/{_SYNTH.value}.py",
        "steps": len(sweeps[0].values),
        "sweeps": len(sweeps),
    }
    rank_output.write(folder, result, summary, about)
    print()
    print(rank_output.tables(summary, others=_SYNTH.value == "talnm"))
    for where, reason in result["unfit"].items():
        print(f"not to be ranked by ear: {where}: {reason}")
    print(f"wrote ranking.json, .md, .tex and .png to {folder}")


if __name__ == "__main__":
    cli.run(main)
