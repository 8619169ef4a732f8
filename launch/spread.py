"""Spreads the building of shards: a mirror to share them, Apache Beam."""

import contextlib
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from datasets import mirror, precompute, shards
from launch import Config
from launch.runs import data


def prepare(
    config: Config,
    stack: contextlib.ExitStack,
    place: str | None,
    runner: str | None,
    options: Sequence[str],
    part: dict[str, Any],
) -> None:
    """Fetches and builds synthetic shards before the rest is built here.

    Args:
      config: an experiment.
      stack: on its closing, what was built meanwhile is in the mirror.
      place: the mirror, None for none.
      runner: name of a Beam runner, None for none.
      options: of Beam, as name=value.
      part: arguments of `precompute.share`.

    Raises:
      ShardError: when mirror or folder hold other data or cannot be used.
      ImportError: when Beam is wanted and not installed.
    """
    engine = data.renderer(config)
    spec = data.synthetic_spec(config, engine)
    directory = pathlib.Path(config.data).expanduser() / "synthetic"
    pairs = precompute.share(spec, **part)
    if runner:
        place_of_all = place or str(directory.parent)
        if not place:
            shards.open_directory(directory, spec)
        built = _on_beam(
            config, spec, place_of_all, directory.name, pairs, runner, options
        )
        print(f"{place_of_all}: {built} shards built on {runner}", flush=True)
        if mirror.is_remote(place_of_all):
            return
    if place:
        fetched = mirror.fetch(place, directory, spec, pairs)
        print(f"{directory}: {fetched} shards from {place}", flush=True)
        stack.enter_context(mirror.following(place, directory, spec))


def _on_beam(
    config: Config,
    spec: shards.DataSpec,
    place: str,
    name: str,
    pairs: Sequence[tuple[str, int]],
    runner: str,
    options: Sequence[str],
) -> int:
    try:
        from datasets import beam
    except ImportError as error:
        raise ImportError(
            f"--runner={runner} needs Apache Beam ({error}); pip install "
            "-e '.[run,beam]'"
        ) from error
    return beam.build(
        spec,
        place,
        name,
        functools.partial(data.renderer, config),
        functools.partial(data.embedder, config),
        pairs=pairs,
        options=[f"--runner={runner}", *(f"--{o}" for o in options)],
    )
