"""What matching a sound needs of a run: engine, proxy, estimator, bank."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from datasets import engines
from launch import Config, checkpoints, data, embedding, experiment
from launch import matching_run as matching
from matching import decode
from proxy import spaces
from proxy.space import ParameterSpace

# Synthetic presets that are searched where there is no bank.
_MOST_SYNTHETIC = 65_536


@dataclasses.dataclass(frozen=True)
class Bank:
    """Presets with the embeddings of their sounds, to start a search from.

    Attributes:
      presets: hard presets.
      embeddings: of their sounds, rendered with the settings of the run.
      names: of the presets.
      source: "hand-crafted" or "synthetic".
    """

    presets: Float[np.ndarray, "entries parameters"]
    embeddings: Float[np.ndarray, "entries embedding"]
    names: list[str]
    source: str


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that is the same for all sounds of a command.

    Attributes:
      synth: name of the engine.
      space: its parameters.
      settings: how the bank and the proxy's training data were rendered.
      embed: sounds at the rate of the settings to embeddings.
      proxy: the preset encoder.
      proxy_variables: its weights.
      bank: where searches start.
      estimate: a sound at that rate to a hard preset; None for the run of a
        proxy.
    """

    synth: str
    space: ParameterSpace
    settings: engines.RenderSettings
    embed: embedding.Embed
    proxy: Any
    proxy_variables: Any
    bank: Bank
    estimate: (
        Callable[
            [Float[np.ndarray, " samples"]], Float[np.ndarray, " parameters"]
        ]
        | None
    )


def open_run(run: str, presets: str | None = None) -> Setup:
    """Opens the run of an estimator or of a proxy.

    Args:
      run: its directory.
      presets: banks in place of those of the run, None for these.

    Returns:
      The setup. The bank is the training split of the run's hand-crafted
      presets; without those, its synthetic presets.

    Raises:
      FileNotFoundError: when there is no run or no bank.
      ValueError: when it does not fit.
    """
    config, saved = checkpoints.load(run)
    saved.close()
    if "proxy" in config:
        opened = matching.load(run)
        settings, proxy = opened.settings, opened.proxy
        variables = opened.proxy_variables
        estimate = _estimator(opened)
        source = opened.handcrafted
        if presets is not None:
            config.presets = presets
            source = data.matching_source(config)
    else:
        config.presets = config.presets if presets is None else presets
        settings, estimate = data.renderer(config).settings, None
        proxy = experiment.encoder(config)
        with checkpoints.manager(pathlib.Path(run), read_only=True) as saved:
            state = checkpoints.restore(
                saved,
                experiment.empty_state(config),
                checkpoints.best_step(saved),
            )
        variables = matching.proxy_variables(state)
        source = _bank_of_proxy(config)
    return Setup(
        synth=config.synth,
        space=spaces.get(config.synth),
        settings=settings,
        embed=data.embedder(config),
        proxy=proxy,
        proxy_variables=jax.device_put(variables),
        bank=_open_bank(source),
        estimate=estimate,
    )


def _estimator(opened: matching.MatchingRun) -> Callable:
    def estimate(sound):
        logits = jnp.asarray(matching.estimate(opened, sound[None]))
        preset = opened.space.snap(decode.hard(logits, opened.space))
        return np.asarray(preset[0], np.float32)

    return estimate


def _bank_of_proxy(config: Config) -> data.Source:
    if config.presets:
        return data.matching_source(config)
    with config.unlocked():
        config.source = "synthetic"
    source = data.ensure(config).synthetic
    assert source is not None
    return source


def _open_bank(source: data.Source) -> Bank:
    columns = source.columns("train")
    rows = len(columns["preset"])
    crafted = source.spec.source == "handcrafted"
    if crafted:
        names = source.names("train")
    else:
        rows = min(rows, _MOST_SYNTHETIC)
        names = [f"synthetic {row}" for row in range(rows)]
    return Bank(
        presets=np.array(columns["preset"][:rows], np.float32),
        embeddings=np.array(columns["embedding"][:rows], np.float32),
        names=names,
        source="hand-crafted" if crafted else "synthetic",
    )
