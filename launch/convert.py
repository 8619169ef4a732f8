"""Turns a published checkpoint into a run of this project.

    python -m launch.convert --checkpoint FILE.ckpt --synth dexed --encoder tfm

FILE is a PyTorch Lightning checkpoint of the paper's code. It is read without
PyTorch and cannot run code: only tensors are rebuilt, any other object in it
becomes an inert placeholder. The run it is turned into can be evaluated,
fine-tuned and used for matching like any other.
"""

import os
import pathlib
from typing import Any

from absl import flags

from configs import common
from datasets.weights import pickles
from launch import Config, cli
from launch.runs import checkpoints
from proxy import audio, encoders, spaces
from proxy.published import encoders as published

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "Lightning checkpoint of the paper's code."
)
_SYNTH = flags.DEFINE_string("synth", "", "dexed, diva or talnm.")
_ENCODER = flags.DEFINE_string("encoder", "", "Encoder, e.g. tfm.")
_AUDIO_MODEL = flags.DEFINE_string(
    "audio_model", "mn04", "Audio model whose embeddings it predicts."
)
_HEADS = flags.DEFINE_integer(
    "heads", None, "Attention heads, where not the paper's 8.", lower_bound=1
)
_RUN = flags.DEFINE_string(
    "run", None, "Folder to write; runs/<synth>_<encoder>_published if left."
)


def convert(
    path: str | os.PathLike[str],
    synth: str,
    encoder: str,
    audio_model: str = "mn04",
    run: str | None = None,
    **overrides: Any,
) -> Config:
    """Writes a run whose only checkpoint holds published weights.

    Args:
      path: the Lightning checkpoint.
      synth: name of the checkpoint's parameter space.
      encoder: name of the checkpoint's encoder.
      audio_model: name of the audio model whose embeddings it predicts.
      run: folder to write.
      **overrides: sizes that the tensors do not tell.

    Returns:
      The run's config. Its optimizer has not moved yet and its learning
      rate is 0: to train on, start from one of the experiments.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: when the file is not such a checkpoint, does not fit the
        encoder and the space, or the run exists.
    """
    space = spaces.get(synth)
    encoders.get(encoder)
    model = audio.get(audio_model)
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        sizes, variables = published.from_published(
            encoder, space, pickles.read_lightning(path), **overrides
        )
    except ValueError as error:
        message = str(error)
        prefix = "" if str(path) in message else f"{path}: "
        raise ValueError(prefix + message) from error
    dimension = sizes.pop("dimension")
    if dimension != model.dimension:
        models = map(audio.get, audio.names())
        fitting = [m.name for m in models if m.dimension == dimension]
        raise ValueError(
            f"{path} predicts {dimension} numbers, {audio_model} has "
            f"{model.dimension}; name its model with --audio_model "
            f"({', '.join(fitting) or 'none here has as many'})"
        )
    config = common.proxy_config(synth, encoder)
    config.name = f"{synth}_{encoder}_published"
    config.run = run or config.run
    config.audio_model = audio_model
    config.data = f"data/{synth}_{audio_model}"
    config.sizes.update(sizes)
    folder = pathlib.Path(config.run)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists; remove it or choose another --run")
    checkpoints.publish(config, variables)
    return config


def main() -> None:
    """Runs the command."""
    for holder in (_CHECKPOINT, _SYNTH, _ENCODER):
        if not holder.value:
            raise ValueError(f"--{holder.name} is missing; see --help")
    heads = {} if _HEADS.value is None else {"heads": _HEADS.value}
    flag_holders = (_CHECKPOINT, _SYNTH, _ENCODER, _AUDIO_MODEL, _RUN)
    given: list[Any] = [holder.value for holder in flag_holders]
    config = convert(*given, **heads)
    sizes = ", ".join(f"{k} {v}" for k, v in config.sizes.items() if v)
    print(f"{config.encoder} on {config.synth} ({sizes})")
    print(f"next: python -m launch.evaluate --run {config.run}")


if __name__ == "__main__":
    cli.run(main)
