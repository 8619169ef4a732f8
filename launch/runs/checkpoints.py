"""Run directories and their checkpoints: the best and the last.

A checkpoint holds the sha256 of each of its files, in `sha256.json`, which is
there when the checkpoint gets its name. One without it was made by an earlier
version of this project; it is read unchecked.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from configs import common, matching, ranges
from datasets import files
from datasets.spec import differences
from launch import Config
from launch.runs import build
from proxy import audio, pretrained
from proxy.objective import TrainState

_State = TypeVar("_State")
_CONFIG = "config.json"
_FOLDER = "checkpoints"
_CHECKS = "sha256.json"
# What reading a damaged file provokes, in the libraries that read it.
_UNREADABLE = (
    AttributeError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def prepare(config: Config) -> pathlib.Path:
    """Makes or reopens `config.run`, the run directory of a config.

    Checkpoints that are kept elsewhere have the config beside them, too.

    Returns:
      The directory, holding config.json and environment.json.

    Raises:
      ValueError: when the directory or the checkpoints belong to another
        config; names the fields that differ.
    """
    run = pathlib.Path(config.run)
    run.mkdir(parents=True, exist_ok=True)
    path = run / _CONFIG
    wanted = json.loads(config.to_json())
    known = files.read_json(path) if path.exists() else {}
    if known:
        _check_same(wanted, known, run, "run")
    place = _elsewhere(config.get("checkpoints"))
    beside = place and place / _CONFIG
    if beside and beside.exists():
        _check_same(wanted, files.read_json(beside), place, "checkpoints")
    # A run of an earlier version has written no config there; where hosts
    # share no folder, the first one alone has what it wrote.
    elif (
        place
        and jax.process_index() == 0
        and known.get("checkpoints") != config.checkpoints
        and _steps(place)
    ):
        raise ValueError(
            f"{place} holds checkpoints that no {_CONFIG} beside them tells "
            "the config of; choose another --config.checkpoints, or copy the "
            f"{_CONFIG} of their run there"
        )
    if jax.process_index() == 0:
        # Again on a resume: data or weights may have moved.
        if beside:
            _write(beside, _text(wanted))
        files.write_atomically(path, _text(wanted))
        text = _text(environment())
        files.write_atomically(run / "environment.json", text)
    return run


def _check_same(wanted: Any, found: Any, place: Any, what: str) -> None:
    fixed = {*wanted, *found} - _FREE
    if lines := _differing(wanted, found, fixed):
        raise ValueError(
            f"{place} holds a run with another config ({lines}); choose "
            f"another --config.{what}, or remove it"
        )


def _write(path: epath.Path, text: str) -> None:
    """Writes a file whole, into a bucket or a folder."""
    if "://" in str(path):
        path.write_text(text)
    else:
        files.write_atomically(pathlib.Path(path), text)


@contextlib.contextmanager
def alone(run: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training in a run directory.

    Args:
      run: the run directory.

    Yields:
      None.

    Raises:
      RuntimeError: when another process trains there.
    """
    places, saved = [run], folder(run)
    if "://" not in str(saved) and run.absolute() not in saved.parents:
        places.append(pathlib.Path(saved))
    with contextlib.ExitStack() as stack:
        for place in places if jax.process_index() == 0 else ():
            if not stack.enter_context(files.claim(place, "training")):
                raise RuntimeError(
                    f"another process is training in {place}; wait until it "
                    "is done, or choose another --config.run"
                )
        yield


# Fields that change how a run is carried out, not what comes of it.
_FREE = {
    "run",
    "checkpoints",
    "workers",
    "plugin",
    "host",
    "data",
    "weights",
    "log_every",
    "evaluation",
}
# Fields that make a model, into which weights of another run fit.
_MODEL = {"synth", "audio_model", "encoder", "sizes"}


def _differing(wanted: Any, found: Any, fields: set[str]) -> str:
    """How those fields differ, "" when they do not."""
    parts = (
        {k: v for k, v in c.items() if k in fields} for c in (wanted, found)
    )
    return "; ".join(differences(*parts))


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


def environment() -> dict[str, Any]:
    """What a run ran on: versions, devices, command and git revision."""
    revision = ""
    with contextlib.suppress(OSError):  # a machine without git
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
            cwd=pathlib.Path(__file__).parent,
        ).stdout.strip()
    devices = jax.devices()
    return {
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "devices": [d.device_kind for d in devices],
        "processes": jax.process_count(),
        "git": revision or None,
        "command": sys.argv,
    }


def _quality(metrics: dict[str, float]) -> float:
    """What is best: an estimator's distance is least, a proxy's MRR most."""
    return -metrics["a_mean"] if "a_mean" in metrics else metrics["mrr"]


def manager(
    run: pathlib.Path, *, read_only: bool = False
) -> ocp.CheckpointManager:
    """Opens the checkpoints of a run: keeps the best and the last.

    The best has the largest MRR on the validation split or, for an
    estimator, the least `a_mean`.

    Checkpoints are checked first. To train on, damaged ones are set aside.

    Args:
      run: the run directory.
      read_only: whether only to look into a run that may be going on.

    Returns:
      The manager; close it, or use it as a context.

    Raises:
      ValueError: naming the damaged file, when no checkpoint is whole, or
        one is not and it is only to be looked at.
    """
    place = folder(run)
    _check_steps(place, read_only)
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(1),
            policies.BestN(
                get_metric_fn=_quality,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=_quality,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
    )
    if not read_only:
        seal = functools.partial(_seal, place)
        options.async_options = ocp.AsyncOptions(
            post_finalization_callback=seal
        )
    try:
        return ocp.CheckpointManager(place, options=options)
    except _UNREADABLE as error:
        raise ValueError(
            f"{place}: its checkpoints cannot be read ({error})"
        ) from error


def _steps(place: epath.Path) -> list[epath.Path]:
    """The checkpoints in a folder, by their steps."""
    found = place.iterdir() if place.exists() else ()
    steps = [path for path in found if path.name.isdecimal() and path.is_dir()]
    return sorted(steps, key=lambda path: int(path.name))


def _digest(file: epath.Path) -> str:
    if file.name != "_CHECKPOINT_METADATA":
        return files.sha256(file)
    # Orbax notes the time in it when all else is done.
    time = rb'"commit_timestamp_nsecs": ?(\d+|null)'
    text = re.sub(time, b"", file.read_bytes())
    return hashlib.sha256(text).hexdigest()


def _seal(place: epath.Path) -> None:
    """Writes the digests of a checkpoint that has yet to get its name.

    Orbax calls it when everything else is written; then it renames the
    folder, which makes a checkpoint of it, or, in a bucket, marks it.
    """
    if jax.process_index() != 0:
        return
    for step in place.iterdir():
        if not step.is_dir() or not ocp.utils.is_tmp_checkpoint(step):
            continue
        digests = {
            str((folder / name).relative_to(step)): _digest(folder / name)
            for folder, _, names in step.walk()
            for name in names
        }
        (step / _CHECKS).write_text(_text(digests))


def _damage(step: epath.Path) -> str:
    """What is wrong with the files of a checkpoint, "" for nothing known."""
    checks = step / _CHECKS
    try:
        known = dict(json.loads(checks.read_text()))
    except FileNotFoundError:
        return ""  # of an earlier version
    except (OSError, TypeError, ValueError) as error:
        return f"{checks} cannot be read: {error}"
    for name, digest in known.items():
        file = step / name
        try:
            if _digest(file) != digest:
                return f"{file} is not what was saved (sha256)"
        except OSError as error:
            return f"{file} cannot be read: {error.strerror or error}"
    return ""


def _check_steps(place: epath.Path, read_only: bool) -> None:
    """Sets damaged checkpoints aside, or refuses them; see `manager`."""
    if jax.process_index() == 0:
        whole, damaged = [], {}
        for step in _steps(place):
            if not list(step.iterdir()):
                step.rmdir()  # no checkpoint, and orbax would stumble
                continue
            wrong = _damage(step)
            if not step.exists():  # it was removed meanwhile
                continue
            if wrong:
                damaged[step] = wrong
            else:
                whole.append(step)
        if damaged and (read_only or not whole):
            remedy = (
                "remove that folder to use an older one, or train again: the "
                "same command goes on from the newest whole one"
                if whole
                else f"no other is there: remove {place} to start anew"
            )
            raise ValueError(
                f"damaged checkpoint: {'; '.join(damaged.values())}; {remedy}"
            )
        for step, wrong in damaged.items():
            aside = step.with_name(f"{step.name}.damaged")
            aside.rmtree(missing_ok=True)
            step.rename(aside)
            print(f"damaged checkpoint, now {aside.name}: {wrong}", flush=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints are checked")


def folder(run: pathlib.Path) -> epath.Path:
    """Where the checkpoints of a run are.

    Args:
      run: the run directory; its config may name another folder, or a bucket
        (gs://), in the field `checkpoints`.

    Returns:
      The folder, absolute.
    """
    path = run / _CONFIG
    named = files.read_json(path).get("checkpoints") if path.exists() else ""
    return _elsewhere(named) or epath.Path((run / _FOLDER).absolute())


def _elsewhere(named: str | None) -> epath.Path | None:
    """The folder that `config.checkpoints` names, if it does."""
    if not named:
        return None
    place = epath.Path(named)
    return place if "://" in named else place.absolute()


def best_step(checkpoints: ocp.CheckpointManager) -> int:
    """Step of the best validation, or the last one before any validation."""
    best, last = checkpoints.best_step(), checkpoints.latest_step()
    if last is None:
        raise FileNotFoundError(f"no checkpoint in {checkpoints.directory}")
    return last if best is None else best


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: Any,
    metrics: dict[str, float] | None,
) -> None:
    """Saves a state in the background.

    Args:
      checkpoints: the run's manager.
      step: steps taken; with the config it fixes the data position too,
        because an epoch's order depends on the seed and the epoch only.
      state: what to save.
      metrics: metrics of the validation at this step, None between validations.
    """
    checkpoints.save(
        step,
        args=ocp.args.StandardSave(state),
        metrics=metrics,
        force=True,
    )


def restore(
    checkpoints: ocp.CheckpointManager,
    template: _State,
    step: int | None = None,
) -> _State:
    """Reads a state.

    Args:
      checkpoints: the run's manager.
      template: a state with the shapes, dtypes and shardings to read into.
      step: step of the checkpoint, the last when None.

    Returns:
      The state.

    Raises:
      ValueError: when the checkpoint does not fit the template, or has no
        digests and is damaged.
    """
    step = checkpoints.latest_step() if step is None else step
    try:
        restored: Any = checkpoints.restore(
            step, args=ocp.args.StandardRestore(template)
        )
    except _UNREADABLE as error:
        raise ValueError(
            f"checkpoint {step} in {checkpoints.directory} does not fit this "
            f"config, or is damaged: {error}"
        ) from error
    return restored


def restore_raw(checkpoints: ocp.CheckpointManager, step: int) -> Any:
    """Reads a checkpoint as it was saved: dictionaries of NumPy arrays.

    Whatever devices it was saved on: these need not be there.
    """
    place = checkpoints.directory / str(step) / "default"
    try:
        with ocp.PyTreeCheckpointer() as reader:
            saved: Any = reader.metadata(place).item_metadata
            on_host = ocp.RestoreArgs(restore_type=np.ndarray)
            kinds = jax.tree.map(lambda _: on_host, saved.tree)
            return reader.restore(place, restore_args=kinds)
    except _UNREADABLE as error:
        raise ValueError(f"{place} cannot be read: {error}") from error


def publish(config: Config, variables: Any) -> None:
    """Writes a run whose only checkpoint holds given weights.

    Args:
      config: of the run.
      variables: params and batch_stats of its encoder.

    Raises:
      ValueError: when the directory belongs to another config.
    """
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
    dimension = audio.get(config.audio_model).dimension
    rows = np.zeros((1, dimension), np.float32)
    state = dataclasses.replace(
        build.initial_state(config, rows),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
    )
    with manager(prepare(config)) as saved:
        save(saved, 0, state, None)
        saved.wait_until_finished()


def place(run: str | os.PathLike[str]) -> pathlib.Path:
    """The directory of a run.

    Args:
      run: the directory, or `pretrained:NAME` for a proxy that comes with the
        project (`proxy.pretrained`): it becomes a run at first use.

    Raises:
      ValueError: for an unknown name; lists the known ones.
    """
    kind, _, name = os.fspath(run).partition(":")
    if kind != "pretrained":
        return pathlib.Path(run)
    variables, about = pretrained.read(name)
    folder = pathlib.Path(f"runs/pretrained_{name}_{about['sha256'][:8]}")
    if (folder / _FOLDER / "0").exists():
        return folder
    config = common.proxy_config(about["space"], about["encoder"])
    config.name, config.run = f"pretrained_{name}", str(folder)
    config.audio_model = about["audio_model"]
    config.sizes.update(json.loads(about["sizes"]))
    config.render.update(json.loads(about["render"]))
    # What it is scored on.
    config.data = f"data/pretrained_{name}"
    config.prior.update({"uniform": 0.0, "fitted": 1.0})
    config.num_train, config.validation, config.num_test = 4_096, (32, 64), 2048
    config.shard_size = 1_024
    publish(config, variables)
    return folder


def start_from(config: Config, state: TrainState) -> TrainState:
    """Replaces fresh weights by those of the best checkpoint of another run.

    Args:
      config: with `init`, the other run's directory.
      state: the fresh state.

    Returns:
      The state with the other run's parameters and batch statistics; its
      averaged parameters when it kept them. Step and moments stay fresh.

    Raises:
      FileNotFoundError: when there is no such run.
      ValueError: when its encoder differs; names the fields.
    """
    other, saved = load(config.init)
    ours, theirs = (json.loads(c.to_json()) for c in (config, other))
    if lines := _differing(ours, theirs, _MODEL):
        raise ValueError(
            f"config.init={config.init} is another model ({lines})"
        )
    with saved:
        found = restore(saved, build.empty_state(other), best_step(saved))
    params = found.params if found.average is None else found.average
    average = None if state.average is None else params
    return dataclasses.replace(
        state, params=params, batch_stats=found.batch_stats, average=average
    )


def read_config(run: str | os.PathLike[str]) -> Config:
    """The config of a run; its `kind` is "proxy" or "estimator".

    Raises:
      FileNotFoundError: when there is no run.
      ValueError: when it was made before runs had a kind, or is damaged:
        lists the fields that are missing, of another type or out of range.
    """
    folder = place(run)
    path = folder / _CONFIG
    if not path.exists():
        raise FileNotFoundError(
            f"no run at {folder} ({_CONFIG} is missing); train one with "
            "python -m launch.train --config FILE"
        )
    fields = files.read_json(path)
    try:
        config = ml_collections.ConfigDict(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if config.get("kind") not in ("proxy", "estimator"):
        raise ValueError(
            f"{folder} was made by an earlier version of this project: its "
            f'{_CONFIG} has no "kind", "proxy" or "estimator"; train it again '
            "under another --config.run (its data can stay)"
        )
    usual = common.proxy_config("dexed", "tfm")
    if config.kind == "estimator":
        usual = matching.match_config(usual, "")
    wrong = ranges.unlike(fields, usual.to_dict()) + ranges.outside(fields)
    if wrong:
        raise ValueError(
            f"{path} is damaged, or of another version: {'; '.join(wrong)}; "
            "put that right, or train again under another --config.run"
        )
    return config


def load(
    run: str | os.PathLike[str],
) -> tuple[Config, ocp.CheckpointManager]:
    """Opens a finished or unfinished run for reading.

    Returns:
      Its config and its checkpoints.

    Raises:
      FileNotFoundError: when there is no run, or it has no checkpoint yet.
      ValueError: when it was made before runs had a kind.
    """
    config, folder = read_config(run), place(run)
    checkpoints = manager(folder, read_only=True)
    if checkpoints.latest_step() is None:
        raise FileNotFoundError(
            f"the run at {folder} has no checkpoint yet; let it train to its "
            "first validation"
        )
    return config, checkpoints
