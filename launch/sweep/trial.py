"""Trials of a study: each a training, told to the study as it goes."""

import copy
import pathlib
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from launch.runs import metrics
from launch.sweep import study as studies
from launch.sweep.study import Sweep
from launch.train import members, proxy


def scores(run: pathlib.Path) -> dict[int, float]:
    """Mean validation MRR over a trial's seeds, by epoch."""
    found = [
        {r["epoch"]: r["mrr"] for r in metrics.read(member) if "mrr" in r}
        for member in members.runs(run) or [run]
    ]
    epochs = set.intersection(*(set(f) for f in found))
    return {e: float(np.mean([f[e] for f in found])) for e in sorted(epochs)}


def run_trial(sweep: Sweep, frozen: FrozenTrial) -> None:
    """Trains one trial and tells the study what became of it.

    Args:
      sweep: what all trials share.
      frozen: a trial that this process has claimed. What is in its folder
        already is not done again.

    Raises:
      SystemExit: after SIGTERM or Ctrl-C; the trial is not finished then.
    """
    study, name = sweep.study, f"trial {frozen.number}"
    run = sweep.out / f"trial-{frozen.number:05d}"
    study.sampler = studies.sampler(sweep, frozen.number)
    trial = optuna.Trial(study, frozen._trial_id)
    # As `study.ask` does; it would make a trial of its own.
    chosen = {n: trial._suggest(n, kind) for n, kind in sweep.space.items()}
    config = copy.deepcopy(sweep.config)
    config.run = str(run)
    config.update_from_flattened_dict(chosen)
    shown = "  ".join(f"{n}={studies.short(v)}" for n, v in chosen.items())
    print(f"{name}: {shown}", flush=True)

    def report(epoch: int, found: Any) -> None:
        told = study.get_trials(deepcopy=False)[trial.number]
        for at, score in scores(run).items():
            if at not in told.intermediate_values:
                trial.report(score, at)
        # A population goes on without its diverged members.
        if sweep.seeds and any(member["mrr"] == 0 for member in found):
            raise FloatingPointError("a seed diverged")
        if epoch < config.epochs and trial.should_prune():
            raise optuna.TrialPruned

    try:
        if sweep.seeds:
            members.train(config, sweep.seeds, (), report)
        else:
            proxy.train(config, report)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        print(f"{name}: pruned", flush=True)
    except FloatingPointError as error:
        study.tell(trial, state=TrialState.FAIL)
        print(f"{name}: failed, {error}", flush=True)
    else:
        found = scores(run)
        if not found:
            raise ValueError(
                f"{run}: its {metrics.FILE} has no validation left; remove "
                "that folder to train the trial again"
            )
        value = max(found.values())
        study.tell(trial, value)
        print(f"{name}: MRR {value:.4f}", flush=True)


def run_trials(sweep: Sweep) -> list[int]:
    """Runs trials until none is left for this process; returns which."""
    numbers = []
    while True:
        with studies.next_trial(sweep) as trial:
            if trial is None:
                return numbers
            run_trial(sweep, trial)
            numbers.append(trial.number)
