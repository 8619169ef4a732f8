"""What matching a sound needs of a run: engine, proxy, estimator, bank."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from datasets import engines
from datasets.engines.vst3 import engine as vst3
from launch import Config
from launch.runs import build, checkpoints, data, embedding
from launch.runs import opened as matching
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
      engine: makes the run's engine, at other settings.
      space: its parameters.
      settings: how the bank and the proxy's training data were rendered.
      embed: sounds at the rate of the settings to embeddings.
      proxy: the preset encoder.
      proxy_variables: its weights.
      bank: where searches start.
      estimate: a sound at that rate to a hard preset; None for the run of a
        proxy.
      state: what a plug-in saves of raw plug-in values, as a .vstpreset file;
        None for an engine that is no plug-in.
    """

    engine: Callable[[engines.RenderSettings], engines.Renderer]
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
    state: Callable[[Float[np.ndarray, " parameters"]], bytes] | None


def open_run(
    run: str, presets: str | None = None, plugin: str | None = None
) -> Setup:
    """Opens the run of an estimator or of a proxy.

    Args:
      run: its directory.
      presets: banks in place of those of the run, None for these.
      plugin: path of a VST3 plug-in in place of the run's, likewise.

    Returns:
      The setup. The bank is the training split of the run's hand-crafted
      presets; without those, its synthetic presets.

    Raises:
      FileNotFoundError: when there is no run or no bank.
      ValueError: when it does not fit, or the plug-in is missing.
    """
    config, saved = checkpoints.load(run)
    saved.close()
    if plugin is not None:
        with config.unlocked():
            config.plugin = plugin
    engine = data.renderer(config)
    if isinstance(engine, engines.AbsentRenderer):
        name = vst3.variable(config.synth)
        raise engines.MissingPluginError(
            f"matching renders presets, and the plug-in of {config.synth} is "
            f"not here: set the environment variable {name} or --plugin to "
            "its .vst3 file or folder"
        )
    if "proxy" in config:
        opened = matching.load(run)
        proxy, source = opened.proxy, opened.handcrafted
        variables = opened.proxy_variables
        estimate = _estimator(opened)
        if presets is not None:
            config.presets = presets
            source = data.matching_source(config)
    else:
        config.presets = config.presets if presets is None else presets
        estimate = None
        proxy = build.encoder(config)
        with checkpoints.manager(pathlib.Path(run), read_only=True) as saved:
            state = checkpoints.restore(
                saved,
                build.empty_state(config),
                checkpoints.best_step(saved),
            )
        variables = matching.proxy_variables(state)
        source = _bank_of_proxy(config)
    return Setup(
        engine=functools.partial(data.renderer, config),
        space=spaces.get(config.synth),
        settings=engine.settings,
        embed=data.embedder(config),
        proxy=proxy,
        proxy_variables=jax.device_put(variables),
        bank=_open_bank(source),
        estimate=estimate,
        state=getattr(engine, "write_state", None),
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
