r"""The whole of the paper for one synthesizer: what `launch.reproduce` runs.

    python -m launch.reproduce --config configs/paper.py:dexed \
        --presets=BANK --nsynth=FOLDER

Names: dexed, diva, talnm (whose proxies alone are in the paper). Five preset
encoders on 10.24 million presets with mn04; a transformer on 2.56 million
with mn20_mel, tuned on hand-crafted presets; three schedules of the estimator
with three seeds each.
Hardware: many CPU cores to render and GPUs to train; see
launch/clusters/README.md.
Figures to compare: in the docstrings of the experiments' own files.
"""

import importlib
from typing import Any

ENCODERS = ("mlp", "hn", "hnpt", "hnptgru", "tfm")
SCHEDULES = ("ploss", "mix", "switch")
SEEDS = (0, 1, 2)


def _config(file: str, *words: str) -> Any:
    return importlib.import_module(f"configs.{file}").get_config(*words)


def seeded(config: Any, seed: int) -> Any:
    """The same experiment with another seed, in a run of its own."""
    config.seed = seed
    config.name = f"{config.name}_seed{seed}"
    config.run = f"runs/{config.name}"
    return config


def get_plan(synth: str = "dexed") -> dict[str, Any]:
    """What is run, in order.

    Args:
      synth: "dexed", "diva" or "talnm".

    Returns:
      "name"; "proxies", "tuned" (with a bank of hand-crafted presets only)
      and "matches": lists of configs, as `launch.train` takes them.
    """
    plan = {
        "name": f"paper_{synth}",
        "proxies": [_config(f"{synth}_{name}") for name in ENCODERS],
        "tuned": [],
        "matches": [],
    }
    if synth == "talnm":
        return plan
    plan["proxies"].append(_config(f"{synth}_match_proxy"))
    plan["tuned"].append(_config(f"{synth}_match_proxy", "finetuned"))
    plan["matches"] = [
        seeded(_config(f"{synth}_match", schedule), seed)
        for schedule in SCHEDULES
        for seed in SEEDS
    ]
    return plan
