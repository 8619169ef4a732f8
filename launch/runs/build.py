"""From a config to the pure functions it names."""

import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from datasets import engines, loader
from launch import Config
from launch.runs import embedding
from proxy import audio, encoders, objective, optimizer, retrieval, spaces


def encoder(config: Config, axis_name: str | None = None) -> Any:
    """The preset encoder of a config.

    Args:
      config: with synth, audio_model, encoder, sizes and dtype.
      axis_name: mapped axis to share batch statistics over.

    Returns:
      A Linen module.
    """
    return encoders.build(
        config.encoder,
        spaces.get(config.synth),
        audio.get(config.audio_model).dimension,
        axis_name=axis_name,
        dtype=jnp.dtype(config.dtype),
        **{k: v for k, v in config.sizes.items() if v is not None},
    )


def gradient_transformation(config: Config, **changed: Any) -> Any:
    """AdamW with the learning-rate schedule of a config.

    Args:
      config: an experiment.
      **changed: fields of `config.optimizer` to replace, may be traced.

    Returns:
      The gradient transformation.
    """
    o = types.SimpleNamespace(**{**config.optimizer, **changed})
    schedule = optimizer.warmup_cosine_restart(
        o.learning_rate,
        o.minimum,
        warmup_steps=o.warmup_steps,
        warmup_factor=o.warmup_factor,
        cosine_steps=o.cosine_steps,
        restart_steps=o.restart_steps,
        restart_factor=o.restart_factor,
    )
    return optimizer.adamw(
        schedule,
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm or None,
    )


def step_options(config: Config) -> dict[str, Any]:
    """Options of `objective.train_step` that a config sets."""
    return {
        "accumulate": config.accumulate,
        "decay": config.average,
        "contrastive": config.contrastive.weight,
        "temperature": config.contrastive.temperature,
        "equivalent": config.equivalent,
    }


def initial_state(
    config: Config, embeddings: Float[np.ndarray, "samples embedding"]
) -> objective.TrainState:
    """The state at step 0, a function of the config and the data alone.

    Args:
      config: an experiment.
      embeddings: training embeddings; with `config.center`, the output's
        bias starts at the mean of the first 65,536.

    Returns:
      The state.
    """
    return jax.jit(
        lambda key, bias: objective.init_state(
            encoder(config),
            gradient_transformation(config),
            key,
            spaces.get(config.synth).width,
            average=config.average > 0,
            bias=bias,
        )
    )(jax.random.key(config.seed), initial_bias(config, embeddings))


def initial_bias(
    config: Config, embeddings: Float[np.ndarray, "samples embedding"]
) -> Float[np.ndarray, " embedding"] | None:
    """Where the output's bias starts, None for zero; see `initial_state`."""
    if not config.center:
        return None
    mean = np.mean(embeddings[:65_536], axis=0, dtype=np.float64)
    return np.asarray(mean, np.float32)


def empty_state(config: Config) -> objective.TrainState:
    """Shapes and dtypes of the state, to restore a checkpoint into."""
    dimension = audio.get(config.audio_model).dimension
    rows = np.zeros((1, dimension), np.float32)
    return jax.eval_shape(lambda: initial_state(config, rows))


def validator(config: Config) -> Any:
    """Builds the compiled validation of one block of rankings.

    Returns:
      A function from the state, presets `[rankings, candidates, parameters]`
      and embeddings `[rankings, candidates, embedding]` to the reciprocal
      ranks `[rankings]` and the L1 of each ranking `[rankings]`.
    """
    model, space = encoder(config), spaces.get(config.synth)

    @jax.jit
    def validate(state, presets, embeddings):
        flat = presets.reshape(-1, presets.shape[-1])
        predicted = objective.predict(model, state, space.to_relaxed(flat))
        predicted = predicted.astype(jnp.float32).reshape(embeddings.shape)
        ranks = retrieval.ranking(predicted, embeddings[:, 0])
        return 1 / ranks, jnp.abs(predicted - embeddings).mean((1, 2))

    return validate


def predictor(config: Config, block: int = 4096) -> Any:
    """Builds a function from a state and host presets to host predictions.

    Args:
      config: an experiment.
      block: presets predicted at once; memory does not grow beyond it.

    Returns:
      `(state, presets [samples, parameters]) -> float32 [samples,
      embedding]`, NumPy arrays.
    """
    model, space = encoder(config), spaces.get(config.synth)

    @jax.jit
    def one_block(state, presets):
        predicted = objective.predict(model, state, space.to_relaxed(presets))
        return predicted.astype(jnp.float32)

    def predict(state, presets):
        work = functools.partial(one_block, state)
        return loader.map_blocks(
            work, np.asarray(presets, np.float32), size=block
        )

    return predict


# Engine and audio model ------------------------------------------------------


def settings(config: Config) -> engines.RenderSettings:
    """How a config's presets sound, at the sample rate of its audio model.

    Args:
      config: with render and audio_model.

    Raises:
      ValueError: for an unknown audio model or render setting.
    """
    rate = audio.get(config.audio_model).sample_rate
    return engines.RenderSettings.from_dict(
        {**dict(config.render), "sample_rate": rate}
    )


def engine(config: Config) -> Callable[[], engines.Renderer]:
    """What starts the engine of a config; it can be sent to other processes.

    Args:
      config: with synth, engine, plugin, host, render and audio_model.

    Returns:
      A function that starts an engine at every call, and raises what
      `engines.get` does.
    """
    return functools.partial(
        engines.get,
        config.synth,
        settings(config),
        plugin=config.plugin,
        host={k: v for k, v in config.host.items() if k != "dead"},
        engine=config.engine,
    )


def embedder(name: str, weights: str = "") -> embedding.Embed:
    """An audio model, compiled, its weights in place.

    Args:
      name: name of the audio model; one outside JAX runs in its library.
      weights: a file to read in place of the published one.

    Returns:
      See `embedding.embedder`.
    """
    model, path = audio.get(name), weights or None
    if model.host is not None:
        from datasets.weights import hosts

        loaded = hosts.load(name, path)
        return lambda sounds: loaded.embed(np.asarray(sounds))
    variables = {}
    if model.weights is not None:
        from datasets.weights import published

        variables = jax.device_put(published.load(model.weights, path=path))
    return embedding.embedder(model, variables)
