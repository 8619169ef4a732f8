"""Trains a proxy: f(preset) = g(sound of the preset)."""

import contextlib
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from launch import Config
from launch.runs import build, checkpoints, data, devices, making, metrics
from proxy import objective, spaces


def check_finite(step: int, pending: list[Any]) -> dict[str, float]:
    """Fetches the metrics of the last few steps and checks them.

    Args:
      step: number of steps taken.
      pending: metrics of the latest of them, still on the devices.

    Returns:
      Mean loss and mean gradient norm.

    Raises:
      FloatingPointError: naming the first step that was not finite.
    """
    fetched = jax.device_get(pending)
    losses, norms = (
        np.array([m[name] for m in fetched]) for name in ("loss", "grad_norm")
    )
    bad = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(norms)))
    if len(bad):
        first = step - len(pending) + bad[0] + 1
        raise FloatingPointError(
            f"loss {losses[bad[0]]}, gradient norm {norms[bad[0]]} at step "
            f"{first}; the last checkpoint is from before it. Lower "
            "config.optimizer.learning_rate or set "
            "config.optimizer.clip_norm"
        )
    return {"loss": losses.mean().item(), "grad_norm": norms.mean().item()}


@contextlib.contextmanager
def catch_termination() -> Iterator[Callable[[], bool]]:
    """Lets a step finish after SIGTERM or Ctrl-C; yields "was there one"."""
    caught: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(s, lambda n, _: caught.append(n)) for s in signals]
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def train(
    config: Config,
    report: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> pathlib.Path:
    """Trains the encoder of a config to its end.

    Args:
      config: an experiment.
      report: told epoch and scores of every validation once they are saved;
        what it raises ends the training.

    Returns:
      The run directory.

    Raises:
      FloatingPointError: when a loss or gradient is not finite.
      ValueError: when config, data and run directory do not fit together.
      SystemExit: after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    making.check(config)
    mesh = devices.mesh(config.devices or None)
    devices.check_batch(config.batch, mesh, config.accumulate)
    # What can be wrong is found before hours of rendering.
    encoder = build.encoder(config, devices.AXIS)
    build.empty_state(config)
    if config.init:
        checkpoints.load(config.init)[1].close()
    run = checkpoints.prepare(config)
    dataset = making.ensure(config)
    data.record_dataset(run, dataset)
    writes, alone = jax.process_index() == 0, jax.process_count() == 1
    say = tqdm.tqdm.write if writes else lambda _: None

    step_fn = devices.map_step(
        objective.train_step(
            encoder,
            spaces.get(config.synth),
            build.gradient_transformation(config),
            axis_name=devices.AXIS,
            accumulate=config.accumulate,
            decay=config.average,
        ),
        mesh,
    )
    ranker = build.validator(config)
    source = data.training_source(config.source, dataset)
    state = build.initial_state(config, source.columns("train")["embedding"])
    if config.init:
        state = checkpoints.start_from(config, state)
    state = devices.place(state, devices.replicated(mesh))
    epoch_steps = data.steps_per_epoch(source, config.batch)
    total = config.epochs * epoch_steps

    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(checkpoints.manager(run))
        done = saved.latest_step() or 0
        if done:
            state = checkpoints.restore(saved, state)
            say(f"{run}: going on at step {done:,} of {total:,}")
        stopped = stack.enter_context(catch_termination())
        writer = stack.enter_context(
            metrics.Writer(run, done, silent=not writes)
        )
        batches = stack.enter_context(
            data.train_batches(
                source, config.batch, config.seed, done, devices.split(mesh)
            )
        )
        bar = stack.enter_context(
            tqdm.tqdm(
                total=total,
                initial=done,
                unit="step",
                disable=not writes,
                mininterval=0.5 if sys.stderr.isatty() else 30,
            )
        )
        pending, last_save, compiled = [], time.monotonic(), None
        since, since_step = time.monotonic(), done
        for step in range(done + 1, total + 1):
            batch = next(batches)
            if compiled is None:
                started = time.monotonic()
                # Ahead of time: a compiled step cannot recompile unnoticed.
                compiled = step_fn.lower(state, batch).compile()
                seconds = time.monotonic() - started
                writer.write(step - 1, compile_seconds=seconds)
                since = time.monotonic()
            state, step_metrics = compiled(state, batch)
            pending.append(step_metrics)
            bar.update()
            epoch_ends = step % epoch_steps == 0
            due = epoch_ends or step % config.log_every == 0
            if not due and not (alone and stopped()):
                continue
            stop = devices.any_process(stopped())
            means = check_finite(step, pending)
            pending = []
            rate = (step - since_step) * config.batch
            rate /= time.monotonic() - since
            writer.write(step, **means, presets_per_second=rate)
            bar.set_postfix(loss=f"{means['loss']:.4f}")
            found = None
            if epoch_ends:
                found = data.validate(
                    source, config.validation, ranker, state, mesh
                )
                epoch = step // epoch_steps
                writer.write(step, epoch=epoch, **found)
                say(
                    f"epoch {epoch:3d}  loss {means['loss']:.4f}  "
                    f"validation L1 {found['l1']:.4f}  MRR {found['mrr']:.4f}"
                    f"  {rate:,.0f} presets/s"
                )
            idle = time.monotonic() - last_save
            late = devices.any_process(idle > 60 * config.checkpoint_minutes)
            if epoch_ends or stop or late:
                checkpoints.save(saved, step, state, found)
                last_save = time.monotonic()
            if found is not None:
                report(step // epoch_steps, found)
            if stop and step < total:
                saved.wait_until_finished()
                bar.close()
                say(
                    f"{run}: stopped at step {step:,}; the same command goes on"
                )
                raise SystemExit(143)
            since, since_step = time.monotonic(), step
    if writes:
        # Matplotlib would have everybody wait at the start.
        from launch.runs import plots

        plots.training_curves(run)
        say(f"{run}: {total:,} steps done")
    return run
