"""Trains an estimator of presets from sounds, through a frozen proxy.

    python -m launch.train --config configs/dexed.py:match_small

Learns from hand-crafted presets and their sounds, or, without a bank, from
synthetic ones that stand in for them. Validation renders what it predicts
with the real engine. Stopped at any point, the same command goes on and ends
with the same parameters.
"""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jaxtyping import Int64

from datasets import engines, loader, shards
from launch import Config
from launch.runs import (
    build,
    checkpoints,
    data,
    devices,
    making,
    metrics,
    noise,
    opened,
    rendering,
)
from launch.train import proxy as proxy_training
from matching import distances, losses, schedules
from matching import estimator as estimators
from proxy import audio, optimizer, spaces

# Clips whose spectrograms are made at once.
_BLOCK = 64


def plateau(config: Config) -> Any:
    """The rule that lowers the learning rate; sees one value a validation.

    As PyTorch's ReduceLROnPlateau: `patience` validations in a row that are
    not better by 1e-4 of the best are forgiven, the next lowers the rate.
    """
    return optax.contrib.reduce_on_plateau(
        config.plateau.factor, config.plateau.patience + 1, rtol=1e-4
    )


def gradient_transformation(config: Config) -> optax.GradientTransformation:
    """AdamW with a linear warm-up, then times a factor set from outside."""
    o = config.optimizer
    rate = optax.linear_schedule(
        o.learning_rate * o.warmup_factor, o.learning_rate, o.warmup_steps
    )
    return optax.chain(
        optimizer.adamw(
            rate if o.warmup_steps else o.learning_rate,
            b1=o.b1,
            b2=o.b2,
            eps=o.eps,
            weight_decay=o.weight_decay,
            clip_norm=o.clip_norm or None,
        ),
        optax.inject_hyperparams(optax.scale)(step_size=1.0),
    )


def _set_factor(state: Any, factor: Any) -> Any:
    """The state with another factor on the learning rate."""
    adam, scale = state.opt_state
    old = scale.hyperparams["step_size"]
    # By way of the host: a step gives away its state's memory.
    new = jax.device_put(np.asarray(factor, old.dtype), old.sharding)
    scale = scale._replace(hyperparams={**scale.hyperparams, "step_size": new})
    return state.replace(opt_state=(adam, scale))


# Data ------------------------------------------------------------------------


def _clips(columns: loader.Columns, rows: np.ndarray) -> np.ndarray:
    return shards.dequantise(
        columns["audio"][rows], columns["audio_scale"][rows]
    )


def training_spectrograms(
    columns: loader.Columns, rows: np.ndarray, sample_rate: int, *, keep: bool
) -> tuple[float, float, np.ndarray | None]:
    """Makes the spectrograms of the training set, once.

    Args:
      columns: with audio and audio_scale.
      rows: the ones to use.
      sample_rate: of the audio.
      keep: whether to return them all.

    Returns:
      Their least and greatest value, in dB, and float32 [rows, mels, frames]
      or None.

    Raises:
      ValueError: when all of them are silent.
    """
    function = jax.jit(lambda x: estimators.spectrogram(x, sample_rate))
    kept: np.ndarray | None = None
    minimum, maximum = np.inf, -np.inf
    for start in tqdm.trange(
        0, len(rows), _BLOCK, desc="spectrograms", leave=False
    ):
        clips = _clips(columns, rows[start : start + _BLOCK])
        count = len(clips)
        padded = np.pad(clips, [(0, _BLOCK - count), (0, 0)])
        part = np.asarray(function(padded))[:count]
        minimum, maximum = min(minimum, part.min()), max(maximum, part.max())
        if keep:
            if kept is None:
                kept = np.empty((len(rows), *part.shape[1:]), np.float32)
            kept[start : start + count] = part
    if not minimum < maximum:
        raise ValueError("every sound of the training set is silent")
    return float(minimum), float(maximum), kept


def _batches(
    columns: loader.Columns, rows: np.ndarray, config: Config, done: int
) -> Iterator[tuple[loader.Position, dict[str, np.ndarray]]]:
    """Endless shuffled batches of the given rows."""
    start = loader.Position(*divmod(done, len(rows) // config.batch))
    order = loader.batches(
        {"row": rows}, config.batch, seed=config.seed, start=start
    )
    for position, taken in order:
        yield position, {k: c[taken["row"]] for k, c in columns.items()}


# Steps and validation --------------------------------------------------------


def build_step(
    config: Config, schedule: schedules.Schedule, total: int, proxy: Any
) -> Callable[..., Any]:
    """One optimizer step from audio or kept spectrograms.

    Args:
      config: a matching experiment.
      schedule: of the weights of the losses.
      total: steps of the whole run.
      proxy: the encoder, or None while the perceptual loss weighs nothing.

    Returns:
      `(state, batch, key, (minimum, maximum), proxy_variables) -> (state,
      metrics)`, see `losses.train_step`.
    """
    rate = audio.get(config.audio_model).sample_rate
    t = config.temperature
    inner = losses.train_step(
        opened.network(config, devices.AXIS),
        spaces.get(config.synth),
        gradient_transformation(config),
        schedule,
        proxy,
        mode=config.decoding,
        label_smoothing=config.label_smoothing,
        temperature=schedules.temperature(
            t.first, t.last, int(t.share * total)
        ),
        axis_name=devices.AXIS,
    )

    def step(state, batch, key, extremes, variables):
        decibels = batch.get("spectrogram")
        if decibels is None:
            clips = batch["audio"].astype(jnp.float32)
            clips = clips * batch["audio_scale"][:, None]
            decibels = estimators.spectrogram(clips, rate)
        batch = {**batch, "spectrogram": estimators.scale(decibels, *extremes)}
        return inner(state, batch, key, variables)

    return step


def validator(
    config: Config, source: data.Source
) -> Callable[[Any, tuple[float, float]], dict[str, float]]:
    """Builds the validation: predict, render, compare.

    Args:
      config: a matching experiment.
      source: its data.

    Returns:
      A function from the state and the extremes of the spectrograms to
      `a_mean`, the parameter metrics and `failed`, how many predictions
      could not be rendered and count as silence.

    Raises:
      MissingPluginError: (a `ValueError`) there is nothing to render with.
    """
    space, renderer = spaces.get(config.synth), build.engine(config)()
    network = opened.network(config)
    columns = source.columns("validation", ("preset", "audio", "audio_scale"))
    rows = data.matching_rows(
        source, "validation", config.validation_rows, config.data_seed
    )
    targets, presets = _clips(columns, rows), columns["preset"][rows]

    def validate(state: Any, extremes: tuple[float, float]) -> dict[str, float]:
        rate = renderer.settings.sample_rate
        variables = jax.device_get(
            {"params": state.params, "batch_stats": state.batch_stats}
        )
        logits = opened.logits(network, variables, targets, *extremes, rate)
        predicted = opened.decode(logits, space)
        clips, failed = rendering.render(
            renderer, predicted, workers=config.workers, label="rendering"
        )
        found = {
            **rendering.measure(clips, targets, rate, label="distances"),
            **distances.parameter_metrics(
                jnp.asarray(predicted), jnp.asarray(presets), space
            ),
        }
        means = {name: float(np.mean(value)) for name, value in found.items()}
        return {**means, "failed": failed}

    return validate


def _means(step: int, pending: list[Any]) -> dict[str, float]:
    """Means of the latest steps' metrics, checked to be finite."""
    means = proxy_training.check_finite(step, pending)
    fetched = jax.device_get(pending)
    for name in sorted(set(fetched[-1]) - set(means)):
        values = [m[name] for m in fetched if name in m]
        means[name] = float(np.mean(values))
    return means


def _check(config: Config, rows: Int64[np.ndarray, " rows"]) -> None:
    if jax.process_count() > 1:
        raise ValueError(
            "an estimator is trained by one process, on all its devices; "
            "start a single one"
        )
    if not 1 <= config.batch <= len(rows):
        raise ValueError(
            f"config.batch={config.batch}, there are {len(rows)} training "
            f"presets; choose between 1 and {len(rows)}"
        )


# The loop --------------------------------------------------------------------


def train(config: Config) -> pathlib.Path:
    """Trains the estimator of a config to its end.

    Args:
      config: a matching experiment.

    Returns:
      The run directory.

    Raises:
      FileNotFoundError: when there is no proxy yet.
      FloatingPointError: when a loss or gradient is not finite.
      ValueError: when config, data and run directory do not fit together.
      SystemExit: after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    engines.check(config.synth, config.plugin)
    mesh = devices.mesh(config.devices or None)
    devices.check_batch(config.batch, mesh)
    # What can be wrong is found before hours of rendering.
    schedules.get(config.schedule, 1, start=config.start, length=config.length)
    proxy = opened.load_proxy(config)
    run = checkpoints.prepare(config)
    source = making.matching_source(config)
    data.record(run, matching=source)
    rows = data.matching_rows(
        source, "train", config.num_train, config.data_seed
    )
    _check(config, rows)
    columns: Any = source.columns(
        "train", ("preset", "embedding", "audio", "audio_scale")
    )
    validate = validator(config, source)
    if floor := noise.of_run(run, ""):
        tqdm.tqdm.write(floor)
    epoch_steps = len(rows) // config.batch
    total = config.epochs * epoch_steps
    schedule = schedules.get(
        config.schedule, total, start=config.start, length=config.length
    )
    perceptual = np.broadcast_to(schedule(jnp.arange(total))[1], total) > 0
    step_of = {
        used: devices.map_step(
            build_step(
                config, schedule, total, proxy.encoder if used else None
            ),
            mesh,
            constants=3,
        )
        for used in (False, True)
    }
    everywhere = devices.replicated(mesh)
    variables = devices.place(proxy.variables, everywhere)
    key = jax.random.key(config.seed)
    state: Any = losses.init_state(
        opened.network(config), gradient_transformation(config), key
    )
    rule = plateau(config)
    keep = config.keep_spectrograms
    rate = audio.get(config.audio_model).sample_rate

    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(checkpoints.manager(run))
        done = saved.latest_step() or 0
        tree = {
            "state": devices.place(state, everywhere),
            "plateau": rule.init(jnp.zeros(())),
            "minimum": jnp.zeros(()),
            "maximum": jnp.zeros(()),
        }
        kept = None
        if done:
            tree = checkpoints.restore(saved, tree)
            tqdm.tqdm.write(f"{run}: going on at step {done:,} of {total:,}")
        if not done or (keep and done < total):
            low, high, kept = training_spectrograms(
                columns, rows, rate, keep=keep
            )
            if not done:
                tree["minimum"], tree["maximum"] = map(jnp.float32, (low, high))
        patience: Any = tree["plateau"]
        state = tree["state"]
        extremes = (float(tree["minimum"]), float(tree["maximum"]))
        if kept is not None:
            small = {k: columns[k][rows] for k in ("preset", "embedding")}
            columns, rows = {**small, "spectrogram": kept}, np.arange(len(rows))

        stopped = stack.enter_context(proxy_training.catch_termination())
        writer = stack.enter_context(metrics.Writer(run, done))
        batches = stack.enter_context(
            loader.on_devices(
                _batches(columns, rows, config, done), devices.split(mesh)
            )
        )
        bar = stack.enter_context(
            tqdm.tqdm(
                total=total,
                initial=done,
                unit="step",
                mininterval=0.5 if sys.stderr.isatty() else 30,
            )
        )
        pending, last_save = [], time.monotonic()
        since, since_step = time.monotonic(), done
        for step in range(done + 1, total + 1):
            _, batch = next(batches)
            state, step_metrics = step_of[bool(perceptual[step - 1])](
                state, batch, key, extremes, variables
            )
            pending.append(step_metrics)
            bar.update()
            epoch, rest = divmod(step, epoch_steps)
            stop = stopped()
            validated = not rest and (
                epoch % config.validate_every == 0 or step == total
            )
            if not validated and step % config.log_every and not stop:
                continue
            means = _means(step, pending)
            pending = []
            speed = (step - since_step) * config.batch
            speed /= time.monotonic() - since
            writer.write(step, **means, sounds_per_second=speed)
            bar.set_postfix(loss=f"{means['loss']:.3f}")
            found = None
            if validated:
                found = validate(state, extremes)
                # The warm-up is no plateau.
                if step >= config.optimizer.warmup_steps:
                    _, patience = rule.update(
                        jnp.zeros(()), patience, value=found["a_mean"]
                    )
                    state = _set_factor(state, patience.scale)
                factor = float(patience.scale)
                writer.write(step, epoch=epoch, rate_factor=factor, **found)
                tqdm.tqdm.write(
                    f"epoch {epoch:3d}  loss {means['loss']:.4f}  validation "
                    f"a_mean {found['a_mean']:.3f}  {speed:,.0f} sounds/s"
                )
            late = time.monotonic() - last_save
            if validated or stop or late > 60 * config.checkpoint_minutes:
                tree = {**tree, "state": state, "plateau": patience}
                checkpoints.save(saved, step, tree, found)
                last_save = time.monotonic()
            if stop and step < total:
                saved.wait_until_finished()
                bar.close()
                tqdm.tqdm.write(
                    f"{run}: stopped at step {step:,}; the same command goes on"
                )
                raise SystemExit(143)
            since, since_step = time.monotonic(), step
    # Matplotlib would have everybody wait at the start.
    from launch.runs import plots

    plots.matching_curves(run)
    tqdm.tqdm.write(f"{run}: {total:,} steps done")
    return run
