"""Trains a population: many small encoders side by side, each a run."""

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from configs import ranges
from datasets import files, loader
from launch import Config
from launch.runs import (
    build,
    checkpoints,
    data,
    devices,
    making,
    metrics,
    plots,
)
from launch.train import loop
from proxy import population, spaces

_FILE = "population.json"


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a member.

    Attributes:
      run: run directory of the member.
      seed: seed of the member.
      learning_rate: learning rate of the member.
      mrr: mean reciprocal rank of its best validation, NaN without one.
      step: step of the best validation.
      diverged: step at which it ceased to be finite, None if it never did.
    """

    run: pathlib.Path
    seed: int
    learning_rate: float
    mrr: float
    step: int
    diverged: int | None


def runs(folder: pathlib.Path) -> list[pathlib.Path]:
    """The runs of a population's members; empty where there is none."""
    file = folder / _FILE
    names = files.read_json(file, list) if file.exists() else []
    return [folder / name for name in names]


def configs(
    config: Config, seeds: Sequence[int], learning_rates: Sequence[float]
) -> list[Config]:
    """The config of every member: every seed with every learning rate.

    Args:
      config: an experiment.
      seeds: the config's own when empty.
      learning_rates: the config's own when empty.

    Returns:
      Complete configs, as `launch.train` would take them. Data sets are those
      of the config whatever the member's seed.

    Raises:
      ValueError: when a member is there twice, or a field out of range.
    """
    if config.get("checkpoints"):
        raise ValueError(
            "config.checkpoints is one folder, a population has many "
            "members: leave it empty"
        )
    members = {}
    for seed, rate in itertools.product(
        seeds or [config.seed],
        learning_rates or [config.optimizer.learning_rate],
    ):
        member = copy.deepcopy(config)
        member.data_seed = config.get("data_seed", config.seed)
        member.seed = seed
        member.optimizer.learning_rate = rate
        member.run = str(pathlib.Path(config.run, f"seed{seed}_rate{rate:g}"))
        ranges.check(member, "proxy")
        if member.run in members:
            raise ValueError(f"a member is there twice: {member.run}")
        members[member.run] = member
    return list(members.values())


def _initial(
    configs: Sequence[Config], columns: loader.Columns
) -> tuple[population.Rates, Any]:
    """Learning rates and stacked states at step 0."""
    shared = configs[0]
    rates = {
        "learning_rate": jnp.array(
            [c.optimizer.learning_rate for c in configs], jnp.float32
        )
    }
    states = jax.jit(
        lambda rates, seeds, bias: population.init_states(
            build.encoder(shared),
            lambda **r: build.gradient_transformation(shared, **r),
            rates,
            jax.vmap(jax.random.key)(seeds),
            spaces.get(shared.synth).width,
            average=shared.average > 0,
            bias=bias,
        )
    )(
        rates,
        np.array([c.seed for c in configs]),
        build.initial_bias(shared, columns["embedding"]),
    )
    if shared.init:
        started = [
            checkpoints.start_from(shared, population.select(states, i))
            for i in range(len(configs))
        ]
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *started)
    return rates, states


def _map_step(config: Config, mesh: jax.sharding.Mesh) -> Any:
    """The members' step, split over the devices."""
    step = population.train_step(
        build.encoder(config),
        spaces.get(config.synth),
        lambda **rates: build.gradient_transformation(config, **rates),
        **build.step_options(config),
    )

    def with_best(tree: Any, batch: Any, rates: Any) -> tuple[Any, Any]:
        states, found = step(rates, tree["states"], batch)
        return {**tree, "states": states}, found

    spec = devices.split(mesh).spec
    mapped = jax.shard_map(
        with_best, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=0)


def _batches(
    seeds: Sequence[int], columns: loader.Columns, batch: int, done: int
) -> Iterator[tuple[loader.Position, dict[str, np.ndarray]]]:
    """Each member's own batches, stacked; equal seeds are read once."""
    start = loader.Position(*divmod(done, len(columns["preset"]) // batch))
    streams = {
        seed: loader.batches(columns, batch, seed=seed, start=start)
        for seed in seeds
    }
    for taken in zip(*streams.values(), strict=True):
        rows = {s: r for s, (_, r) in zip(streams, taken, strict=True)}
        stacked = {k: np.stack([rows[s][k] for s in seeds]) for k in columns}
        yield taken[0][0], stacked


class _Log:
    """Metrics files of the members, and which of them diverged when."""

    def __init__(self, writers: Sequence[metrics.Writer], runs: Any) -> None:
        self.writers = writers
        self.diverged: list[int | None] = [
            next(
                (r["diverged"] for r in metrics.read(run) if "diverged" in r),
                None,
            )
            for run in runs
        ]

    @property
    def gone(self) -> Bool[np.ndarray, " members"]:
        """Who diverged."""
        return np.array([step is not None for step in self.diverged])

    def write(self, step: int, latest: list[Any], times: Any) -> float:
        """Writes the means of the last steps; returns that of all losses."""
        losses, norms = (
            np.stack([m[name] for m in latest], 1)
            for name in ("loss", "grad_norm")
        )
        finite = np.isfinite(losses) & np.isfinite(norms)
        rate = times["presets_per_second"] / len(self.writers)
        for i, writer in enumerate(self.writers):
            if self.diverged[i] is None and not finite[i].all():
                first = step - len(latest) + 1 + int(np.argmin(finite[i]))
                self.diverged[i] = first
                writer.write(step, diverged=first)
            if self.diverged[i] is None:
                writer.write(
                    step,
                    loss=losses[i].mean().item(),
                    grad_norm=norms[i].mean().item(),
                    presets_per_second=rate,
                )
        if self.gone.all():
            raise FloatingPointError(
                "every member diverged, the last one at step "
                f"{max(d for d in self.diverged if d)}; lower the learning "
                "rates or set config.optimizer.clip_norm"
            )
        return losses[~self.gone].mean().item()


def _prepare(config: Config, members: Sequence[Config]) -> list[pathlib.Path]:
    """Makes or reopens the folders; refuses those of another population."""
    root = pathlib.Path(config.run)
    root.mkdir(parents=True, exist_ok=True)
    wanted = [pathlib.Path(member.run) for member in members]
    if (there := runs(root)) not in ([], wanted):
        raise ValueError(
            f"{root} holds another population "
            f"({', '.join(run.name for run in there)}); choose another "
            "--config.run, or remove it"
        )
    for member in members:
        checkpoints.prepare(member)
    names = [run.name for run in wanted]
    files.write_atomically(root / _FILE, json.dumps(names) + "\n")
    return wanted


def _export(run: pathlib.Path, tree: Any, member: int) -> None:
    """Saves a member's best and last state as an ordinary run does."""
    best, last = tree["best"], population.select(tree["states"], member)
    steps = {int(last.step): last}
    if np.isfinite(best.score[member]):
        steps[int(best.step[member])] = population.select(best.state, member)
    if checkpoints.folder(run).exists():  # by an export cut short
        checkpoints.folder(run).rmtree()
    scores = {
        r["step"]: {name: r[name] for name in ("mrr", "l1")}
        for r in metrics.read(run)
        if "mrr" in r
    }
    with checkpoints.manager(run) as saved:
        for step, state in sorted(steps.items()):
            checkpoints.save(saved, step, state, scores.get(step))
    plots.training_curves(run)


def train(
    config: Config,
    seeds: Sequence[int] = (),
    learning_rates: Sequence[float] = (),
    report: Callable[[int, list[dict[str, float]]], None] = lambda *_: None,
) -> list[Result]:
    """Trains a population to its end.

    Args:
      config: what the members share; `run` is the folder of their runs.
      seeds: see `configs`.
      learning_rates: see `configs`.
      report: told epoch and every member's scores after each validation; what
        it raises ends the training. The score of a member that diverged is 0.

    Returns:
      What became of each member.

    Raises:
      FloatingPointError: when all of them diverged.
      ValueError: when config, data and folder do not fit together.
      SystemExit: after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "a population lives on the devices of one process; give every "
            "host seeds of its own"
        )
    members = configs(config, seeds, learning_rates)
    devices.check_batch(config.batch, devices.mesh(1), config.accumulate)
    build.empty_state(config)
    folders, root = _prepare(config, members), pathlib.Path(config.run)
    dataset = making.ensure(config)
    for folder in folders:
        data.record_dataset(folder, dataset)
    source = data.training_source(config.source, dataset)
    columns = data.training_columns(config, dataset)
    epoch_steps = data.steps_per_epoch(len(columns["preset"]), config.batch)
    total = config.epochs * epoch_steps
    # As many devices as share the members out evenly.
    available = config.devices or jax.device_count()
    mesh = devices.mesh(math.gcd(len(members), available))
    each, whole = devices.split(mesh), devices.replicated(mesh)
    print(f"{len(members)} members on {mesh.size} devices", flush=True)
    rates, states = _initial(members, columns)
    rates, states = devices.place(rates, each), devices.place(states, each)
    step, ranker = _map_step(config, mesh), build.validator(config)
    keep_best = jax.jit(population.keep_best, out_shardings=each)
    first_best = jax.jit(population.first_best, out_shardings=each)
    tree = {"states": states, "best": first_best(states)}
    scores: list[dict[str, float]] = []

    def validate(step: int, epoch: int, tree: Any) -> tuple[Any, None, str]:
        scores.clear()
        states = jax.device_get(tree["states"])
        for i, writer in enumerate(log.writers):
            if log.gone[i]:
                scores.append({"mrr": 0.0, "l1": math.nan})
                continue
            state = devices.place(population.select(states, i), whole)
            found = data.validate(
                source, config.validation, ranker, state, mesh
            )
            if not np.isfinite(list(found.values())).all():
                log.diverged[i] = step
                writer.write(step, diverged=step)
                scores.append({"mrr": 0.0, "l1": math.nan})
                continue
            writer.write(step, epoch=epoch, **found)
            scores.append(found)
        mrr = np.array([s["mrr"] for s in scores], np.float32)
        ranked = np.where(log.gone, np.float32(np.nan), mrr)
        ranked = devices.place(ranked, each)
        best = keep_best(tree["best"], tree["states"], ranked)
        words = f"MRR {mrr.min():.4f} to {mrr.max():.4f}"
        return {**tree, "best": best}, None, words

    with (
        contextlib.ExitStack() as stack,
        loop.resume(root, tree, total) as (saved, tree, done),
        loader.on_devices(
            _batches([m.seed for m in members], columns, config.batch, done),
            each,
        ) as batches,
    ):
        log = _Log(
            [stack.enter_context(metrics.Writer(run, done)) for run in folders],
            folders,
        )
        tree = loop.train(
            root,
            saved,
            tree,
            range(done + 1, total + 1),
            batches,
            step_at=lambda _: step,
            constants=[rates],
            log=log.write,
            validate=validate,
            report=lambda epoch, _: report(epoch, list(scores)),
            epoch_steps=epoch_steps,
            log_every=config.log_every,
            checkpoint_minutes=config.checkpoint_minutes,
            examples=config.batch * len(members),
        )
        tree = jax.device_get(tree)
        for i, run in enumerate(folders):
            _export(run, tree, i)
    best = tree["best"]
    mrr = np.where(np.isfinite(best.score), best.score, np.nan)
    return [
        Result(
            folders[i],
            member.seed,
            member.optimizer.learning_rate,
            float(mrr[i]),
            int(best.step[i]),
            log.diverged[i],
        )
        for i, member in enumerate(members)
    ]
