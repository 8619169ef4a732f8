"""A trained estimator with all that sound matching needs beside it.

matching_run = load("runs/dexed_match_mix_small")
logits = estimate(matching_run, sounds)  # [batch, width]
presets = matching_run.space.snap(decode.hard(logits, matching_run.space))
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from datasets import loader
from datasets.engines import RenderSettings
from launch import Config
from launch.runs import build, checkpoints, data
from matching import decode as decoding
from matching import estimator as estimators
from proxy import audio, objective, spaces
from proxy.space import ParameterSpace

# Sounds that go through the estimator together.
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class MatchingRun:
    """A finished or unfinished run of an estimator, opened for reading.

    Attributes:
      config: of the run.
      space: the synthesizer's parameters.
      estimator: the network from spectrograms to logits.
      estimator_variables: its params and batch_stats, at the best checkpoint.
      minimum: least value of the training spectrograms, in dB.
      maximum: their greatest.
      step: of that checkpoint.
      proxy: the preset encoder that the perceptual loss went through.
      proxy_state: its weights, for `objective.predict`.
      proxy_config: the config of the proxy's own run.
      audio_model: whose embeddings the proxy predicts.
      audio_variables: its weights.
      settings: how presets were rendered; sounds are at its sample rate.
      handcrafted: the data set matched on, with the splits train, validation
        and test and the columns preset, embedding, audio and audio_scale.
        Without a bank of hand-crafted presets, synthetic ones stand in.
    """

    config: Config
    space: ParameterSpace
    estimator: estimators.Estimator
    estimator_variables: Any
    minimum: float
    maximum: float
    step: int
    proxy: Any
    proxy_state: objective.TrainState
    proxy_config: Config
    audio_model: audio.AudioModel
    audio_variables: Any
    settings: RenderSettings
    handcrafted: data.Source

    @property
    def proxy_variables(self) -> dict[str, Any]:
        """The proxy's variables for `proxy.apply`."""
        return proxy_variables(self.proxy_state)

    def names(self, split: str) -> list[str]:
        """Names of the presets of a split, in row order."""
        if self.handcrafted.spec.source == "handcrafted":
            return self.handcrafted.names(split)
        rows = self.handcrafted.spec.rows(split)
        return [f"synthetic {split} {row}" for row in range(rows)]


def proxy_variables(state: objective.TrainState) -> dict[str, Any]:
    """Params, averaged where they were, and batch statistics of a proxy."""
    params = state.params if state.average is None else state.average
    return {"params": params, "batch_stats": state.batch_stats}


def load_proxy(
    config: Config,
) -> tuple[Config, Any, objective.TrainState]:
    """Opens the frozen proxy of a matching experiment.

    Args:
      config: with `proxy`, the directory of the proxy's run.

    Returns:
      The config of that run, its encoder, and its best checkpoint.

    Raises:
      FileNotFoundError: when there is no such run.
      ValueError: when it is of another synthesizer or audio model.
    """
    try:
        proxy_config, saved = checkpoints.load(config.proxy)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"config.proxy={config.proxy}: {error}"
        ) from error
    with saved:
        if "encoder" not in proxy_config:
            raise ValueError(
                f"config.proxy={config.proxy} is no run of a proxy; choose "
                "one that was trained with configs/dexed.py or the like"
            )
        for field in ("synth", "audio_model"):
            if proxy_config[field] != config[field]:
                raise ValueError(
                    f"config.proxy={config.proxy} has {field} "
                    f"{proxy_config[field]}, this experiment {config[field]}; "
                    f"choose another proxy or --config.{field}"
                )
        state = checkpoints.restore(
            saved,
            build.empty_state(proxy_config),
            checkpoints.best_step(saved),
        )
    return proxy_config, build.encoder(proxy_config), state


def network(
    config: Config, axis_name: str | None = None
) -> estimators.Estimator:
    """The estimator of a matching experiment.

    Args:
      config: with synth, dropout and dtype.
      axis_name: mapped axis to share batch statistics over.
    """
    return estimators.Estimator(
        spaces.get(config.synth).width,
        dropout=config.dropout,
        axis_name=axis_name,
        dtype=jnp.dtype(config.dtype),
    )


def load(run: str | os.PathLike[str]) -> MatchingRun:
    """Opens a matching run at its best checkpoint.

    Args:
      run: its directory, from `launch.train` with a matching experiment.

    Returns:
      The run. Data that is missing by now is built again.

    Raises:
      FileNotFoundError: when there is no run, or no checkpoint in it yet.
      ValueError: when it is the run of a proxy.
    """
    config, saved = checkpoints.load(run)
    with saved:
        if "proxy" not in config:
            raise ValueError(
                f"{pathlib.Path(run)} is the run of a proxy, not of an "
                "estimator; train one with configs/dexed.py:match"
            )
        step = checkpoints.best_step(saved)
        tree = checkpoints.restore_raw(saved, step)
    state = tree["state"]
    proxy_config, proxy, proxy_state = load_proxy(config)
    model = audio.get(config.audio_model)
    return MatchingRun(
        config=config,
        space=spaces.get(config.synth),
        estimator=network(config),
        estimator_variables={
            "params": state["params"],
            "batch_stats": state["batch_stats"],
        },
        minimum=float(tree["minimum"]),
        maximum=float(tree["maximum"]),
        step=step,
        proxy=proxy,
        proxy_state=proxy_state,
        proxy_config=proxy_config,
        audio_model=model,
        audio_variables=data.audio_variables(config),
        settings=data.renderer(config).settings,
        handcrafted=data.matching_source(config),
    )


@functools.partial(jax.jit, static_argnames=("network", "sample_rate"))
def _logits(network, variables, sounds, minimum, maximum, *, sample_rate):
    decibels = estimators.spectrogram(sounds, sample_rate)
    scaled = estimators.scale(decibels, minimum, maximum)
    return network.apply(variables, scaled, train=False)


def logits(
    network: estimators.Estimator,
    variables: Any,
    sounds: Float[np.ndarray, "batch samples"] | Float[Array, "batch samples"],
    minimum: float,
    maximum: float,
    sample_rate: int,
) -> Float[np.ndarray, "batch width"]:
    """What an estimator says of sounds, a few at a time.

    Args:
      network: the estimator.
      variables: its params and batch_stats.
      sounds: clips in [-1, 1], more than 513 samples.
      minimum: least value of the training spectrograms, in dB.
      maximum: their greatest.
      sample_rate: of the sounds, in Hz.

    Returns:
      Logits in table order.
    """

    def work(part):
        return _logits(
            network, variables, part, minimum, maximum, sample_rate=sample_rate
        )

    # Of a few sounds no block is filled up: they may be only one.
    size = min(_BLOCK, len(sounds))
    return loader.map_blocks(work, np.asarray(sounds, np.float32), size=size)


def estimate(
    matching_run: MatchingRun,
    sounds: Float[np.ndarray, "batch samples"] | Float[Array, "batch samples"],
) -> Float[np.ndarray, "batch width"]:
    """Estimates presets from sounds.

    Args:
      matching_run: see `load`.
      sounds: clips in [-1, 1] at `matching_run.settings.sample_rate`, which
        is 32 kHz for EfficientAT's embeddings; more than 513 samples, best
        of the length in the settings.

    Returns:
      Logits, which `decode` reads.
    """
    return logits(
        matching_run.estimator,
        matching_run.estimator_variables,
        sounds,
        matching_run.minimum,
        matching_run.maximum,
        matching_run.settings.sample_rate,
    )


@functools.partial(jax.jit, static_argnums=1)
def _decode(logits, space):
    return space.snap(decoding.hard(logits, space))


def decode(
    logits: Float[np.ndarray, "batch width"], space: ParameterSpace
) -> Float[np.ndarray, "batch parameters"]:
    """Logits to presets that can be rendered, each value on its grid."""
    return np.asarray(_decode(logits, space), np.float32)
