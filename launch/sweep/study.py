"""A hyper-parameter study: its space, its points, its trials."""

import contextlib
import copy
import importlib.util
import json
import pathlib
import pprint
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import tabulate
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, journal
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from datasets import files
from datasets.spec import differences
from launch import Config, population
from launch.runs import metrics
from launch.train import proxy as train_proxy

Space = Mapping[str, BaseDistribution]


def read_space(path: str, config: Config) -> Space:
    """Reads a search space.

    Args:
      path: a Python file with `get_space()`.
      config: whose fields it may name.

    Returns:
      Distributions by dotted field.

    Raises:
      ValueError: naming what the file lacks, or a field that the config does
        not have.
    """
    spec = importlib.util.spec_from_file_location("space", path)
    if spec is None or spec.loader is None or not pathlib.Path(path).exists():
        raise ValueError(f"--space={path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_space"):
        raise ValueError(f"--space={path}: defines no get_space()")
    space = module.get_space()
    if not space:
        raise ValueError(f"--space={path}: get_space() is empty")
    known = _flat(config)
    for field, distribution in space.items():
        if field not in known:
            raise ValueError(
                f"--space={path}: the config has no field {field!r}"
            )
        if not isinstance(
            distribution,
            FloatDistribution | IntDistribution | CategoricalDistribution,
        ):
            raise ValueError(
                f"--space={path}: {field} is no Optuna distribution"
            )
    return space


def _flat(config: Config, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def sobol_point(space: Space, number: int, seed: int) -> dict[str, Any]:
    """Point `number` of a scrambled Sobol sequence over a space.

    Optuna's own quasi-Monte-Carlo sampler counts its points in the storage,
    where processes at once may take the same one; the number of a trial is
    its own.

    Args:
      space: distributions by name.
      number: from 0.
      seed: of the scrambling.

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


class _Point(optuna.samplers.BaseSampler):
    """Draws one given point; Optuna takes samplers as objects."""

    def __init__(self, point: dict[str, Any], space: Space) -> None:
        self._point, self._space = point, dict(space)

    def infer_relative_search_space(
        self, study: Any, trial: Any
    ) -> dict[str, BaseDistribution]:
        """All of the space."""
        return self._space

    def sample_relative(
        self, study: Any, trial: Any, search_space: Any
    ) -> dict[str, Any]:
        """The point."""
        return self._point

    def sample_independent(
        self, study: Any, trial: Any, param_name: str, param_distribution: Any
    ) -> Any:
        """A coordinate of the point."""
        return self._point[param_name]


def _sampler(space: Space, number: int, start: int, seed: int) -> Any:
    """What draws the fields of one trial."""
    # Trials of other processes are going on: do not draw next to them.
    tpe = optuna.samplers.TPESampler(
        seed=seed + number, n_startup_trials=0, constant_liar=True
    )
    if number >= start:
        return tpe
    return _Point(sobol_point(space, number, seed), space)


def _pruner(name: str, epochs: int) -> optuna.pruners.BasePruner:
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(1, epochs)
    if name == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=1)
    return optuna.pruners.NopPruner()


def open_study(
    config: Config,
    space: Space,
    out: pathlib.Path,
    storage: str | None,
    pruner: str,
) -> tuple[optuna.Study, BaseStorage]:
    """Makes or joins the study of a config and a space.

    Args:
      config: what trials start from.
      space: what differs among them.
      out: folder of the sweep.
      storage: journal file or database URL; None for a journal in `out`.
      pruner: "median", "hyperband" or "none".

    Returns:
      The study and where it is kept.

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
    return study, kept


def _runs(run: pathlib.Path) -> list[pathlib.Path]:
    """The runs of a trial: itself, or its population's members."""
    file = run / "population.json"
    if not file.exists():
        return [run]
    return [run / name for name in json.loads(file.read_text())]


def scores(run: pathlib.Path) -> dict[int, float]:
    """Mean validation MRR over a trial's seeds, by epoch."""
    found = [
        {r["epoch"]: r["mrr"] for r in metrics.read(member) if "mrr" in r}
        for member in _runs(run)
    ]
    epochs = set.intersection(*(set(f) for f in found))
    return {e: float(np.mean([f[e] for f in found])) for e in sorted(epochs)}


@contextlib.contextmanager
def _next_trial(
    study: optuna.Study, storage: BaseStorage, out: pathlib.Path, trials: int
) -> Iterator[FrozenTrial | None]:
    """Takes up an interrupted trial, or the next one; None when none is left.

    Trials are made before they are run, as many as were asked for, and a
    process claims one of them: whatever the number of processes, no trial is
    run beyond those, and none twice.
    """
    while len(study.get_trials(deepcopy=False)) < trials:
        # Two processes may make more than needed; those wait for ever.
        study.enqueue_trial({})
    with contextlib.ExitStack() as stack:
        for trial in study.get_trials(
            deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)
        ):
            name = f"trial-{trial.number:05d}"
            begun = trial.state == TrialState.RUNNING
            # One without a folder here is another machine's.
            if trial.number >= trials or (begun and not (out / name).exists()):
                continue
            claim = stack.enter_context(contextlib.ExitStack())
            if not claim.enter_context(files.claim(out, name)):
                continue
            # It may have changed hands before the claim.
            now = study.get_trials(deepcopy=False)[trial.number]
            if now.state != trial.state or not (begun or _start(storage, now)):
                claim.close()
                continue
            (out / name).mkdir(exist_ok=True)
            yield now
            return
        yield None


def _start(storage: BaseStorage, trial: FrozenTrial) -> bool:
    """Starts a waiting trial, unless another process just did."""
    try:
        return storage.set_trial_state_values(
            trial._trial_id, TrialState.RUNNING
        )
    except optuna.exceptions.UpdateFinishedTrialError:
        return False


def _suggest(trial: optuna.Trial, name: str, kind: BaseDistribution) -> Any:
    if isinstance(kind, CategoricalDistribution):
        return trial.suggest_categorical(name, kind.choices)
    assert isinstance(kind, FloatDistribution | IntDistribution)
    suggest: Any = (
        trial.suggest_int
        if isinstance(kind, IntDistribution)
        else trial.suggest_float
    )
    return suggest(name, kind.low, kind.high, step=kind.step, log=kind.log)


def run_trial(
    study: optuna.Study,
    frozen: FrozenTrial,
    config: Config,
    space: Space,
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
    study.sampler = _sampler(space, frozen.number, start, config.seed)
    trial = optuna.Trial(study, frozen._trial_id)
    chosen = {name: _suggest(trial, name, kind) for name, kind in space.items()}
    config = copy.deepcopy(config)
    config.run = str(run)
    config.update_from_flattened_dict(chosen)
    shown = "  ".join(f"{name}={_short(v)}" for name, v in chosen.items())
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
            population.train_members(config, seeds, (), report)
        else:
            train_proxy.train(config, report)
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
    space: Space,
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
        with _next_trial(study, storage, out, trials) as trial:
            if trial is None:
                return numbers
            run = out / f"trial-{trial.number:05d}"
            run_trial(study, trial, config, space, seeds, start, run)
            numbers.append(trial.number)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_best(study: optuna.Study, config: Config, out: pathlib.Path) -> str:
    """Writes the best config as an experiment file.

    Args:
      study: with at least one finished trial.
      config: what trials started from.
      out: folder of the sweep.

    Returns:
      The file.
    """
    best = study.best_trial
    chosen = copy.deepcopy(config)
    chosen.update_from_flattened_dict(best.params)
    chosen.name = f"{config.name}_best"
    chosen.run = f"runs/{chosen.name}"
    path = out / "best.py"
    text = pprint.pformat(chosen.to_dict(), sort_dicts=False, width=76)
    body = text.replace("\n", "\n        ")
    files.write_atomically(
        path,
        f'"""Trial {best.number} of the study {study.study_name}.\n\n'
        f"    python -m launch.train --config {path}\n\n"
        f"Figure to expect: validation MRR {best.value:.4f}, the trial's.\n"
        '"""\n\nimport ml_collections\n\n\n'
        "def get_config():\n    return ml_collections.ConfigDict(\n"
        f"        {body}\n    )\n",
    )
    return str(path)


def table(study: optuna.Study, trials: int, shown: int = 10) -> str:
    """The best trials as a Markdown table, below it how all ended."""
    done = study.get_trials(deepcopy=False)[:trials]
    ranked = sorted(
        (t for t in done if t.value is not None),
        key=lambda t: (t.state != TrialState.COMPLETE, -(t.value or 0)),
    )
    names = sorted({name for t in ranked for name in t.params})
    rows = [
        [t.number, f"{t.value:.4f}", t.state.name.lower()]
        + [_short(t.params.get(name)) for name in names]
        for t in ranked[:shown]
    ]
    counts = [
        f"{sum(t.state == state for t in done)} {state.name.lower()}"
        for state in TrialState
    ]
    return (
        tabulate.tabulate(
            rows,
            ["trial", "MRR", "state", *names],
            tablefmt="github",
            disable_numparse=True,
        )
        + f"\n\n{len(done)} trials: {', '.join(counts)}"
    )
