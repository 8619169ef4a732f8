"""Shards on Apache Beam: each is one element, built by whoever gets it.

A shard is a pure function of the data set's spec, so retries, work given to
two workers and workers that vanish change nothing: the bytes are those that
`precompute.build` writes on one machine.
"""

import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from datasets import engines, mirror, precompute
from datasets.spec import DataSpec
from proxy.priors import Prior


class _BuildShard(beam.DoFn):
    """Builds one shard; engine and audio model are made once per worker."""

    def __init__(
        self,
        spec: dict[str, Any],
        place: str,
        name: str,
        make_renderer: Callable[[], engines.Renderer],
        make_embed: Callable[[], precompute.Embed],
        prior: Prior | None,
    ) -> None:
        self._spec, self._place, self._name = spec, place, name
        self._make, self._prior = (make_renderer, make_embed), prior
        self._made: tuple[engines.Renderer, precompute.Embed] | None = None

    def process(self, element: tuple[str, int]) -> Any:
        spec = DataSpec.from_dict(self._spec)
        if self._made is None:
            self._made = self._make[0](), self._make[1]()
        renderer, embed = self._made
        build = functools.partial(
            precompute.build,
            make_renderer=lambda: renderer,
            make_embed=lambda: embed,
            prior=self._prior,
            only=[element],
            progress=False,
            workers=1,
        )
        if not mirror.is_remote(self._place):
            folder = pathlib.Path(self._place, self._name)
            report = build(spec, folder)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                folder = pathlib.Path(scratch, self._name)
                report = build(spec, folder)
                mirror.store(self._place, folder, spec)
        yield report.rows


def build(
    spec: DataSpec,
    place: str | os.PathLike[str],
    name: str,
    make_renderer: Callable[[], engines.Renderer],
    make_embed: Callable[[], precompute.Embed],
    *,
    pairs: Sequence[tuple[str, int]],
    prior: Prior | None = None,
    options: Sequence[str] = (),
) -> int:
    """Builds the missing ones of some shards of a synthetic data set.

    Args:
      spec: the data set.
      place: a folder that every worker sees, or a bucket (gs://, s3://).
      name: name of the data set's folder in that place.
      make_renderer: makes the engine; sent to the workers by pickling.
      make_embed: makes the embedding function of `precompute.build`; sent to
        the workers, too.
      pairs: (split, shard) of those wanted.
      prior: what presets are drawn from, when it is not uniform.
      options: Beam's pipeline options, e.g. "--runner=DirectRunner".

    Returns:
      How many shards were missing, and are there now.

    Raises:
      ShardError: when the place holds other data or cannot be written.
      RuntimeError: when the pipeline fails.
    """
    mirror.check(place, name, spec)
    present = mirror.there(place, name, spec)
    todo = sorted(set(pairs) - present)
    if not todo:
        return 0
    # On leaving, the pipeline runs and its result is waited for.
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | beam.Create(todo)
            # Without it, a runner may fuse all into one bundle of one worker.
            | beam.Reshuffle()
            | beam.ParDo(
                _BuildShard(
                    spec.to_dict(),
                    os.fspath(place),
                    name,
                    make_renderer,
                    make_embed,
                    prior,
                )
            )
        )
    return len(todo)
