"""Writes the weights of a proxy's run to a file of `proxy.pretrained`.

    python -m launch.export --run RUN --output=dexed.safetensors

In half precision, with all that applying them needs. `--run pretrained:dexed`
opens the file wherever a run is expected: its data are then a few thousand
presets of the fitted prior, made at first use, and the bank of `--presets`.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import traverse_util

from datasets import files
from launch import cli
from launch.runs import opened
from proxy import audio, pretrained, spaces

_RUN = flags.DEFINE_string("run", None, "Run of a proxy.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ["best", "last"], "Which checkpoint."
)


def export(run: str, which: str) -> tuple[bytes, float]:
    """The content of a file, and what half precision costs.

    Args:
      run: directory of the run.
      which: "best" or "last" checkpoint.

    Returns:
      The content, and the mean absolute difference of predictions.

    Raises:
      ValueError: when a weight has no half, or no prior comes with the
        project to draw the user's presets from.
    """
    proxy = opened.open_proxy(run, which)
    config = proxy.config
    space = spaces.get(config.synth)
    prior = pretrained.prior(space.name)
    variables = jax.tree.map(np.asarray, proxy.variables)
    with np.errstate(over="ignore"):
        halves = jax.tree.map(lambda x: x.astype(np.float16), variables)
    flat = traverse_util.flatten_dict(halves, sep="/")
    for name, array in flat.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{run}: {name} does not fit half precision")
    sizes = {k: v for k, v in config.sizes.items() if v is not None}
    about = {
        "encoder": config.encoder,
        "space": space.name,
        "dimension": str(audio.get(config.audio_model).dimension),
        "audio_model": config.audio_model,
        "sizes": json.dumps(sizes),
        "render": json.dumps(dict(config.render)),
    }
    u = np.random.default_rng(0).random((256, prior.uniforms), np.float32)
    relaxed = space.to_relaxed(jnp.asarray(prior.from_uniform(u)))
    before, after = (
        proxy.encoder.apply(
            jax.tree.map(jnp.float32, weights), relaxed, train=False
        )
        for weights in (variables, halves)
    )
    return pretrained.encode(flat, about), float(jnp.abs(before - after).mean())


def main() -> None:
    """Runs the command."""
    path = pathlib.Path(_OUTPUT.value or "")
    content, lost = export(_RUN.value or "", _CHECKPOINT.value)
    files.write_atomically(path, content)
    print(
        f"wrote {path}, {len(content) / 1e6:.1f} MB; half precision moves "
        f"predictions by {lost:.2g}"
    )


if __name__ == "__main__":
    cli.run(main)
