"""Trains a proxy: f(preset) = g(sound of the preset)."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from datasets import loader
from launch import Config
from launch.runs import build, checkpoints, data, devices, making, metrics
from launch.train import loop
from proxy import objective, spaces


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
    source = data.training_source(config.source, dataset)
    columns = data.training_columns(config, dataset)
    state = build.initial_state(config, columns["embedding"])
    if config.init:
        state = checkpoints.start_from(config, state)
    state = devices.place(state, devices.replicated(mesh))
    step = devices.map_step(
        objective.train_step(
            encoder,
            spaces.get(config.synth),
            build.gradient_transformation(config),
            axis_name=devices.AXIS,
            **build.step_options(config),
        ),
        mesh,
    )
    ranker = build.validator(config)
    epoch_steps = data.steps_per_epoch(len(columns["preset"]), config.batch)
    total = config.epochs * epoch_steps
    writes = jax.process_index() == 0

    def validate(step: int, epoch: int, state: Any) -> tuple[Any, Any, str]:
        scores = data.validate(source, config.validation, ranker, state, mesh)
        writer.write(step, epoch=epoch, **scores)
        words = f"L1 {scores['l1']:.4f}  MRR {scores['mrr']:.4f}"
        return state, scores, words

    with loop.resume(run, state, total) as (saved, state, done):
        order = loader.batches(
            columns,
            config.batch,
            seed=config.seed,
            start=loader.Position(*divmod(done, epoch_steps)),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with (
            metrics.Writer(run, done, silent=not writes) as writer,
            loader.on_devices(order, devices.split(mesh)) as batches,
        ):
            loop.train(
                run,
                saved,
                state,
                range(done + 1, total + 1),
                batches,
                step_at=lambda _: step,
                log=functools.partial(loop.write_means, writer),
                validate=validate,
                report=report,
                epoch_steps=epoch_steps,
                log_every=config.log_every,
                checkpoint_minutes=config.checkpoint_minutes,
                examples=config.batch,
            )
    if writes:
        # Matplotlib would have everybody wait at the start.
        from launch.runs import plots

        plots.training_curves(run)
    return run
