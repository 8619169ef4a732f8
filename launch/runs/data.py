"""The data of a run: where they are, and how they are read.

A data folder, `config.data`, holds data sets in TFDS layout: `synthetic`,
with the splits train, validation and test, and, when `config.presets` names
banks of hand-crafted presets, `handcrafted-<digest of what is in them>`. They
depend on the synthesizer, the audio model and the data fields of a config
alone, so experiments may share a folder. Sound matching without a bank makes
do with `synthetic-audio`, synthetic presets that no proxy was trained on.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int64

from datasets import files, loader, shards
from datasets.spec import DataSpec
from launch import Config
from launch.runs import devices

RECORD = "data.json"
NO_BANK = "hand-crafted: no bank (see launch.presets)"


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set on disk.

    Attributes:
      directory: folder of the data set; `tfds.builder_from_directory` opens it.
      spec: what it holds.
    """

    directory: pathlib.Path
    spec: DataSpec

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


# Runs ------------------------------------------------------------------------


def open_source(directory: pathlib.Path) -> Source:
    """A data set as its folder describes it.

    Raises:
      ShardError: when the folder holds none.
    """
    spec = shards.load_spec(directory)
    return Source(directory, spec)


def record(run: pathlib.Path, **sources: Source | None) -> None:
    """Notes in a run which data it learns from, and how they were made.

    Args:
      run: the run directory.
      **sources: data sets, all of one engine, under names of their own; None
        is left out.
    """
    known = {name: source for name, source in sources.items() if source}
    spec = next(iter(known.values())).spec
    content = {
        "sets": {name: s.directory.name for name, s in known.items()},
        "engine": {"name": spec.synth, "version": spec.synth_version},
        "settings": spec.settings.to_dict(),
    }
    if jax.process_index() == 0:
        files.write_atomically(run / RECORD, json.dumps(content, indent=1))


def record_dataset(run: pathlib.Path, dataset: Dataset) -> None:
    """Notes in the run of a proxy which data it learns from."""
    record(run, synthetic=dataset.synthetic, handcrafted=dataset.handcrafted)


def recorded(run: pathlib.Path, root: str) -> dict[str, Source]:
    """The data sets that `record` noted; builds and starts nothing.

    Args:
      run: the run directory.
      root: the data folder, `config.data`.

    Returns:
      Data sets by the names that they were given.

    Raises:
      FileNotFoundError: when the run has not got so far.
      ShardError: when a data set is not there.
    """
    path = run / RECORD
    if not path.exists():
        raise FileNotFoundError(
            f"{run} does not say which data it learned from ({RECORD} is "
            "missing): start its training again with the same command; to "
            "match sounds with a published model, give a bank with --presets"
        )
    sets = files.read_json(path)["sets"]
    folder = pathlib.Path(root).expanduser()
    return {name: open_source(folder / place) for name, place in sets.items()}


# Loading ---------------------------------------------------------------------


def training_source(source: str, dataset: Dataset) -> Source:
    """The data set that a run is validated on, and trains on.

    Returns:
      That one of the two; for "both", the hand-crafted one.

    Raises:
      ValueError: when there is no bank, or no such source.
    """
    if source == "synthetic" and dataset.synthetic is not None:
        return dataset.synthetic
    if source not in ("handcrafted", "both"):
        raise ValueError(
            f"config.source={source!r} (known: synthetic, handcrafted, both)"
        )
    if dataset.handcrafted is None:
        raise ValueError(
            f"config.source={source}, but there is no bank: set "
            "--config.presets=PATH (see launch.presets)"
        )
    return dataset.handcrafted


def synthetic_columns(config: Config, synthetic: Source) -> loader.Columns:
    """The synthetic presets that a run trains on, `config.train_rows`.

    The first ones: as each is a function of seed, split and row alone, those
    of a data set that has no others.
    """
    rows = config.get("train_rows")  # of earlier versions' runs: None, all
    columns = synthetic.columns("train")
    return {name: column[:rows] for name, column in columns.items()}


def training_columns(config: Config, dataset: Dataset) -> loader.Columns:
    """The presets and embeddings that a run trains on.

    Raises:
      ValueError: as for `training_source`.
    """
    source, parts = training_source(config.source, dataset), []
    if config.source != "handcrafted" and dataset.synthetic is not None:
        parts.append(synthetic_columns(config, dataset.synthetic))
    if config.source != "synthetic":
        parts.append(source.columns("train"))
    return loader.join(*parts) if len(parts) > 1 else parts[0]


def matching_rows(
    source: Source, split: str, most: int, seed: int
) -> Int64[np.ndarray, " rows"]:
    """Which rows of a split a matching experiment uses.

    Args:
      source: see `making.matching_source`.
      split: "train", "validation" or "test".
      most: largest number of rows, 0 for all.
      seed: seed of the choice.

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
    if not most or most >= rows:
        return np.arange(rows)
    drawn = loader.permutation(rows, seed, 0)[:most]
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
    source: Source,
    shape: tuple[int, int],
    validator: Callable[..., Any],
    state: Any,
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """Scores a state on the validation split, a block of rankings at a time.

    Args:
      source: see `training_source`.
      shape: rankings, and candidates of each. Those of a hand-crafted split
        overlap when it has not as many presets.
      validator: see `build.validator`.
      state: the training state, on every device.
      mesh: the devices.

    Returns:
      "mrr", the mean reciprocal rank, and "l1".
    """
    rankings, candidates = shape
    columns = source.columns("validation")
    rows = len(columns["preset"])
    candidates, rankings = min(candidates, rows), min(rankings, rows)
    # Each ranking is for the sound of its first preset.
    first = np.arange(rankings) * rows // rankings
    order = (first[:, None] + np.arange(candidates)) % rows
    # Blocks of one shape, so that the validator is compiled once.
    size = max(8192 // candidates, 1)
    size = min(-(-size // mesh.size) * mesh.size, rankings)
    whole = size % mesh.size == 0
    sharding = devices.split(mesh) if whole else devices.replicated(mesh)
    found = []
    for start in range(0, rankings, size):
        taken = order[start : start + size]
        count = len(taken)
        taken = np.resize(taken, (size, candidates))
        block = {key: column[taken] for key, column in columns.items()}
        loader.release(columns)
        placed = devices.place(block, sharding)
        scores = validator(state, placed["preset"], placed["embedding"])
        scores = multihost_utils.process_allgather(scores, tiled=True)
        found.append(np.stack(scores)[:, :count])
    mrr, l1 = np.concatenate(found, axis=1).mean(1)
    return {"mrr": float(mrr), "l1": float(l1)}
