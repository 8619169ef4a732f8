r"""Trains many small encoders at once: seeds and learning rates side by side.

    python -m launch.population --config configs/quickstart.py \
        --seeds=0,1,2,3 --learning_rates=3e-3,6e-3

Every seed meets every learning rate. The members are stepped together by
`vmap` and spread over the devices of this process; each computes what
`launch.train` would compute for it alone. It can be interrupted like
`launch.train`. At the end every member is an ordinary run, with its best and
its last checkpoint, below `config.run`, for `launch.evaluate` and for
fine-tuning.
"""

from collections.abc import Sequence

import numpy as np
import tabulate
from absl import flags

from launch import cli
from launch.runs import devices
from launch.train import members

_CONFIG = cli.define_config()
_SEEDS = flags.DEFINE_list(
    "seeds", [], "Seeds, e.g. 0,1,2; empty for the config's."
)
_RATES = flags.DEFINE_list(
    "learning_rates",
    [],
    "Learning rates, e.g. 1e-3,3e-3; empty for the config's.",
)


def table(results: Sequence[members.Result]) -> str:
    """The members as a Markdown table, in the order given."""
    rows = [
        [
            r.seed,
            f"{r.learning_rate:g}",
            f"{r.mrr:.4f}",
            f"{r.step:,}",
            f"step {r.diverged:,}" if r.diverged else "",
            r.run,
        ]
        for r in results
    ]
    head = ("seed", "learning rate", "best MRR", "at step", "diverged", "run")
    return tabulate.tabulate(
        rows, head, tablefmt="github", disable_numparse=True
    )


def main() -> None:
    """Runs the command."""
    print(devices.describe(), flush=True)
    results = members.train(
        _CONFIG.value, cli.numbers(_SEEDS, int), cli.numbers(_RATES, float)
    )
    results.sort(key=lambda r: -np.nan_to_num(r.mrr, nan=-1))
    print(f"\n{table(results)}")
    print(f"\nnext: python -m launch.evaluate --run {results[0].run}")


if __name__ == "__main__":
    cli.run(main)
