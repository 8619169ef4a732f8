"""Trials of a study: each a training, told to the study as it goes."""

import copy
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from launch import Config
from launch.runs import metrics
from launch.sweep import study as studies
from launch.train import members, proxy


def scores(run: pathlib.Path) -> dict[int, float]:
    """Mean validation MRR over a trial's seeds, by epoch."""
    found = [
        {r["epoch"]: r["mrr"] for r in metrics.read(member) if "mrr" in r}
        for member in members.runs(run) or [run]
    ]
    epochs = set.intersection(*(set(f) for f in found))
    return {e: float(np.mean([f[e] for f in found])) for e in sorted(epochs)}


def run_trial(
    study: optuna.Study,
    frozen: FrozenTrial,
    config: Config,
    space: studies.Space,
    seeds: Sequence[int],
    start: int,
    run: pathlib.Path,
) -> None:
    """Trains one trial and tells the study what became of it.

    Args:
      study: the study.
      frozen: a trial that this process has claimed.
      config: what it starts from.
      space: what may differ.
      seeds: of its population; the config's own when empty.
      start: how many trials are Sobol points.
      run: its folder; what is there already is not done again.

    Raises:
      SystemExit: after SIGTERM or Ctrl-C; the trial is not finished then.
    """
    study.sampler = studies.sampler(space, frozen.number, start, config.seed)
    trial = optuna.Trial(study, frozen._trial_id)
    # As `study.ask` does; it would make a trial of its own.
    chosen = {name: trial._suggest(name, kind) for name, kind in space.items()}
    config = copy.deepcopy(config)
    config.run = str(run)
    config.update_from_flattened_dict(chosen)
    shown = "  ".join(
        f"{name}={studies.short(v)}" for name, v in chosen.items()
    )
    print(f"trial {trial.number}: {shown}", flush=True)

    def report(epoch: int, found: Any) -> None:
        told = study.get_trials(deepcopy=False)[trial.number]
        for at, score in scores(run).items():
            if at not in told.intermediate_values:
                trial.report(score, at)
        # A population goes on without its diverged members.
        if seeds and any(member["mrr"] == 0 for member in found):
            raise FloatingPointError("a seed diverged")
        if epoch < config.epochs and trial.should_prune():
            raise optuna.TrialPruned

    try:
        if seeds:
            members.train(config, seeds, (), report)
        else:
            proxy.train(config, report)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        print(f"trial {trial.number}: pruned", flush=True)
    except FloatingPointError as error:
        study.tell(trial, state=TrialState.FAIL)
        print(f"trial {trial.number}: failed, {error}", flush=True)
    else:
        value = max(scores(run).values())
        study.tell(trial, value)
        print(f"trial {trial.number}: MRR {value:.4f}", flush=True)


def run_trials(
    study: optuna.Study,
    storage: BaseStorage,
    config: Config,
    space: studies.Space,
    out: pathlib.Path,
    *,
    trials: int,
    seeds: Sequence[int],
    start: int,
) -> list[int]:
    """Runs trials until none is left for this process.

    Args:
      study: the study.
      storage: where it is kept.
      config: what trials start from.
      space: what differs among them.
      out: folder of the sweep.
      trials: how many all processes run together, over all calls.
      seeds: see `run_trial`.
      start: see `run_trial`.

    Returns:
      Numbers of those run here.
    """
    numbers = []
    while True:
        with studies.next_trial(study, storage, out, trials) as trial:
            if trial is None:
                return numbers
            run = out / f"trial-{trial.number:05d}"
            run_trial(study, trial, config, space, seeds, start, run)
            numbers.append(trial.number)
