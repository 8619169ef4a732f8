"""Runs opened for reading: of proxies, of estimators, for matching sounds.

matching_run = load("runs/dexed_match_mix_small")
logits = estimate(matching_run, sounds)  # [batch, width]
presets = decode(logits, matching_run.space)

Nothing is built here, and no engine is started.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from datasets import engines, loader
from datasets.engines.vst3 import engine as vst3
from launch import Config
from launch.runs import build, checkpoints, data, embedding
from matching import decode as decoding
from matching import estimator as estimators
from matching import hearing
from proxy import objective, spaces
from proxy.space import ParameterSpace

Engine = Callable[[], engines.Renderer]

# Sounds that go through the estimator together.
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class ProxyRun:
    """A finished or unfinished run of a proxy, opened for reading.

    Attributes:
      config: config of the run.
      encoder: the preset encoder.
      state: weights of the encoder, at a checkpoint.
      step: step of the checkpoint.
    """

    config: Config
    encoder: Any
    state: objective.TrainState
    step: int

    @property
    def variables(self) -> dict[str, Any]:
        """For `encoder.apply`; its parameters averaged, where they were."""
        state = self.state
        params = state.params if state.average is None else state.average
        return {"params": params, "batch_stats": state.batch_stats}


def open_proxy(run: str | os.PathLike[str], which: str = "best") -> ProxyRun:
    """Opens the run of a proxy.

    Args:
      run: directory of the run, or `pretrained:NAME`.
      which: "best" or "last" checkpoint.

    Raises:
      FileNotFoundError: when there is no run, or no checkpoint in it yet.
      ValueError: when it is the run of an estimator.
    """
    config, saved = checkpoints.load(run)
    with saved:
        if config.kind != "proxy":
            raise ValueError(
                f"{run} is no run of a proxy; choose one that was trained "
                "with configs/dexed.py:hn_oh or the like"
            )
        best = checkpoints.best_step(saved)
        step = best if which == "best" else saved.latest_step() or best
        state = checkpoints.restore(saved, build.empty_state(config), step)
    return ProxyRun(config, build.encoder(config), state, step)


def load_proxy(config: Config) -> ProxyRun:
    """Opens `config.proxy`, the frozen proxy of a matching experiment.

    Raises:
      FileNotFoundError: when there is no such run.
      ValueError: when it is of another synthesizer or audio model.
    """
    try:
        found = open_proxy(config.proxy)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"config.proxy={config.proxy}: {error}") from error
    for field in ("synth", "audio_model"):
        if found.config[field] != config[field]:
            raise ValueError(
                f"config.proxy={config.proxy} has {field} "
                f"{found.config[field]}, this experiment {config[field]}; "
                f"choose another proxy or --config.{field}"
            )
    return found


@dataclasses.dataclass(frozen=True)
class MatchingRun:
    """A finished or unfinished run of an estimator, opened for reading.

    Attributes:
      config: config of the run.
      space: the synthesizer's parameters.
      estimator: the network from spectrograms or embeddings to logits.
      estimator_variables: params and batch_stats at the best checkpoint.
      scaling: what its input is scaled by, see `estimators.prepare`.
      step: step of the checkpoint.
      proxy: run of the preset encoder that the perceptual loss went through.
      handcrafted: the data set matched on, with the splits train, validation
        and test and the columns preset, embedding, audio and audio_scale.
        Without a bank of hand-crafted presets, synthetic ones stand in.
    """

    config: Config
    space: ParameterSpace
    estimator: Any
    estimator_variables: Any
    scaling: dict[str, np.ndarray]
    step: int
    proxy: ProxyRun
    handcrafted: data.Source

    @property
    def settings(self) -> engines.RenderSettings:
        """How presets were rendered; sounds are at its sample rate."""
        return self.handcrafted.spec.settings

    def names(self, split: str) -> list[str]:
        """Names of the presets of a split, in row order."""
        if self.handcrafted.spec.source == "handcrafted":
            return self.handcrafted.names(split)
        rows = self.handcrafted.spec.rows(split)
        return [f"synthetic {split} {row}" for row in range(rows)]


def reads_embeddings(config: Config) -> bool:
    """Whether an estimator reads embeddings; those of old read no other."""
    return config.get("hears", "spectrogram") == "embedding"


def network(config: Config, axis_name: str | None = None) -> Any:
    """The estimator of a matching experiment, a Linen module."""
    space, dtype = spaces.get(config.synth), jnp.dtype(config.dtype)
    if reads_embeddings(config):
        return estimators.ModuleEstimator(
            space, **config.network, dropout=config.dropout, dtype=dtype
        )
    return estimators.Estimator(
        space.width,
        dropout=config.dropout,
        axis_name=axis_name,
        dtype=dtype,
    )


def variables(state: Any) -> dict[str, Any]:
    """For an estimator's `apply`: its parameters averaged, where they were.

    Args:
      state: a `TrainState` as a dictionary.
    """
    average = state.get("average")
    params = state["params"] if average is None else average
    return {"params": params, "batch_stats": state.get("batch_stats") or {}}


def scaling(tree: dict[str, Any]) -> dict[str, Any]:
    """What the input is scaled by, of all that a checkpoint holds."""
    return {k: v for k, v in tree.items() if k not in ("state", "plateau")}


def load(run: str | os.PathLike[str]) -> MatchingRun:
    """Opens a matching run at its best checkpoint.

    Args:
      run: directory of the run, from `launch.train` with a matching experiment.

    Returns:
      The run.

    Raises:
      FileNotFoundError: when there is no run, or no checkpoint in it yet.
      ShardError: when its data is not there.
      ValueError: when it is the run of a proxy.
    """
    config, saved = checkpoints.load(run)
    with saved:
        if config.kind != "estimator":
            raise ValueError(
                f"{pathlib.Path(run)} is the run of a proxy, not of an "
                "estimator; train one with configs/dexed.py:match"
            )
        step = checkpoints.best_step(saved)
        tree = checkpoints.restore_raw(saved, step)
    source = data.recorded(pathlib.Path(run), config.data)["matching"]
    return MatchingRun(
        config=config,
        space=spaces.get(config.synth),
        estimator=network(config),
        estimator_variables=variables(tree["state"]),
        scaling=scaling(tree),
        step=step,
        proxy=load_proxy(config),
        handcrafted=source,
    )


@functools.partial(jax.jit, static_argnames=("network", "sample_rate"))
def _logits(network, variables, given, scaling, *, sample_rate):
    if "minimum" in scaling:
        given = estimators.spectrogram(given, sample_rate)
    heard = estimators.prepare(given, scaling)
    return network.apply(variables, heard, train=False)


def logits(
    network: Any,
    variables: Any,
    given: Float[np.ndarray, "batch features"] | Float[Array, "batch features"],
    scaling: dict[str, Any],
    sample_rate: int,
) -> Float[np.ndarray, "batch width"]:
    """What an estimator says of sounds, a few at a time.

    Args:
      network: the estimator.
      variables: params and batch_stats of the estimator.
      given: clips in [-1, 1], more than 513 samples; or, for an estimator
        that reads them, embeddings.
      scaling: what its input is scaled by, see `estimators.prepare`.
      sample_rate: sample rate of the sounds, in Hz.

    Returns:
      Logits in table order.
    """

    def work(part):
        return _logits(
            network, variables, part, scaling, sample_rate=sample_rate
        )

    # Of a few sounds no block is filled up: they may be only one.
    size = min(_BLOCK, len(given))
    return loader.map_blocks(work, np.asarray(given, np.float32), size=size)


@functools.cache
def _embedder(name: str, weights: str) -> embedding.Embed:
    return build.embedder(name, weights)


def embed(
    config: Config,
    sounds: Float[np.ndarray, "batch samples"] | Float[Array, "batch samples"],
) -> Float[np.ndarray, "batch embedding"]:
    """What the audio model of a config makes of sounds, a few at a time."""
    return loader.map_blocks(
        _embedder(config.audio_model, config.weights),
        np.asarray(sounds, np.float32),
        size=min(config.embed_batch, len(sounds)),
    )


def as_known(
    settings: engines.RenderSettings,
    sound: Float[np.ndarray, " samples"],
    note: int,
    hold: float,
) -> Float[np.ndarray, " samples"]:
    """A sound as it would be at the note of a run, and held no longer.

    Args:
      settings: of the run; the sound is at its sample rate.
      sound: a mono sound.
      note: MIDI note of the sound.
      hold: seconds from its beginning to note-off.

    Returns:
      As many samples, to be embedded or estimated from.
    """
    rate, until = settings.sample_rate, settings.note_on + settings.hold
    sound = hearing.shorten(sound, rate, hold, until)
    return hearing.transpose(sound, settings.note - note)


def estimate(
    matching_run: MatchingRun,
    sounds: Float[np.ndarray, "batch samples"] | Float[Array, "batch samples"],
) -> Float[np.ndarray, "batch width"]:
    """Estimates presets from sounds.

    Args:
      matching_run: see `load`.
      sounds: clips in [-1, 1] at `matching_run.settings.sample_rate`, which
        is 32 kHz for EfficientAT's embeddings; more than 513 samples, best
        of the length in the settings, and brought to their note and hold,
        see `as_known`.

    Returns:
      Logits, which `decode` reads.
    """
    given = sounds
    if reads_embeddings(matching_run.config):
        given = embed(matching_run.config, sounds)
    return logits(
        matching_run.estimator,
        matching_run.estimator_variables,
        given,
        matching_run.scaling,
        matching_run.settings.sample_rate,
    )


_hard = jax.jit(
    lambda logits, space: space.snap(decoding.hard(logits, space)),
    static_argnums=1,
)


def decode(
    logits: Float[np.ndarray, "batch width"], space: ParameterSpace
) -> Float[np.ndarray, "batch parameters"]:
    """Logits to presets that can be rendered, each value on its grid."""
    return np.asarray(_hard(logits, space), np.float32)


# Matching sounds -------------------------------------------------------------

# Synthetic presets that are searched where there is no bank.
_MOST_SYNTHETIC = 65_536


@dataclasses.dataclass(frozen=True)
class Bank:
    """Presets with the embeddings of their sounds, to start a search from.

    Attributes:
      presets: hard presets.
      embeddings: those of sounds rendered with the settings of the run, or
        what the proxy says that they are.
      source: "hand-crafted", "synthetic" or "drawn".
    """

    presets: Float[np.ndarray, "entries parameters"]
    embeddings: Float[np.ndarray, "entries embedding"]
    source: str


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that is the same for all sounds of a command.

    Attributes:
      config: config of the run.
      engine: starts the run's engine; the same one at every call.
      space: parameters of the synthesizer.
      settings: how the bank and the proxy's training data were rendered.
      embed: sounds at the rate of the settings to embeddings.
      proxy: the preset encoder.
      proxy_variables: weights of the preset encoder.
      bank: where searches start.
      estimate: a sound at that rate, see `as_known`, to a hard preset; None
        for the run of a proxy.
    """

    config: Config
    engine: Engine
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


def setup(
    run: str | os.PathLike[str],
    plugin: str | None = None,
    find: Callable[[Config, ProxyRun, Engine], Bank] | None = None,
) -> Setup:
    """Opens the run of an estimator or of a proxy to match sounds with.

    Args:
      run: directory of the run, or `pretrained:NAME`.
      plugin: path of a VST3 plug-in in place of the run's; None for that.
      find: finds the bank, given the run's config, proxy and engine; None for
        that of the run.

    Returns:
      The setup. The bank of a run is the training split of its hand-crafted
      presets; without those, its synthetic presets.

    Raises:
      FileNotFoundError: when there is no run or no bank.
      ValueError: when it does not fit, or the plug-in is missing.
    """
    config = checkpoints.read_config(run)
    if plugin is not None:
        config.plugin = plugin
    try:
        engines.check(config.synth, config.plugin)
    except engines.MissingPluginError as error:
        raise engines.MissingPluginError(
            f"matching renders presets, and the plug-in of {config.synth} is "
            "not here: set the environment variable "
            f"{vst3.variable(config.synth)} or --plugin to its .vst3 file or "
            "folder"
        ) from error
    engine = functools.cache(build.engine(config))
    if config.kind == "estimator":
        matching_run = load(run)
        proxy, guess = (
            matching_run.proxy,
            functools.partial(_guess, matching_run),
        )
        own = functools.partial(open_bank, matching_run.handcrafted)
    else:
        proxy, guess = open_proxy(run), None
        own = functools.partial(_bank_of_proxy, run, config)
    return Setup(
        config=config,
        engine=engine,
        space=spaces.get(config.synth),
        settings=build.settings(config),
        embed=_embedder(config.audio_model, config.weights),
        proxy=proxy.encoder,
        proxy_variables=jax.device_put(proxy.variables),
        bank=find(config, proxy, engine) if find else own(),
        estimate=guess,
    )


def _guess(run: MatchingRun, sound: np.ndarray) -> np.ndarray:
    return decode(estimate(run, sound[None]), run.space)[0]


def _bank_of_proxy(run: str | os.PathLike[str], config: Config) -> Bank:
    known = data.recorded(checkpoints.place(run), config.data)
    return open_bank(known.get("handcrafted") or known["synthetic"])


def open_bank(source: data.Source) -> Bank:
    """The training presets of a data set, to search among."""
    columns = source.columns("train")
    crafted = source.spec.source == "handcrafted"
    rows = slice(None if crafted else _MOST_SYNTHETIC)
    return Bank(
        presets=np.array(columns["preset"][rows], np.float32),
        embeddings=np.array(columns["embedding"][rows], np.float32),
        source="hand-crafted" if crafted else "synthetic",
    )
