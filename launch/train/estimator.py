"""Trains an estimator of presets from sounds, through a frozen proxy.

    python -m launch.train --config configs/dexed.py:match_small

Learns from hand-crafted presets and their sounds, or, without a bank, from
synthetic ones that stand in for them; one that reads embeddings
(configs/dexed.py:match_embedding) from all that a proxy learns from. Validation
renders what it predicts with the real engine. Stopped at any point, the same
command goes on and ends with the same parameters.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from configs import ranges
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
from launch.train import loop
from matching import distances, losses, schedules
from matching import estimator as estimators
from proxy import audio, optimizer, spaces

# Clips whose spectrograms are made at once.
_BLOCK = 64


def plateau(factor: float, patience: int) -> Any:
    """The rule that lowers the learning rate; sees one value a validation.

    As PyTorch's ReduceLROnPlateau: `patience` validations in a row that are
    not better by 1e-4 of the best are forgiven, the next lowers the rate.
    """
    return optax.contrib.reduce_on_plateau(factor, patience + 1, rtol=1e-4)


def gradient_transformation(
    *,
    learning_rate: float,
    warmup_steps: int,
    warmup_factor: float,
    clip_norm: float,
    minimum: float | None = None,
    steps: int = 0,
    **moments: float,
) -> optax.GradientTransformation:
    """AdamW with a linear warm-up, then times a factor set from outside.

    With a minimum, the rate falls to it along a cosine, at the last of so
    many steps; without one it stays.
    """
    rate = optimizer.warmup_cosine_restart(
        learning_rate,
        learning_rate if minimum is None else minimum,
        warmup_steps=warmup_steps,
        warmup_factor=warmup_factor,
        cosine_steps=steps - warmup_steps,
    )
    return optax.chain(
        optimizer.adamw(
            rate if warmup_steps or minimum is not None else learning_rate,
            clip_norm=clip_norm or None,
            **moments,
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
      columns: columns with audio and audio_scale.
      rows: row numbers of the presets to use.
      sample_rate: sample rate of the audio, in Hz.
      keep: whether to return the spectrograms.

    Returns:
      Their least and greatest value, in dB, and float32 [rows, mels, frames]
      or None.

    Raises:
      ValueError: when all of them are silent.
    """
    function = jax.jit(lambda x: estimators.spectrogram(x, sample_rate))
    kept, minimum, maximum = None, np.inf, -np.inf
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


def statistics(
    embeddings: Any, rows: np.ndarray, most: int = 65_536
) -> dict[str, np.ndarray]:
    """Mean and spread of embeddings, of at most so many evenly spaced rows."""
    some = np.asarray(embeddings[rows[:: -(-len(rows) // most)]], np.float64)
    spread = some.std(0)
    if not spread.any():
        raise ValueError("every sound of the training set sounds the same")
    return {
        "mean": some.mean(0).astype(np.float32),
        "spread": spread.astype(np.float32),
    }


def _batches(
    columns: loader.Columns, rows: np.ndarray, batch: int, seed: int, done: int
) -> Iterator[tuple[loader.Position, dict[str, np.ndarray]]]:
    """Endless shuffled batches of the given rows."""
    start = loader.Position(*divmod(done, len(rows) // batch))
    for position, taken in loader.batches(
        {"row": rows}, batch, seed=seed, start=start
    ):
        yield position, {k: c[taken["row"]] for k, c in columns.items()}


# Step and validation ---------------------------------------------------------


def build_step(
    inner: Callable[..., Any], sample_rate: int
) -> Callable[..., Any]:
    """One optimizer step from audio, kept spectrograms or embeddings.

    Args:
      inner: the step from the network's input, see `losses.train_step`.
      sample_rate: sample rate of the audio, in Hz.

    Returns:
      `(tree, batch, key, proxy_variables) -> (tree, metrics)`. The tree is
      what a checkpoint holds: the training state, the plateau rule's, and
      what the input is scaled by.
    """

    def step(tree: Any, batch: Any, key: Any, variables: Any) -> Any:
        scaling = opened.scaling(tree)
        if "mean" in scaling:
            heard = batch["embedding"]
        elif "spectrogram" in batch:
            heard = batch["spectrogram"]
        else:
            clips = batch["audio"].astype(jnp.float32)
            clips = clips * batch["audio_scale"][:, None]
            heard = estimators.spectrogram(clips, sample_rate)
        batch = {**batch, "heard": estimators.prepare(heard, scaling)}
        state, found = inner(tree["state"], batch, key, variables)
        return {**tree, "state": state}, found

    return step


def _score(
    tree: Any,
    network: Any,
    renderer: engines.Renderer,
    targets: dict[str, np.ndarray],
    workers: int,
) -> dict[str, float]:
    """Predicts presets of sounds, renders them, compares.

    Targets: "audio"; "given", what the estimator is given, see
    `opened.logits`; "preset". Returns means of `a_mean` and the parameter
    metrics, and `failed`: how many predictions could not be rendered and count
    as silence.
    """
    rate = renderer.settings.sample_rate
    variables, scaling = jax.device_get(
        (opened.variables(vars(tree["state"])), opened.scaling(tree))
    )
    logits = opened.logits(network, variables, targets["given"], scaling, rate)
    predicted = opened.decode(logits, renderer.space)
    clips, failed = rendering.render(
        renderer, predicted, workers=workers, label="rendering"
    )
    scores = {
        **rendering.measure(clips, targets["audio"], rate, label="distances"),
        **distances.parameter_metrics(
            jnp.asarray(predicted),
            jnp.asarray(targets["preset"]),
            renderer.space,
        ),
    }
    means = {name: float(np.mean(value)) for name, value in scores.items()}
    return {**means, "failed": failed}


# The run ---------------------------------------------------------------------


def train(config: Config) -> pathlib.Path:
    """Trains the estimator of a config to its end.

    Returns:
      The run directory.

    Raises:
      FileNotFoundError: when there is no proxy yet.
      FloatingPointError: when a loss or gradient is not finite.
      ValueError: when config, data and run directory do not fit together.
      SystemExit: after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "an estimator is trained by one process, on all its devices; "
            "start a single one"
        )
    ranges.check(config)
    engines.check(config.synth, config.plugin)
    mesh = devices.mesh(config.devices or None)
    everywhere = devices.replicated(mesh)
    devices.check_batch(config.batch, mesh)
    # What can be wrong is found before hours of rendering.
    schedule_of = functools.partial(
        schedules.get, config.schedule, start=config.start, length=config.length
    )
    schedule_of(1)
    proxy = opened.load_proxy(config)
    run = checkpoints.prepare(config)

    source = making.matching_source(config)
    sounds = ("preset", "embedding", "audio", "audio_scale")
    embedded, columns = opened.reads_embeddings(config), None
    if embedded:
        dataset = making.ensure(making.as_proxy(config))
        data.record(run, matching=source, synthetic=dataset.synthetic)
        columns = data.training_columns(config, dataset)
        rows = np.arange(len(columns["preset"]))
    else:
        data.record(run, matching=source)
        columns = source.columns("train", sounds)
        rows = data.matching_rows(
            source, "train", config.num_train, config.data_seed
        )
    held_out = source.columns("validation", sounds)
    held_out_rows = data.matching_rows(
        source, "validation", config.validation_rows, config.data_seed
    )
    targets = {
        "audio": _clips(held_out, held_out_rows),
        "preset": held_out["preset"][held_out_rows],
    }
    targets["given"] = (
        held_out["embedding"][held_out_rows] if embedded else targets["audio"]
    )
    renderer = build.engine(config)()
    if floor := noise.of_run(run, ""):
        loop.say(floor)

    epoch_steps = data.steps_per_epoch(len(rows), config.batch)
    total = config.epochs * epoch_steps
    schedule = schedule_of(total)
    perceptual = np.broadcast_to(schedule(jnp.arange(total))[1], total) > 0
    model = audio.get(config.audio_model)
    sample_rate = model.sample_rate
    update = gradient_transformation(**config.optimizer, steps=total)
    network = opened.network(config)
    t = config.temperature
    step_with = functools.partial(
        losses.train_step,
        opened.network(config, devices.AXIS),
        spaces.get(config.synth),
        update,
        schedule,
        mode=config.decoding,
        label_smoothing=config.label_smoothing,
        temperature=schedules.temperature(
            t.first, t.last, int(t.share * total)
        ),
        decay=config.get("average", 0.0),
        axis_name=devices.AXIS,
    )
    steps = [
        devices.map_step(
            build_step(step_with(used), sample_rate), mesh, constants=2
        )
        for used in (None, proxy.encoder)
    ]
    rule = plateau(**config.plateau)
    key = jax.random.key(config.seed)
    fresh = losses.init_state(
        network,
        update,
        key,
        **({"shape": (model.dimension,)} if embedded else {}),
        average=config.get("average", 0.0) > 0,
    )
    tree = devices.place(
        {
            "state": fresh,
            "plateau": rule.init(jnp.zeros(())),
            **(
                statistics(columns["embedding"], rows)
                if embedded
                else {"minimum": jnp.zeros(()), "maximum": jnp.zeros(())}
            ),
        },
        everywhere,
    )

    def validate(step: int, epoch: int, tree: Any) -> tuple[Any, Any, str]:
        scores = _score(tree, network, renderer, targets, config.workers)
        # The warm-up is no plateau.
        if step >= config.optimizer.warmup_steps:
            _, patience = rule.update(
                jnp.zeros(()), tree["plateau"], value=scores["a_mean"]
            )
            # By way of the host: a step gives away its state's memory.
            patience = devices.place(jax.device_get(patience), everywhere)
            state = _set_factor(tree["state"], patience.scale)
            tree = {**tree, "state": state, "plateau": patience}
        factor = float(tree["plateau"].scale)
        writer.write(step, epoch=epoch, rate_factor=factor, **scores)
        return tree, scores, f"a_mean {scores['a_mean']:.3f}"

    with loop.resume(run, tree, total) as (saved, tree, done):
        keep = config.keep_spectrograms
        if not embedded and (not done or (keep and done < total)):
            low, high, kept = training_spectrograms(
                columns, rows, sample_rate, keep=keep
            )
            if not done:
                low, high = devices.place(
                    (np.float32(low), np.float32(high)), everywhere
                )
                tree = {**tree, "minimum": low, "maximum": high}
            if kept is not None:
                small = {k: columns[k][rows] for k in ("preset", "embedding")}
                columns = {**small, "spectrogram": kept}
                rows = np.arange(len(rows))
        order = _batches(columns, rows, config.batch, config.seed, done)
        with (
            metrics.Writer(run, done) as writer,
            loader.on_devices(order, devices.split(mesh)) as batches,
        ):
            loop.train(
                run,
                saved,
                tree,
                range(done + 1, total + 1),
                batches,
                step_at=lambda step: steps[int(perceptual[step - 1])],
                constants=[key, devices.place(proxy.variables, everywhere)],
                log=functools.partial(loop.write_means, writer),
                validate=validate,
                epoch_steps=epoch_steps,
                validate_every=config.validate_every,
                log_every=config.log_every,
                checkpoint_minutes=config.checkpoint_minutes,
                examples=config.batch,
                unit="sounds",
            )
    # Matplotlib would have everybody wait at the start.
    from launch.runs import plots

    plots.matching_curves(run)
    return run
