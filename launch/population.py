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

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tabulate
import tqdm
from absl import flags

from datasets import loader
from launch import Config, cli
from launch.runs import (
    build,
    checkpoints,
    data,
    devices,
    making,
    metrics,
    plots,
)
from launch.train import proxy as train_proxy
from proxy import population, spaces

_CONFIG = cli.define_config()
_SEEDS = flags.DEFINE_list(
    "seeds", [], "Seeds, e.g. 0,1,2; empty for the config's."
)
_RATES = flags.DEFINE_list(
    "learning_rates",
    [],
    "Learning rates, e.g. 1e-3,3e-3; empty for the config's.",
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a member.

    Attributes:
      run: its run directory.
      seed: its seed.
      learning_rate: its learning rate.
      mrr: mean reciprocal rank of its best validation, NaN without one.
      step: when that was.
      diverged: step at which it ceased to be finite, None if it never did.
    """

    run: pathlib.Path
    seed: int
    learning_rate: float
    mrr: float
    step: int
    diverged: int | None


Report = Callable[[int, list[dict[str, float]]], None]


def members(
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
      ValueError: when a member is there twice.
    """
    found = []
    for seed, rate in itertools.product(
        seeds or [config.seed],
        learning_rates or [config.optimizer.learning_rate],
    ):
        member = copy.deepcopy(config)
        member.data_seed = config.get("data_seed", config.seed)
        member.seed = seed
        member.optimizer.learning_rate = rate
        if member.get("checkpoints"):
            raise ValueError(
                "config.checkpoints is one folder, a population has many "
                "members: leave it empty"
            )
        member.run = str(pathlib.Path(config.run, f"seed{seed}_rate{rate:g}"))
        found.append(member)
    runs = [member.run for member in found]
    if twice := {run for run in runs if runs.count(run) > 1}:
        raise ValueError(f"members are there twice: {', '.join(sorted(twice))}")
    return found


def _mesh(config: Config, count: int) -> jax.sharding.Mesh:
    """As many devices as share the members out evenly."""
    available = config.devices or jax.device_count()
    return devices.mesh(math.gcd(count, available))


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
    """The members' step, split over the devices and compiled."""
    step = population.train_step(
        build.encoder(config),
        spaces.get(config.synth),
        lambda **rates: build.gradient_transformation(config, **rates),
        accumulate=config.accumulate,
        decay=config.average,
    )
    spec = devices.split(mesh).spec
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=1)


def _batches(
    configs: Sequence[Config], columns: loader.Columns, start: loader.Position
) -> Iterator[tuple[loader.Position, dict[str, np.ndarray]]]:
    """Each member's own batches, stacked; equal seeds are read once."""
    seeds = sorted({c.seed for c in configs})
    place = [seeds.index(c.seed) for c in configs]
    streams = [
        loader.batches(columns, configs[0].batch, seed=seed, start=start)
        for seed in seeds
    ]
    for found in zip(*streams, strict=True):
        rows = [found[i][1] for i in place]
        yield (
            found[0][0],
            {name: np.stack([r[name] for r in rows]) for name in rows[0]},
        )


def _validate(
    source: data.Source,
    shape: tuple[int, int],
    ranker: Callable[..., Any],
    states: Any,
    diverged: Sequence[int | None],
    mesh: jax.sharding.Mesh,
) -> list[dict[str, float]]:
    """Scores of every member; 0 for one that diverged."""
    states, found = jax.device_get(states), []
    for member, gone in enumerate(diverged):
        if gone is not None:
            found.append({"mrr": 0.0, "l1": math.nan})
            continue
        state = population.select(states, member)
        state = devices.place(state, devices.replicated(mesh))
        found.append(data.validate(source, shape, ranker, state, mesh))
    return found


class _Members:
    """Metrics files of the members, and which of them diverged when."""

    def __init__(self, runs: Sequence[pathlib.Path], done: int) -> None:
        self.diverged: list[int | None] = [
            next(
                (
                    int(r["diverged"])
                    for r in metrics.read(run)
                    if "diverged" in r and r["step"] <= done
                ),
                None,
            )
            for run in runs
        ]
        self._files = contextlib.ExitStack()
        self._writers = [
            self._files.enter_context(metrics.Writer(run, done)) for run in runs
        ]

    def write(self, step: int, pending: list[Any], rate: float) -> float:
        """Writes the mean of the last steps; returns that over members."""
        fetched = jax.device_get(pending)
        losses, norms = (
            np.stack([m[name] for m in fetched], 1)
            for name in ("loss", "grad_norm")
        )
        finite = np.isfinite(losses) & np.isfinite(norms)
        for i, writer in enumerate(self._writers):
            if self.diverged[i] is None and not finite[i].all():
                first = step - len(pending) + 1 + int(np.argmin(finite[i]))
                self.diverged[i] = first
                writer.write(step, diverged=first)
            if self.diverged[i] is None:
                writer.write(
                    step,
                    loss=losses[i].mean().item(),
                    grad_norm=norms[i].mean().item(),
                    presets_per_second=rate,
                )
        healthy = [d is None for d in self.diverged]
        if not any(healthy):
            raise FloatingPointError(
                f"every member diverged, the last one at step "
                f"{max(d for d in self.diverged if d)}; lower the learning "
                "rates or set config.optimizer.clip_norm"
            )
        return losses[healthy].mean().item()

    def write_scores(
        self, step: int, epoch: int, scores: list[dict[str, float]]
    ) -> None:
        """Writes a validation, of those that did not diverge."""
        for writer, found, gone in zip(
            self._writers, scores, self.diverged, strict=True
        ):
            if gone is None:
                writer.write(step, epoch=epoch, **found)

    def close(self) -> None:
        self._files.close()


def _prepare(config: Config, configs: Sequence[Config]) -> list[pathlib.Path]:
    """Makes or reopens the folders; refuses those of another population."""
    root = pathlib.Path(config.run)
    root.mkdir(parents=True, exist_ok=True)
    file = root / "population.json"
    names = [pathlib.Path(c.run).name for c in configs]
    if file.exists() and (there := json.loads(file.read_text())) != names:
        raise ValueError(
            f"{root} holds another population ({', '.join(there)}); choose "
            "another --config.run, or remove it"
        )
    runs = [checkpoints.prepare(member) for member in configs]
    file.write_text(json.dumps(names) + "\n")
    return runs


def _export(
    run: pathlib.Path, scores: list[dict[str, float]], tree: Any, member: int
) -> None:
    """Saves a member's best and last state as an ordinary run does."""
    best, last = tree["best"], population.select(tree["states"], member)
    steps = {int(last.step): last}
    if np.isfinite(best.score[member]):
        steps[int(best.step[member])] = population.select(best.state, member)
    if checkpoints.folder(run).exists():  # by an export cut short
        checkpoints.folder(run).rmtree()
    found = {s["step"]: s for s in scores}
    with checkpoints.manager(run) as saved:
        for step, state in sorted(steps.items()):
            known = found.get(step)
            result = known and {k: known[k] for k in ("mrr", "l1")}
            checkpoints.save(saved, step, state, result)
    plots.training_curves(run)


def train_members(
    config: Config,
    seeds: Sequence[int] = (),
    learning_rates: Sequence[float] = (),
    report: Report = lambda *_: None,
) -> list[Result]:
    """Trains a population to its end.

    Args:
      config: what the members share; `run` is the folder of their runs.
      seeds: see `members`.
      learning_rates: see `members`.
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
    configs = members(config, seeds, learning_rates)
    devices.check_batch(config.batch, devices.mesh(1), config.accumulate)
    build.empty_state(config)
    runs = _prepare(config, configs)
    dataset = making.ensure(config)
    for run in runs:
        data.record_dataset(run, dataset)
    source = data.training_source(config.source, dataset)
    columns = source.columns("train")
    mesh = _mesh(config, len(configs))
    each = devices.split(mesh)
    print(f"{len(configs)} members on {mesh.size} devices", flush=True)
    rates, states = _initial(configs, columns)
    rates, states = devices.place(rates, each), devices.place(states, each)
    step_fn, ranker = _map_step(config, mesh), build.validator(config)
    keep_best = jax.jit(population.keep_best, out_shardings=each)
    tree = {
        "states": states,
        "best": jax.jit(population.first_best, out_shardings=each)(states),
    }
    epoch_steps = data.steps_per_epoch(source, config.batch)
    total = config.epochs * epoch_steps

    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(
            checkpoints.manager(pathlib.Path(config.run))
        )
        done = saved.latest_step() or 0
        if done:
            tree = checkpoints.restore(saved, tree)
            print(f"{config.run}: going on at step {done:,} of {total:,}")
        stopped = stack.enter_context(train_proxy.catch_termination())
        log = stack.enter_context(contextlib.closing(_Members(runs, done)))
        start = loader.Position(*divmod(done, epoch_steps))
        batches = stack.enter_context(
            loader.on_devices(_batches(configs, columns, start), each)
        )
        bar = stack.enter_context(
            tqdm.tqdm(
                total=total,
                initial=done,
                unit="step",
                mininterval=0.5 if sys.stderr.isatty() else 30,
            )
        )
        pending, compiled = [], None
        since, since_step = time.monotonic(), done
        last_save = since
        for step in range(done + 1, total + 1):
            _, batch = next(batches)
            if compiled is None:
                compiled = step_fn.lower(rates, tree["states"], batch).compile()
                since = time.monotonic()
            tree["states"], found = compiled(rates, tree["states"], batch)
            pending.append(found)
            bar.update()
            epoch_ends = step % epoch_steps == 0
            if not (epoch_ends or step % config.log_every == 0 or stopped()):
                continue
            jax.block_until_ready(tree)
            rate = (step - since_step) * config.batch * len(configs)
            rate /= time.monotonic() - since
            loss = log.write(step, pending, rate / len(configs))
            pending, scores = [], None
            if epoch_ends:
                scores = _validate(
                    source,
                    config.validation,
                    ranker,
                    tree["states"],
                    log.diverged,
                    mesh,
                )
                log.write_scores(step, step // epoch_steps, scores)
                mrr = np.array([s["mrr"] for s in scores], np.float32)
                gone = [d is not None for d in log.diverged]
                ranked = np.where(gone, np.nan, mrr).astype(np.float32)
                tree["best"] = keep_best(
                    tree["best"], tree["states"], devices.place(ranked, each)
                )
                tqdm.tqdm.write(
                    f"epoch {step // epoch_steps:3d}  loss {loss:.4f}  "
                    f"validation MRR {mrr.min():.4f} to {mrr.max():.4f}"
                    f"  {rate:,.0f} presets/s"
                )
            stop = stopped() and step < total
            idle = time.monotonic() - last_save
            if epoch_ends or stop or idle > 60 * config.checkpoint_minutes:
                checkpoints.save(saved, step, tree, None)
                last_save = time.monotonic()
            if scores is not None:
                report(step // epoch_steps, scores)
            if stop:
                saved.wait_until_finished()
                raise SystemExit(143)
            since, since_step = time.monotonic(), step
        tree = jax.device_get(tree)
        for i, run in enumerate(runs):
            records = [r for r in metrics.read(run) if "mrr" in r]
            _export(run, records, tree, i)
        score = tree["best"].score
        return [
            Result(
                runs[i],
                c.seed,
                c.optimizer.learning_rate,
                float(score[i]) if np.isfinite(score[i]) else math.nan,
                int(tree["best"].step[i]),
                log.diverged[i],
            )
            for i, c in enumerate(configs)
        ]


def table(results: Sequence[Result]) -> str:
    """The members as a Markdown table, the best first."""
    ordered = sorted(results, key=lambda r: -np.nan_to_num(r.mrr, nan=-1))
    rows = [
        [
            r.seed,
            f"{r.learning_rate:g}",
            f"{r.mrr:.4f}",
            f"{r.step:,}",
            f"step {r.diverged:,}" if r.diverged else "",
            r.run,
        ]
        for r in ordered
    ]
    head = ("seed", "learning rate", "best MRR", "at step", "diverged", "run")
    return tabulate.tabulate(
        rows, head, tablefmt="github", disable_numparse=True
    )


def numbers(flag: flags.FlagHolder, kind: Callable[[str], Any]) -> list[Any]:
    """Parses the words of a list flag.

    Args:
      flag: its holder.
      kind: `int` or `float`.

    Returns:
      The numbers.

    Raises:
      ValueError: naming the flag, when a word is none.
    """
    try:
        return [kind(word) for word in flag.value]
    except ValueError as error:
        raise ValueError(
            f"--{flag.name}={','.join(flag.value)}: {error}"
        ) from error


def main() -> None:
    """Runs the command."""
    print(devices.describe(), flush=True)
    results = train_members(
        _CONFIG.value, numbers(_SEEDS, int), numbers(_RATES, float)
    )
    print(f"\n{table(results)}")
    best = max(results, key=lambda r: np.nan_to_num(r.mrr, nan=-1))
    print(f"\nnext: python -m launch.evaluate --run {best.run}")


if __name__ == "__main__":
    cli.run(main)
