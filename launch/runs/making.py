"""A config's data sets, built where they are missing.

A data set that is complete is used as it is: neither its engine nor its audio
model is started, nor need they be there.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from configs import ranges
from datasets import engines, files, precompute, shards
from datasets.presets import bank as handcrafted
from datasets.presets import reading
from datasets.spec import DataSpec, presets_digest, space_digest
from launch import Config
from launch.runs import build, data, embedding, noise
from launch.runs.data import NO_BANK, Dataset, Source
from proxy import audio, pretrained, priors, spaces, splits
from proxy.space import ParameterSpace

# Shards with sounds would be large.
_MOST_SOUNDS = 512


@dataclasses.dataclass(frozen=True)
class Maker:
    """What data sets are made with; nothing of it is started yet.

    Attributes:
      root: the folder of the data sets.
      space: parameters of the synthesizer.
      model: the audio model.
      weights: a file with the audio model's weights; empty for the published.
      settings: how presets are made to sound.
      engine: starts the engine; the same one at every call.
      hosted: whether the engine is a plug-in.
      most_dead: see `noise.check`.
      seed: seed of the synthetic presets.
      banks: files and folders of hand-crafted presets.
      shares: of synthetic presets, by the name of a prior.
      sampling: arguments of `priors.Uniform`.
      fitted: file of the fitted prior; empty for the project's own.
      shard_size: rows of a shard.
      embed_batch: rows embedded at once.
      workers: rendering workers, 0 for one per core.
    """

    root: pathlib.Path
    space: ParameterSpace
    model: audio.AudioModel
    weights: str
    settings: engines.RenderSettings
    engine: Callable[[], engines.Renderer]
    hosted: bool
    most_dead: float | None
    seed: int
    banks: tuple[str, ...]
    shares: dict[str, float]
    sampling: dict[str, float]
    fitted: str
    shard_size: int
    embed_batch: int
    workers: int

    @functools.cached_property
    def embed(self) -> embedding.Embed:
        """The audio model, loaded at first use."""
        return build.embedder(self.model.name, self.weights)

    @functools.cached_property
    def bank(self) -> handcrafted.Bank:
        """The hand-crafted presets, heard or not, read at first use."""

        def read_state(data: bytes, kind: str) -> np.ndarray:
            return self.engine().read_state(data, kind)

        return reading.load(
            self.banks, self.space, read_state if self.hosted else None
        )

    @functools.cached_property
    def prior(self) -> priors.Prior:
        """What synthetic presets are drawn from."""
        return _prior(self)


@contextlib.contextmanager
def maker(
    config: Config, engine: Callable[[], engines.Renderer] | None = None
) -> Iterator[Maker]:
    """Settles what a config's data are made with.

    Args:
      config: an experiment.
      engine: starts an engine that stays when the data are made; None for one
        of their own.

    Yields:
      The maker.

    Raises:
      ValueError: for an unknown synthesizer, audio model or render setting,
        or a field that is out of range.
    """
    ranges.check(config)
    own = functools.cache(build.engine(config))
    try:
        yield Maker(
            root=pathlib.Path(config.data).expanduser(),
            space=spaces.get(config.synth),
            model=audio.get(config.audio_model),
            weights=config.weights,
            settings=build.settings(config),
            engine=engine or own,
            hosted=not engines.embedded(config.synth, config.plugin),
            most_dead=config.host.get("dead"),
            seed=config.data_seed,
            banks=tuple(filter(None, config.presets.split(","))),
            shares={k: float(v) for k, v in config.prior.items()},
            sampling={k: float(v) for k, v in config.sampling.items()},
            fitted=config.fitted,
            shard_size=config.shard_size,
            embed_batch=config.embed_batch,
            workers=config.workers,
        )
    finally:
        if own.cache_info().currsize:
            own().close()


def check(config: Config) -> None:
    """Checks a config, and that there is data or a plug-in to make it.

    Nothing is loaded or started.

    Raises:
      MissingPluginError: (a `ValueError`) neither is there.
      ValueError: naming every field that is out of range.
    """
    ranges.check(config)
    root = pathlib.Path(config.data).expanduser()
    for path in root.glob("*/metadata.json"):
        if shards.read_spec(path.parent).get("synth") == config.synth:
            return
    engines.check(config.synth, config.plugin)


# What is wanted --------------------------------------------------------------


def _prior(making: Maker) -> priors.Prior:
    """The prior, or mixture of priors, of `config.prior`.

    Raises:
      ValueError: when the shares are none, or something that they need is not
        there.
    """
    space = making.space

    def fitted() -> priors.Prior:
        try:
            if not making.fitted:
                return pretrained.prior(space.name)
            path = pathlib.Path(making.fitted).expanduser()
            return priors.from_bytes(path.read_bytes(), space)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"config.fitted={making.fitted}: {error}; or draw uniformly: "
                "--config.prior.uniform=1 --config.prior.fitted=0"
            ) from error

    def variations() -> priors.Prior:
        if not making.banks:
            raise ValueError(
                "config.prior.variations: there is no bank to vary; set "
                "--config.presets=PATH (see launch.presets)"
            )
        bank = making.bank.presets
        parents = bank[splits.split(bank, making.seed)["train"]]
        return priors.Variations(space, parents)

    known: dict[str, Callable[[], priors.Prior]] = {
        "uniform": lambda: priors.Uniform(space, **making.sampling),
        "fitted": fitted,
        "variations": variations,
    }
    given = making.shares
    if (
        given.keys() - known.keys()
        or min(given.values(), default=0) < 0
        or abs(sum(given.values()) - 1) > 1e-6
    ):
        raise ValueError(
            f"config.prior={given}: it needs shares of {', '.join(known)} that "
            "are 1 together"
        )
    chosen = [name for name in known if given.get(name)]
    parts = tuple(known[name]() for name in chosen)
    if len(parts) == 1:
        return parts[0]
    return priors.Mixture(parts, tuple(given[name] for name in chosen))


def _drawn(making: Maker) -> dict[str, Any]:
    """What the spec of synthetic presets says of their prior."""
    if isinstance(making.prior, priors.Uniform):
        return dict(making.sampling)
    return {"prior": priors.digest(making.prior)}


def _wanted(
    making: Maker, folder: str, ending: str = "", **fields: Any
) -> Source:
    """A data set; what it leaves open is taken from the folder."""
    model = making.model
    spec = DataSpec(
        synth=making.space.name,
        synth_version="",
        space=space_digest(making.space),
        parameters=making.space.num_used,
        audio_model=model.name,
        audio_weights=model.weights or "",
        weights_sha256=_weights_digest(making, fetch=False),
        embedding=model.dimension,
        settings=making.settings,
        embed_batch=making.embed_batch,
        **{
            "name": f"{making.space.name}_{model.name}{ending}",
            "seed": making.seed,
            "shard_size": min(making.shard_size, _MOST_SOUNDS),
            "keep_audio": True,
            **fields,
        },
    )
    directory = making.root / folder
    return Source(directory, shards.adopt(directory, spec))


def _weights_digest(making: Maker, fetch: bool) -> str:
    """sha256 of the audio model's weights; "" when not known."""
    model, path = making.model, making.weights or None
    if model.weights is None:
        return ""
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


def synthetic(making: Maker, config: Config) -> Source:
    """The synthetic data set of a proxy, built or not.

    Args:
      making: what it is made with.
      config: the experiment: how many presets, and whether sounds are kept.

    Raises:
      ValueError: naming the field that is out of range.
    """
    rankings, candidates = (int(n) for n in config.validation)
    if candidates < 2:
        raise ValueError(
            f"config.validation={tuple(config.validation)}: a ranking needs "
            "at least 2 candidates"
        )
    if (config.get("train_rows") or 0) > config.num_train:
        raise ValueError(
            f"config.train_rows={config.train_rows}: there are "
            f"config.num_train={config.num_train} training presets; choose "
            "as many at most"
        )
    return _wanted(
        making,
        "synthetic",
        splits=(
            ("train", config.num_train),
            ("validation", rankings * candidates),
            ("test", config.num_test),
        ),
        shard_size=making.shard_size,
        keep_audio=config.keep_audio,
        **_drawn(making),
    )


def settle(making: Maker, source: Source) -> Source:
    """Fills in what is to be built with: starts the engine, finds weights.

    Raises:
      MissingPluginError: (a `ValueError`) there is nothing to render with.
    """
    digest = _weights_digest(making, fetch=True)
    version = making.engine().version
    spec = dataclasses.replace(
        source.spec, synth_version=version, weights_sha256=digest
    )
    return dataclasses.replace(source, spec=spec)


def _whole(directory: pathlib.Path) -> bool:
    """Whether a folder holds a data set with every shard."""
    if not (directory / "metadata.json").exists():
        return False
    spec = shards.load_spec(directory)
    return not shards.missing(directory, spec)


def _passing(
    making: Maker, bank: handcrafted.Bank, directory: pathlib.Path
) -> handcrafted.Bank:
    """The presets of a bank that pass the level gate.

    Rendering a bank takes minutes, so which rows passed is remembered.
    """
    digest = presets_digest(bank.presets, bank.names)
    state = {"presets": digest, "settings": making.settings.to_dict()}
    memory = making.root / ".cache" / f"gate-{digest}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(memory.read_text())
        version = known["state"].pop("engine")
        if known["state"] == state and (
            _whole(directory) or version == making.engine().version
        ):
            return bank.take(known["kept"])
    engine = making.engine()
    passed = handcrafted.gate(
        bank,
        engine,
        workers=engines.num_workers(making.workers),
        progress=jax.process_index() == 0,
    )
    if jax.process_index() == 0:
        print(passed.report)
    place = {source: row for row, source in enumerate(bank.sources)}
    kept = [place[source] for source in passed.sources]
    state["engine"] = engine.version
    files.write_atomically(memory, json.dumps({"state": state, "kept": kept}))
    return passed


def _handcrafted(making: Maker) -> tuple[Source, dict[str, Any]]:
    """The hand-crafted data set, and its presets and names by split."""
    found = making.bank
    digest = presets_digest(found.presets, found.names)
    folder = f"handcrafted-{digest}"
    bank = _passing(making, found, making.root / folder)
    if not len(bank):
        raise ValueError(
            f"{','.join(making.banks)}: no preset passes the level gate; see "
            "`python -m launch.presets inspect --gate`"
        )
    rows = splits.split(bank.presets, making.seed)
    rows = {name: part for name, part in rows.items() if len(part)}
    source = _wanted(
        making,
        folder,
        "_handcrafted",
        source="handcrafted",
        presets=presets_digest(bank.presets, bank.names),
        splits=tuple((name, len(part)) for name, part in rows.items()),
    )
    return source, {
        "presets": {name: bank.presets[part] for name, part in rows.items()},
        "names": {
            name: [bank.names[i] for i in part] for name, part in rows.items()
        },
    }


# Building --------------------------------------------------------------------


def _build(
    making: Maker, source: Source, part: dict[str, Any], **given: Any
) -> Source:
    """Builds what is missing of a part of a data set; see `ensure`."""
    directory = source.directory
    if source.spec.synth_version:
        shards.check_directory(directory, source.spec)
    pairs = precompute.share(source.spec, **part)
    absent = set(shards.missing(directory, source.spec)) & set(pairs)
    say = print if absent and jax.process_index() == 0 else lambda *_, **__: 0
    if absent or not source.spec.synth_version:
        source = settle(making, source)
        shards.open_directory(directory, source.spec)
        say(
            f"{directory}: building {len(absent)} of {len(pairs)} shards "
            f"({len(pairs) - len(absent)} already there)",
            flush=True,
        )
        if making.engine().host:
            # How far its renders are from repeating is kept with its data.
            floor = noise.keep(
                directory,
                lambda: noise.measure(making.engine(), embed=making.embed),
            )
            noise.check(floor, making.space.num_used, making.most_dead)
            say(noise.describe(floor), flush=True)
    if source.spec.prior:
        given["prior"] = making.prior
    report = precompute.build(
        source.spec,
        directory,
        making.engine,
        lambda: making.embed,
        workers=making.workers,
        only=pairs,
        in_flight=embedding.in_flight(),
        progress=jax.process_index() == 0,
        **given,
    )
    say(f"{directory}: {report}", flush=True)
    return source


def ensure(
    config: Config,
    *,
    numbers: Iterable[int] | None = None,
    task: int = 0,
    num_tasks: int = 1,
    engine: Callable[[], engines.Renderer] | None = None,
) -> Dataset:
    """Builds what is missing of a proxy's data, saying so.

    A config that trains on hand-crafted presets needs no synthetic ones:
    these are part of the result only where they are complete already.

    Args:
      config: the experiment of a proxy.
      numbers: only these shards of the synthetic data set, and no
        hand-crafted one; None for all of both.
      task: first shard built; every `num_tasks`-th one follows.
      num_tasks: see `precompute.share`.
      engine: see `maker`.

    Returns:
      Where the data is; complete unless a part was asked for.

    Raises:
      ShardError: when the folder holds other data, is damaged or full.
      ValueError: when a config field is out of range.
    """
    part = {"task": task, "num_tasks": num_tasks}
    with maker(config, engine) as making:
        source: Source | None = synthetic(making, config)
        if config.source != "handcrafted" or numbers is not None:
            source = _build(making, source, {"numbers": numbers, **part})
        elif not shards.is_complete(source.directory, source.spec):
            source = None
        if not config.presets and jax.process_index() == 0:
            print(NO_BANK, flush=True)
        if not config.presets or numbers is not None:
            return Dataset(source, None)
        crafted, given = _handcrafted(making)
        return Dataset(source, _build(making, crafted, part, **given))


def crafted(config: Config) -> Source:
    """Builds what is missing of the hand-crafted data of `config.presets`.

    Raises:
      ShardError: when the folder holds other data, is damaged or full.
      ValueError: when a config field is out of range.
    """
    with maker(config) as making:
        source, given = _handcrafted(making)
        return _build(making, source, {}, **given)


def as_proxy(config: Config) -> Config:
    """The config of a proxy with the data of an estimator's `synthetic`."""
    return type(config)({**config, **config.synthetic})


def of_run(run: pathlib.Path, config: Config) -> Dataset:
    """The data of a proxy's run, built only where it has none.

    It has none when it is of a published model, or came with the project.
    """
    if (run / data.RECORD).exists():
        known = data.recorded(run, config.data)
        return Dataset(known.get("synthetic"), known.get("handcrafted"))
    dataset = ensure(config)
    data.record_dataset(run, dataset)
    return dataset


def matching_source(
    config: Config,
    *,
    task: int = 0,
    num_tasks: int = 1,
    engine: Callable[[], engines.Renderer] | None = None,
) -> Source:
    """The presets with audio that sound matching learns from, built if missing.

    Args:
      config: a matching experiment. With `presets`, those banks; without,
        synthetic presets: `stand_in` says how many in each split.
      task: see `ensure`.
      num_tasks: see `ensure`.
      engine: see `maker`.

    Returns:
      Splits train, validation and test with the columns preset, embedding,
      audio and audio_scale; complete unless a part was asked for.

    Raises:
      ShardError: when the folder holds other data, is damaged or full.
      ValueError: when a config field is out of range.
    """
    part = {"task": task, "num_tasks": num_tasks}
    with maker(config, engine) as making:
        if config.presets:
            crafted, given = _handcrafted(making)
            return _build(making, crafted, part, **given)
        if jax.process_index() == 0:
            print(f"{NO_BANK}; synthetic presets stand in for them", flush=True)
        source = _wanted(
            making,
            "synthetic-audio",
            "_audio",
            # Another seed than the proxy's training data.
            seed=making.seed + 1,
            splits=tuple(
                (split, config.stand_in[split])
                for split in ("train", "validation", "test")
            ),
            **_drawn(making),
        )
        return _build(making, source, part)
