r"""Searches hyper-parameters: Optuna, any number of processes in one study.

    python -m launch.sweep --config configs/dexed.py \
        --space configs/sweeps/hn.py --trials=200 \
        --config.num_train=1000000 --config.epochs=10

Start the same command as often as there are devices, on as many machines as
you like: together they run exactly `--trials` trials. The study lives in a
journal file in `--out`, or behind `--storage`: a journal file on a shared
folder, sqlite:///FILE, or postgresql://USER@HOST/NAME for machines without
one. A trial that was interrupted is taken up again by the same command.

The first trials are points of a scrambled Sobol sequence, the later ones come
from TPE; after every epoch, the median or the Hyperband rule may end a trial.
With `--seeds=0,1,2` a trial is a population of these seeds, stepped together,
and its score their mean. The score is the best validation MRR. When all
trials are done, the best config is written to `<out>/best.py`.
"""

import pathlib

import optuna
from absl import flags
from optuna.trial import TrialState

from configs import ranges
from launch import cli
from launch.runs import devices
from launch.sweep import study as studies
from launch.sweep import trial

_CONFIG = cli.define_config()

_SPACE = flags.DEFINE_string("space", None, "Search space file.", required=True)

_TRIALS = flags.DEFINE_integer(
    "trials", 50, "How many trials all processes run together.", lower_bound=1
)

_START = flags.DEFINE_integer(
    "start",
    None,
    "Of these, how many are Sobol points; a quarter when not given.",
    lower_bound=0,
)

_PRUNER = flags.DEFINE_enum(
    "pruner",
    "median",
    ["median", "hyperband", "none"],
    "What ends hopeless trials.",
)

_SEEDS = flags.DEFINE_list(
    "seeds",
    [],
    "Seeds of a trial, trained together; empty for the config's one.",
)

_OUT = flags.DEFINE_string("out", None, "Folder, sweeps/<config.name> if none.")

_STORAGE = flags.DEFINE_string(
    "storage", None, "Journal file or database URL; <out>/journal.log if none."
)


def main() -> None:
    """Runs the command."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config, trials = _CONFIG.value, _TRIALS.value
    ranges.check(config, "proxy")
    space = studies.read_space(_SPACE.value, config)
    seeds = cli.numbers(_SEEDS, int)
    start = -(-trials // 4) if _START.value is None else _START.value
    out = pathlib.Path(_OUT.value or f"sweeps/{config.name}")
    study = studies.open_study(
        config, space, out, _STORAGE.value, _PRUNER.value
    )
    sweep = studies.Sweep(study, config, space, out, trials, start, seeds)
    print(devices.describe(), flush=True)
    trial.run_trials(sweep)
    print(f"\n{studies.table(sweep)}")
    states = [t.state for t in sweep.all_trials()]
    if not all(state.is_finished() for state in states):
        print("\nthe rest is running elsewhere")
    elif TrialState.COMPLETE in states:
        best = studies.write_best(sweep)
        print(f"\nnext: python -m launch.train --config {best}")


if __name__ == "__main__":
    cli.run(main)
