"""A hyper-parameter study: its space, its points, which trial is next."""

import contextlib
import copy
import dataclasses
import pathlib
import pprint
import runpy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import tabulate
from flax import traverse_util
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import journal
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from datasets import files
from datasets.spec import differences
from launch import Config

Space = Mapping[str, BaseDistribution]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What every trial is told.

    Attributes:
      study: the study, see `open_study`.
      config: what trials start from.
      space: what differs among them.
      out: folder of the sweep.
      trials: number of trials that all processes run together, over all calls.
      start: number of trials that are Sobol points.
      seeds: seeds of a trial's population; the config's own when empty.
    """

    study: optuna.Study
    config: Config
    space: Space
    out: pathlib.Path
    trials: int
    start: int
    seeds: Sequence[int] = ()

    def all_trials(self) -> list[FrozenTrial]:
        """The trials made so far, those of other processes included."""
        return self.study.get_trials(deepcopy=False)[: self.trials]


def read_space(path: str, config: Config) -> Space:
    """Reads a search space: a Python file with `get_space()`.

    Returns:
      Distributions by dotted field.

    Raises:
      ValueError: naming what the file lacks, or a field that the config does
        not have.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"--space={path}: no such Python file")
    try:
        get_space = runpy.run_path(path).get("get_space")
    except SyntaxError as error:
        raise ValueError(f"--space={path}: {error}") from error
    if get_space is None:
        raise ValueError(f"--space={path}: defines no get_space()")
    space = get_space()
    if not space:
        raise ValueError(f"--space={path}: get_space() is empty")
    for field in space.keys() - _flat(config).keys():
        raise ValueError(f"--space={path}: the config has no field {field!r}")
    for field, distribution in space.items():
        if not isinstance(distribution, BaseDistribution):
            raise ValueError(
                f"--space={path}: {field} is no Optuna distribution"
            )
    return space


def _flat(config: Config) -> dict[str, Any]:
    """Fields of a config by their dotted names."""
    return traverse_util.flatten_dict(config.to_dict(), sep=".")


def sobol_point(space: Space, number: int, seed: int) -> dict[str, Any]:
    """Point `number` of a scrambled Sobol sequence over a space.

    Optuna's own quasi-Monte-Carlo sampler counts its points in the storage,
    where processes at once may take the same one; the number of a trial is
    its own.

    Args:
      space: distributions by name.
      number: number of the point, from 0.
      seed: seed of the scrambling.

    Returns:
      A value for every name.
    """
    sequence = qmc.Sobol(len(space), rng=np.random.default_rng(seed))
    if number:  # it cannot go forward by none
        sequence.fast_forward(number)
    values = {}
    for share, (name, kind) in zip(
        sequence.random(1)[0], space.items(), strict=True
    ):
        if isinstance(kind, CategoricalDistribution):
            chosen = kind.choices[int(share * len(kind.choices))]
            values[name] = chosen
            continue
        assert isinstance(kind, FloatDistribution | IntDistribution)
        low, high = float(kind.low), float(kind.high)
        whole = isinstance(kind, IntDistribution)
        if whole:  # every integer gets an interval of its own
            low, high = low - 0.5, high + 0.5
        if kind.log:
            value = low * (high / low) ** share
        else:
            value = low + (high - low) * share
        if kind.step is not None:
            value = kind.low + round((value - kind.low) / kind.step) * kind.step
        value = min(max(value, kind.low), kind.high)
        values[name] = int(value) if whole else float(value)
    return values


def sampler(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    """What draws the fields of a trial, given its number."""
    seed = sweep.config.seed
    # Trials of other processes are going on: do not draw next to them.
    tpe = optuna.samplers.TPESampler(
        seed=seed + number, n_startup_trials=0, constant_liar=True
    )
    if number >= sweep.start:
        return tpe
    point = sobol_point(sweep.space, number, seed)
    with warnings.catch_warnings(
        action="ignore", category=optuna.exceptions.ExperimentalWarning
    ):
        return optuna.samplers.PartialFixedSampler(point, tpe)


def _pruner(name: str, epochs: int) -> optuna.pruners.BasePruner:
    return {
        "hyperband": lambda: optuna.pruners.HyperbandPruner(1, epochs),
        "median": lambda: optuna.pruners.MedianPruner(n_warmup_steps=1),
        "none": optuna.pruners.NopPruner,
    }[name]()


def open_study(
    config: Config,
    space: Space,
    out: pathlib.Path,
    storage: str | None,
    pruner: str,
) -> optuna.Study:
    """Makes or joins the study of a config and a space.

    Args:
      config: what trials start from.
      space: what differs among them.
      out: folder of the sweep.
      storage: journal file or database URL; None for a journal in `out`.
      pruner: "median", "hyperband" or "none".

    Raises:
      ValueError: when the study was begun with another config or space;
        names the difference.
    """
    place = storage or str(out / "journal.log")
    wanted = {name: repr(value) for name, value in _flat(config).items()}
    for name in ("run", "data", "weights", "workers", "devices"):
        wanted.pop(name, None)  # machines may differ in these
    wanted.update({f"space of {n}": repr(d) for n, d in space.items()})
    # Two processes that create tables at once would collide.
    with files.claim(out, "study", wait=True):
        if "://" in place:
            kept = optuna.storages.get_storage(place)
        else:
            kept = optuna.storages.JournalStorage(
                journal.JournalFileBackend(place)
            )
        study = optuna.create_study(
            study_name=config.name,
            storage=kept,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(pruner, config.epochs),
        )
        there = study.user_attrs.get("config")
        if there is None:
            study.set_user_attr("config", wanted)
        elif there != wanted:
            lines = differences(wanted, there)
            raise ValueError(
                f"the study {config.name} in {place} was begun with another "
                f"config or space ({'; '.join(lines)}); choose another --out, "
                "--storage or --config.name"
            )
    return study


@contextlib.contextmanager
def next_trial(sweep: Sweep) -> Iterator[FrozenTrial | None]:
    """Claims an interrupted trial, or the next one; None when none is left.

    Trials are made before they are run, as many as were asked for, and a
    process claims one of them: whatever the number of processes, no trial is
    run beyond those, and none twice.
    """
    while len(sweep.all_trials()) < sweep.trials:
        # Two processes may make more than needed; those wait for ever.
        sweep.study.enqueue_trial({})
    for trial in sweep.all_trials():
        folder = f"trial-{trial.number:05d}"
        begun = trial.state == TrialState.RUNNING
        # One without a folder here is another machine's.
        if trial.state.is_finished() or (
            begun and not (sweep.out / folder).exists()
        ):
            continue
        with files.claim(sweep.out, folder) as claimed:
            if not claimed:
                continue
            # It may have changed hands before the claim.
            now = sweep.all_trials()[trial.number]
            if now.state == trial.state and (begun or _start(sweep, now)):
                (sweep.out / folder).mkdir(exist_ok=True)
                yield now
                return
    yield None


def _start(sweep: Sweep, trial: FrozenTrial) -> bool:
    """Starts a waiting trial, unless another process just did."""
    try:
        return sweep.study._storage.set_trial_state_values(
            trial._trial_id, TrialState.RUNNING
        )
    except optuna.exceptions.UpdateFinishedTrialError:
        return False


def short(value: Any) -> str:
    """A field's value as it is shown."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_best(sweep: Sweep) -> str:
    """Writes the best config as an experiment file; returns the file."""
    best = sweep.study.best_trial
    chosen = copy.deepcopy(sweep.config)
    chosen.update_from_flattened_dict(best.params)
    chosen.name = f"{chosen.name}_best"
    chosen.run = f"runs/{chosen.name}"
    path = sweep.out / "best.py"
    text = pprint.pformat(chosen.to_dict(), sort_dicts=False, width=76)
    body = text.replace("\n", "\n        ")
    files.write_atomically(
        path,
        f'"""Trial {best.number} of the study {sweep.study.study_name}.\n\n'
        f"    python -m launch.train --config {path}\n\n"
        f"Figure to expect: validation MRR {best.value:.4f}, the trial's.\n"
        '"""\n\nimport ml_collections\n\n\n'
        "def get_config():\n    return ml_collections.ConfigDict(\n"
        f"        {body}\n    )\n",
    )
    return str(path)


def table(sweep: Sweep, shown: int = 10) -> str:
    """The best trials as a Markdown table, below it how all ended."""
    done = sweep.all_trials()
    ranked = sorted(
        (t for t in done if t.value is not None),
        key=lambda t: (t.state != TrialState.COMPLETE, -(t.value or 0)),
    )
    names = sorted({name for t in ranked for name in t.params})
    rows = [
        [t.number, f"{t.value:.4f}", t.state.name.lower()]
        + [short(t.params.get(name)) for name in names]
        for t in ranked[:shown]
    ]
    counts = [
        f"{sum(t.state == state for t in done)} {state.name.lower()}"
        for state in TrialState
    ]
    head = ["trial", "MRR", "state", *names]
    lines = tabulate.tabulate(rows, head, "github", disable_numparse=True)
    return f"{lines}\n\n{len(done)} trials: {', '.join(counts)}"
