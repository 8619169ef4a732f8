r"""Builds the data of an experiment: presets, their sounds, embeddings.

    python -m launch.precompute --config configs/dexed.py

Every shard is a unit of work of its own. Interrupt it as you like: the same
command goes on where it stopped. To spread it, start it on as many machines
as there are, on one shared folder: they share the shards out among
themselves. Without locks on that folder, or with folders to be merged later,
say which part each does, e.g. in a Slurm array job:

    python -m launch.precompute --config configs/dexed.py \
        --num_tasks=$SLURM_ARRAY_TASK_COUNT --task=$SLURM_ARRAY_TASK_ID

`--mirror=gs://BUCKET/FOLDER` (or s3://, or another folder) copies finished
shards there, and takes from there what is there already: for machines that
share no folder, and for training on another machine than the one that
rendered. `--runner=DirectRunner` builds the synthetic shards on Apache Beam,
`--runner=DataflowRunner`, FlinkRunner or SparkRunner on a cluster of it;
launch/clusters/README.md has working command lines.

`--shards=3,5-9` names shards of the synthetic data set, which are numbered
through its splits train, validation, test. The config of an estimator
(configs/dexed.py:match) builds the presets and sounds that it learns from.
`--verify` reads every shard and what was decoded from it again and compares
them with their checksums; it builds nothing.
"""

import contextlib
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import tabulate
from absl import flags

from datasets import files, loader, mirror, precompute, shards
from launch import Config, cli
from launch.runs import build, making

_CONFIG = cli.define_config()
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Rendering workers, 0 for one per core.", lower_bound=0
)
_SHARDS = flags.DEFINE_string("shards", None, "Only these, e.g. 3,5-9.")
_TASK = flags.DEFINE_integer(
    "task", 0, "Number of this task, from 0.", lower_bound=0
)
_NUM_TASKS = flags.DEFINE_integer(
    "num_tasks", 1, "Number of tasks.", lower_bound=1
)
_VERIFY = flags.DEFINE_bool("verify", False, "Check what is there instead.")
_MIRROR = flags.DEFINE_string(
    "mirror", None, "Bucket or folder to copy to and from."
)
_RUNNER = flags.DEFINE_string(
    "runner", None, "Apache Beam runner for the shards."
)
_OPTIONS = flags.DEFINE_list(
    "pipeline_options",
    [],
    "Beam's options, e.g. direct_num_workers=2,project=NAME.",
)


def verify(root: pathlib.Path) -> list[tuple[str, str, int, int, int]]:
    """Reads every data set below a folder, `config.data`, and checks it.

    Returns:
      (data set, split, shards, decoded columns, rows) of each split; all are
      whole.

    Raises:
      ShardError: naming the first file that is missing or damaged, or when
        there is no data set.
    """
    rows = []
    for directory in sorted(p.parent for p in root.glob("*/metadata.json")):
        spec = shards.load_spec(directory)
        for split, count in spec.splits:
            number = shards.verify(directory, spec, split, again=True)
            columns = loader.verify_columns(directory, spec, split)
            rows.append((str(directory), split, number, columns, count))
        shards.check_metadata(directory, spec)
    if not rows:
        raise files.ShardError(
            f"{root}: holds no data set; run `python -m launch.precompute` "
            "without --verify"
        )
    return rows


def spread(
    config: Config,
    stack: contextlib.ExitStack,
    place: str | None,
    runner: str | None,
    options: Sequence[str],
    part: dict[str, Any],
) -> None:
    """Fetches and builds synthetic shards before the rest is built here.

    Args:
      config: the experiment of a proxy.
      stack: on its closing, what was built meanwhile is in the mirror.
      place: the mirror, None for none.
      runner: name of a Beam runner, None for none.
      options: options of Beam, as name=value.
      part: arguments of `precompute.share`.

    Raises:
      ShardError: when mirror or folder hold other data or cannot be used.
      ImportError: when Beam is wanted and not installed.
    """
    with making.maker(config) as made_with:
        source = making.synthetic(made_with, config)
        source = making.settle(made_with, source)
        prior = made_with.prior if source.spec.prior else None
    spec, directory = source.spec, source.directory
    pairs = precompute.share(spec, **part)
    if runner:
        everywhere = place or str(directory.parent)
        if not place:
            shards.open_directory(directory, spec)
        built = _beam(runner).build(
            spec,
            everywhere,
            directory.name,
            build.engine(config),
            functools.partial(
                build.embedder, config.audio_model, config.weights
            ),
            pairs=pairs,
            prior=prior,
            options=[f"--runner={runner}", *(f"--{o}" for o in options)],
        )
        print(f"{everywhere}: {built} shards built on {runner}", flush=True)
        if mirror.is_remote(everywhere):
            return
    if place:
        fetched = mirror.fetch(place, directory, spec, pairs)
        print(f"{directory}: {fetched} shards from {place}", flush=True)
        stack.enter_context(mirror.following(place, directory, spec))


def _beam(runner: str) -> Any:
    try:
        from datasets import beam
    except ImportError as error:
        raise ImportError(
            f"--runner={runner} needs Apache Beam ({error}); pip install "
            "-e '.[run,beam]'"
        ) from error
    return beam


def main() -> None:
    """Runs the command."""
    config = _CONFIG.value
    if _VERIFY.value:
        root = pathlib.Path(config.data).expanduser()
        head = ("data set", "split", "shards", "columns", "rows")
        print(tabulate.tabulate(verify(root), head, intfmt=","))
        print("every shard and column is whole")
        return
    if _WORKERS.value is not None:
        config.workers = _WORKERS.value
    text = _SHARDS.value
    matching = config.kind == "estimator"
    if matching and (text or _MIRROR.value or _RUNNER.value):
        raise ValueError(
            "--shards, --mirror and --runner are for a proxy's data, and this "
            "is an estimator's config; --task and --num_tasks share it out"
        )
    share: dict[str, Any] = {"task": _TASK.value, "num_tasks": _NUM_TASKS.value}
    numbers = cli.ranges("shards", text) if text else None
    part = {"numbers": numbers, **share}
    with contextlib.ExitStack() as stack:
        if _MIRROR.value or _RUNNER.value:
            spread(
                config,
                stack,
                _MIRROR.value,
                _RUNNER.value,
                _OPTIONS.value,
                part,
            )
        if _RUNNER.value and mirror.is_remote(_MIRROR.value or ""):
            return
        if matching:
            sources = [making.matching_source(config, **share)]
        else:
            found = making.ensure(config, **part)
            sources = [found.synthetic, found.handcrafted]
    for source in filter(None, sources):
        left = len(shards.missing(source.directory, source.spec))
        state = f"{left} shards missing" if left else "complete"
        print(f"{source.directory}: {state}")


if __name__ == "__main__":
    cli.run(main)
