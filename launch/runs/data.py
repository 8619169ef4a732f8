"""From a config to the data it names: built when missing, then loaded.

A data folder, `config.data`, holds data sets in TFDS layout: `synthetic`,
with the splits train, validation and test, and, when `config.presets` names
banks of hand-crafted presets, `handcrafted-<digest of what is in them>`. They
depend on the synthesizer, the audio model and the data fields of a config
alone, so experiments may share a folder. Sound matching without a bank makes
do with `synthetic-audio`, synthetic presets that no proxy was trained on.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int64

from datasets import engines, loader, precompute, shards
from datasets.presets import bank as handcrafted
from datasets.presets import reading
from launch import Config
from launch.runs import devices, embedding
from proxy import audio, spaces

NO_BANK = "hand-crafted: no bank (see launch.presets)"


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set on disk.

    Attributes:
      directory: its folder; `tfds.builder_from_directory` opens it.
      spec: what it holds.
    """

    directory: pathlib.Path
    spec: shards.DataSpec

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its splits."""
        return tuple(name for name, _ in self.spec.splits)

    def columns(
        self,
        split: str,
        features: Sequence[str] = ("preset", "embedding"),
    ) -> loader.Columns:
        """Opens features of a split; see `loader.open_columns`."""
        return loader.open_columns(
            self.directory,
            self.spec,
            split,
            features,
            progress=jax.process_index() == 0,
        )

    def names(self, split: str) -> list[str]:
        """Names of a hand-crafted split's presets, in row order."""
        return loader.open_names(self.directory, self.spec, split)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The data of an experiment.

    Attributes:
      synthetic: sampled presets: train, validation, test; None when only
        hand-crafted presets are used and it was never built.
      handcrafted: presets of banks, in those splits of them that are not
        empty; None without a bank.
    """

    synthetic: Source | None
    handcrafted: Source | None


# Specs -----------------------------------------------------------------------


def renderer(
    config: Config, settings: engines.RenderSettings | None = None
) -> engines.Renderer:
    """The engine of a config, at the sample rate of its audio model.

    Without the synthesizer's plug-in, but with data in `config.data` that was
    made elsewhere, it is an engine that stands for the one they were made
    with, and raises when it is to render.

    Args:
      config: an experiment.
      settings: how presets are made to sound, in place of the config's.

    Raises:
      ValueError: for an unknown synthesizer, audio model or render setting,
        or a plug-in that is missing (`MissingPluginError`).
      ImportError: when the engine is not installed.
      RuntimeError: when a plug-in cannot be loaded.
    """
    rate = audio.get(config.audio_model).sample_rate
    settings = settings or engines.RenderSettings.from_dict(
        {**dict(config.get("render", {})), "sample_rate": rate}
    )
    if absent := _absent_plugin(config):
        version = _version_elsewhere(config)
        if version is None:
            raise absent
        space = spaces.get(config.synth)
        return engines.AbsentRenderer(
            config.synth, version, space, settings, str(absent)
        )
    return engines.get(
        config.synth,
        settings,
        plugin=config.get("plugin", ""),
        host=dict(config.get("host", {})),
    )


def _absent_plugin(config: Config) -> engines.MissingPluginError | None:
    """What is wrong when a config needs a plug-in that is not there."""
    plugin = config.get("plugin", "")
    if config.synth not in spaces.names() or engines.embedded(
        config.synth, plugin
    ):
        return None
    from datasets.engines.vst3 import engine as vst3

    try:
        vst3.find(config.synth, plugin)
    except engines.MissingPluginError as error:
        return error
    return None


def _version_elsewhere(config: Config) -> str | None:
    """Version of the engine that the data in a config's folder came from."""
    root = pathlib.Path(config.data).expanduser()
    for path in sorted(root.glob("*/metadata.json")):
        spec = shards.DataSpec.from_dict(shards.read_spec(path.parent))
        if spec.synth == config.synth:
            return spec.synth_version
    return None


def check_engine(config: Config) -> None:
    """Checks, without loading it, that a config's plug-in or data are there.

    Raises:
      MissingPluginError: (a `ValueError`) neither is.
    """
    absent = _absent_plugin(config)
    if absent is not None and _version_elsewhere(config) is None:
        raise absent


def _spec(
    config: Config,
    engine: engines.Renderer,
    directory: pathlib.Path,
    *,
    fetch: bool = True,
    **fields: Any,
) -> shards.DataSpec:
    model = audio.get(config.audio_model)
    spec = shards.DataSpec(
        synth=engine.name,
        synth_version=engine.version,
        space=shards.space_digest(engine.space),
        parameters=engine.space.num_used,
        audio_model=model.name,
        audio_weights=model.weights or "",
        embedding=model.dimension,
        settings=engine.settings,
        embed_batch=config.embed_batch,
        **fields,
    )
    fetch = fetch and bool(shards.missing(directory, spec))
    known = dataclasses.replace(
        spec, weights_sha256=_weights_digest(config, model, fetch)
    )
    return shards.adopt_weights(directory, known)


def _weights_digest(
    config: Config, model: audio.AudioModel, fetch: bool
) -> str:
    """sha256 of the audio model's weights, "" when not known.

    Weights are needed where something is left to build; a complete data set
    is used without.
    """
    if model.weights is None:
        return ""
    path = config.get("weights") or None
    if model.host is not None:
        if not fetch:
            return ""
        from datasets.weights import hosts

        return hosts.load(model.name, path).sha256
    from datasets.weights import published

    known = published.digest(model.weights, path=path)
    if known or not fetch:
        return known
    return published.digest(model.weights, path=path, fetch=True)


def _validation(config: Config) -> tuple[int, int]:
    """How many rankings, of how many candidates."""
    rankings, candidates = (int(n) for n in config.validation)
    return rankings, candidates


def _sampling(config: Config) -> dict[str, Any]:
    """How synthetic presets are drawn; configs may be older than the field."""
    return {k: float(v) for k, v in dict(config.get("sampling", {})).items()}


def synthetic_spec(
    config: Config, engine: engines.Renderer, *, fetch: bool = True
) -> shards.DataSpec:
    """What the synthetic data set of a config holds.

    Args:
      config: an experiment.
      engine: see `renderer`.
      fetch: whether to download the audio model's weights, to say which they
        are, when something is left to build.

    Raises:
      ValueError: naming the field that is out of range.
    """
    rankings, candidates = _validation(config)
    if candidates < 2:
        raise ValueError(
            f"config.validation={tuple(config.validation)}: a ranking needs "
            "at least 2 candidates"
        )
    return _spec(
        config,
        engine,
        pathlib.Path(config.data).expanduser() / "synthetic",
        fetch=fetch,
        name=f"{config.synth}_{config.audio_model}",
        seed=config.get("data_seed", config.seed),
        splits=(
            ("train", config.num_train),
            ("validation", rankings * candidates),
            ("test", config.num_test),
        ),
        shard_size=config.shard_size,
        keep_audio=config.keep_audio,
        **_sampling(config),
    )


def _passing(
    config: Config, engine: engines.Renderer, bank: handcrafted.Bank
) -> handcrafted.Bank:
    """The presets of a bank that pass the level gate.

    Rendering a bank takes minutes, so which rows passed is remembered.
    """
    digest = shards.presets_digest(bank.presets, bank.names)
    state = {
        "presets": digest,
        "engine": engine.version,
        "settings": engine.settings.to_dict(),
    }
    root = pathlib.Path(config.data).expanduser()
    memory = root / ".cache" / f"gate-{digest}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(memory.read_text())
        if known["state"] == state:
            return bank.take(known["kept"])
    passed = handcrafted.gate(
        bank,
        engine,
        workers=precompute.num_workers(config.workers),
        progress=jax.process_index() == 0,
    )
    if jax.process_index() == 0:
        print(passed.report)
    place = {source: row for row, source in enumerate(bank.sources)}
    kept = [place[source] for source in passed.sources]
    shards.write_atomically(memory, json.dumps({"state": state, "kept": kept}))
    return passed


def _handcrafted(
    config: Config, engine: engines.Renderer
) -> tuple[Source, dict[str, np.ndarray], dict[str, list[str]]]:
    """Place, presets and names of the hand-crafted data set, by split."""
    found = reading.load(
        config.presets.split(","),
        engine.space,
        getattr(engine, "read_state", None),
    )
    bank = _passing(config, engine, found)
    if not len(bank):
        raise ValueError(
            f"{config.presets}: no preset passes the level gate; see `python "
            "-m launch.presets inspect --gate`"
        )
    digest = shards.presets_digest(found.presets, found.names)
    rows = handcrafted.split(bank.presets, config.get("data_seed", config.seed))
    rows = {name: part for name, part in rows.items() if len(part)}
    directory = pathlib.Path(config.data).expanduser() / f"handcrafted-{digest}"
    spec = _spec(
        config,
        engine,
        directory,
        name=f"{config.synth}_{config.audio_model}_handcrafted",
        source="handcrafted",
        presets=shards.presets_digest(bank.presets, bank.names),
        seed=config.get("data_seed", config.seed),
        splits=tuple((name, len(part)) for name, part in rows.items()),
        # Their audio is kept: shards of it would be large.
        shard_size=min(config.shard_size, 512),
        keep_audio=True,
    )
    return (
        Source(directory, spec),
        {name: bank.presets[part] for name, part in rows.items()},
        {name: [bank.names[i] for i in part] for name, part in rows.items()},
    )


# Building --------------------------------------------------------------------


def audio_variables(config: Config) -> Any:
    """Weights of the audio model of a config, empty for one without.

    And for one that runs outside JAX, which keeps them to itself.
    """
    model = audio.get(config.audio_model)
    if model.weights is None or model.host is not None:
        return {}
    from datasets.weights import published

    return jax.device_put(
        published.load(model.weights, path=config.get("weights") or None)
    )


def embedder(config: Config) -> embedding.Embed:
    """The audio model of a config, compiled, its weights in place.

    See `embedding.embedder`. A model outside JAX runs where its library does.
    """
    model = audio.get(config.audio_model)
    if model.host is not None:
        from datasets.weights import hosts

        path = config.get("weights") or None
        loaded = hosts.load(model.name, path)
        return lambda sounds: loaded.embed(np.asarray(sounds))
    return embedding.embedder(model, audio_variables(config))


def _build(
    config: Config,
    engine: engines.Renderer,
    source: Source,
    make_embed: Callable[[], Callable],
    *,
    numbers: Iterable[int] | None = None,
    task: int = 0,
    num_tasks: int = 1,
    **given: Any,
) -> None:
    """Builds what is missing of one data set; see `ensure`."""
    directory, spec = source.directory, source.spec
    shards.open_directory(directory, spec)
    pairs = precompute.share(
        spec, numbers=numbers, task=task, num_tasks=num_tasks
    )
    absent = set(shards.missing(directory, spec)) & set(pairs)
    quiet = jax.process_index() != 0
    if absent and not quiet:
        print(
            f"{directory}: building {len(absent)} of {len(pairs)} shards "
            f"({len(pairs) - len(absent)} already there)",
            flush=True,
        )
    if absent and isinstance(engine, engines.AbsentRenderer):
        raise engines.MissingPluginError(f"{directory}: {engine.missing}")
    # Of data that came from elsewhere, too: shards travel without it.
    _note_noise(engine, directory, quiet=quiet or not absent)
    report = precompute.build(
        spec,
        directory,
        engine,
        make_embed() if absent else lambda sounds: sounds,
        workers=config.workers,
        only=pairs,
        in_flight=embedding.in_flight(),
        progress=not quiet,
        **given,
    )
    if absent and not quiet:
        print(f"{directory}: {report}", flush=True)


def _note_noise(
    engine: engines.Renderer, directory: pathlib.Path, *, quiet: bool
) -> None:
    """Keeps a plug-in's noise floor beside the data that it makes."""
    if not hasattr(engine, "contract"):
        return
    from launch.runs import noise

    plugin: Any = engine
    found = noise.keep(directory, lambda: noise.measure(plugin))
    if not quiet:
        print(noise.describe(found), flush=True)


def ensure(
    config: Config,
    *,
    numbers: Iterable[int] | None = None,
    task: int = 0,
    num_tasks: int = 1,
) -> Dataset:
    """Builds what is missing of a config's data, saying so.

    A config that trains on hand-crafted presets needs no synthetic ones:
    these are part of the result only where they are complete already.

    Args:
      config: an experiment.
      numbers: only these shards of the synthetic data set, and no
        hand-crafted one; None for all of both.
      task: of the shards, every `num_tasks`-th one from `task` on.
      num_tasks: see `precompute.share`.

    Returns:
      Where the data is; complete unless a part was asked for.

    Raises:
      ShardError: when the folder holds other data, is damaged or full.
      ValueError: when a config field is out of range.
    """
    engine = renderer(config)
    root = pathlib.Path(config.data).expanduser()
    embed = functools.cache(functools.partial(embedder, config))
    part = {"task": task, "num_tasks": num_tasks}
    needed = config.source != "handcrafted" or numbers is not None
    synthetic: Source | None = Source(
        root / "synthetic", synthetic_spec(config, engine, fetch=needed)
    )
    if needed:
        _build(config, engine, synthetic, embed, numbers=numbers, **part)
    elif not _complete(synthetic):
        synthetic = None
    if not config.presets:
        if jax.process_index() == 0:
            print(NO_BANK, flush=True)
        return Dataset(synthetic, None)
    if numbers is not None:
        return Dataset(synthetic, None)
    crafted, presets, names = _handcrafted(config, engine)
    given = {"presets": presets, "names": names}
    _build(config, engine, crafted, embed, **part, **given)
    return Dataset(synthetic, crafted)


def _complete(source: Source) -> bool:
    """Whether a data set is there, whole, and the one that is wanted."""
    try:
        shards.check_directory(source.directory, source.spec)
    except shards.ShardError:
        return False
    return not shards.missing(source.directory, source.spec)


def matching_source(
    config: Config, *, task: int = 0, num_tasks: int = 1
) -> Source:
    """The presets with audio that sound matching learns from, built if missing.

    Args:
      config: a matching experiment. With `presets`, those banks; without,
        synthetic presets: `stand_in` says how many in each split.
      task: of the shards, every `num_tasks`-th one from `task` on.
      num_tasks: see `precompute.share`.

    Returns:
      Splits train, validation and test with the columns preset, embedding,
      audio and audio_scale; complete unless a part was asked for.

    Raises:
      ShardError: when the folder holds other data, is damaged or full.
      ValueError: when a config field is out of range.
    """
    engine = renderer(config)
    embed = functools.partial(embedder, config)
    part: dict[str, Any] = {"task": task, "num_tasks": num_tasks}
    if config.presets:
        crafted, presets, names = _handcrafted(config, engine)
        given = {"presets": presets, "names": names}
        _build(config, engine, crafted, embed, **part, **given)
        return crafted
    if jax.process_index() == 0:
        print(f"{NO_BANK}; synthetic presets stand in for them", flush=True)
    directory = pathlib.Path(config.data).expanduser() / "synthetic-audio"
    spec = _spec(
        config,
        engine,
        directory,
        name=f"{config.synth}_{config.audio_model}_audio",
        # Another seed than the proxy's training data.
        seed=config.get("data_seed", config.seed) + 1,
        splits=tuple(
            (split, config.stand_in[split])
            for split in ("train", "validation", "test")
        ),
        shard_size=min(config.shard_size, 512),
        keep_audio=True,
        **_sampling(config),
    )
    source = Source(directory, spec)
    _build(config, engine, source, embed, **part)
    return source


# Loading ---------------------------------------------------------------------


def initialize_distributed() -> None:
    """Joins the other processes of a job of several hosts, if there are any.

    Slurm, Open MPI and TPU pods are recognised. Elsewhere, set
    JAX_COORDINATOR_ADDRESS (host:port of the first process),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process.
    """
    env = os.environ
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in env and "JAX_NUM_PROCESSES" in env:
        jax.distributed.initialize(
            num_processes=int(env["JAX_NUM_PROCESSES"]),
            process_id=int(env["JAX_PROCESS_ID"]),
        )
    elif (
        int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
    ):
        jax.distributed.initialize()


def training_source(config: Config, dataset: Dataset) -> Source:
    """The data set that a run trains on and is validated on.

    Args:
      config: with `source`, "synthetic" or "handcrafted".
      dataset: its data.

    Returns:
      That one of the two.

    Raises:
      ValueError: when there is no bank, or no such source.
    """
    if config.source == "synthetic" and dataset.synthetic is not None:
        return dataset.synthetic
    if config.source != "handcrafted":
        raise ValueError(
            f"config.source={config.source!r} (known: synthetic, handcrafted)"
        )
    if dataset.handcrafted is None:
        raise ValueError(
            "config.source=handcrafted, but there is no bank: set "
            "--config.presets=PATH (see launch.presets)"
        )
    return dataset.handcrafted


def matching_rows(
    config: Config, source: Source, split: str
) -> Int64[np.ndarray, " rows"]:
    """Which rows of a split a matching experiment uses.

    Args:
      config: a matching experiment: `num_train` and `validation_rows` limit
        those splits, 0 for all of it.
      source: see `matching_source`.
      split: "train", "validation" or "test".

    Returns:
      Row numbers, ascending. Of a split with more rows than wanted, a random
      part: the same in every run.

    Raises:
      ValueError: when the bank is so small that the split is empty.
    """
    if split not in source.splits:
        raise ValueError(
            f"{source.directory} has no {split} split: its bank has too few "
            "presets; add some to config.presets"
        )
    rows = source.spec.rows(split)
    wanted = {"train": "num_train", "validation": "validation_rows"}
    most = config[wanted[split]] if split in wanted else 0
    if not most or most >= rows:
        return np.arange(rows)
    drawn = loader.permutation(rows, config.data_seed, 0)[:most]
    return np.sort(drawn).astype(np.int64)


def steps_per_epoch(rows: int, batch: int) -> int:
    """Whole batches in a pass over the training presets.

    Raises:
      ValueError: when a batch is larger than their number.
    """
    if not 1 <= batch <= rows:
        raise ValueError(
            f"config.batch={batch}, there are {rows} training presets; choose "
            f"between 1 and {rows}"
        )
    return rows // batch


def validate(
    config: Config,
    dataset: Dataset,
    validator: Callable[..., Any],
    state: Any,
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """Scores a state on the validation split, a block of rankings at a time.

    Args:
      config: an experiment; `config.validation` is (rankings, candidates).
        A hand-crafted split has as many of such rankings as it fills.
      dataset: its data.
      validator: see `experiment.validator`.
      state: the training state, on every device.
      mesh: the devices.

    Returns:
      "mrr", the mean reciprocal rank, and "l1".
    """
    rankings, candidates = _validation(config)
    columns = training_source(config, dataset).columns("validation")
    rows = len(columns["preset"])
    candidates = min(candidates, rows)
    rankings = min(rankings, rows // candidates)
    columns = {k: c[: rankings * candidates] for k, c in columns.items()}
    # Blocks of one shape, so that the validator is compiled once.
    size = max(8192 // candidates, 1)
    size = min(-(-size // mesh.size) * mesh.size, rankings)
    whole = size % mesh.size == 0
    sharding = devices.split(mesh) if whole else devices.replicated(mesh)
    found = []
    for rows, block in loader.blocks(columns, size * candidates):
        count = len(rows) // candidates
        shaped = {
            key: np.resize(value, (size, candidates, value.shape[-1]))
            for key, value in block.items()
        }
        placed = devices.place(shaped, sharding)
        scores = validator(state, placed["preset"], placed["embedding"])
        scores = multihost_utils.process_allgather(scores, tiled=True)
        found.append(np.stack(scores)[:, :count])
    mrr, l1 = np.concatenate(found, axis=1).mean(1)
    return {"mrr": float(mrr), "l1": float(l1)}
