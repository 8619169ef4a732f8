r"""The whole of the paper for one synthesizer: what `launch.reproduce` runs.

    python -m launch.reproduce --config configs/paper.py:dexed \
        --presets=BANK --nsynth=FOLDER

Names: dexed, diva, talnm (whose proxies alone are in the paper). Five preset
encoders on 10.24 million presets with mn04; a transformer on 2.56 million
with mn20_mel, tuned on hand-crafted presets; three schedules of the estimator
with three seeds each.
Hardware: many CPU cores to render and GPUs to train; see
launch/clusters/README.md.
Figures to compare: in the files of the synthesizers.
"""

from typing import Any

from configs import dexed, diva, talnm

_FILES = {"dexed": dexed, "diva": diva, "talnm": talnm}
SCHEDULES = ("ploss", "mix", "switch")
SEEDS = (0, 1, 2)


def estimator(config: Any, schedule: str, seed: int) -> Any:
    """The same experiment with a schedule and a seed, in a run of its own."""
    config.schedule, config.seed = schedule, seed
    config.name = f"{config.name}_seed{seed}"
    return config


def get_plan(synth: str = "dexed") -> dict[str, Any]:
    """What is run, in order.

    Args:
      synth: "dexed", "diva" or "talnm".

    Returns:
      "name"; "proxies", "tuned" (with a bank of hand-crafted presets only)
      and "matches": lists of configs, as `launch.train` takes them.

    Raises:
      ValueError: for another synthesizer.
    """
    if synth not in _FILES:
        raise ValueError(
            f"no plan for {synth!r}; there are {', '.join(_FILES)}"
        )
    file, rows = _FILES[synth], _FILES[synth].ROWS
    plan = {
        "name": f"paper_{synth}",
        "proxies": [rows[name]() for name in file.ENCODERS],
        "tuned": [],
        "matches": [],
    }
    if "match" not in rows:
        return plan
    plan["proxies"].append(rows["match_proxy"]())
    plan["tuned"].append(rows["match_proxy_finetuned"]())
    plan["matches"] = [
        estimator(rows["match"](), schedule, seed)
        for schedule in SCHEDULES
        for seed in SEEDS
    ]
    return plan
