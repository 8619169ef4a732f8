"""Run directories and their checkpoints: the best and the last."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from configs import common
from datasets import files
from datasets.spec import differences
from launch import Config
from launch.runs import build
from proxy import audio, pretrained
from proxy.objective import TrainState

_State = TypeVar("_State")
_CONFIG = "config.json"
_FOLDER = "checkpoints"


def prepare(config: Config) -> pathlib.Path:
    """Makes or reopens `config.run`, the run directory of a config.

    Returns:
      The directory, holding config.json and environment.json.

    Raises:
      ValueError: when the directory belongs to another config; names the
        fields that differ.
    """
    run = pathlib.Path(config.run)
    run.mkdir(parents=True, exist_ok=True)
    path = run / _CONFIG
    wanted = json.loads(config.to_json())
    if path.exists():
        found = json.loads(path.read_text())
        fixed = {*wanted, *found} - _FREE
        if lines := _differing(wanted, found, fixed):
            raise ValueError(
                f"{run} holds a run with another config ({lines}); choose "
                "another --config.run, or remove it"
            )
    if jax.process_index() == 0:
        # Again on a resume: data or weights may have moved.
        files.write_atomically(path, _text(wanted))
        text = _text(environment())
        files.write_atomically(run / "environment.json", text)
    return run


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

    Args:
      run: the run directory.
      read_only: whether only to look into a run that may be going on.

    Returns:
      The manager; close it, or use it as a context.
    """
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
    return ocp.CheckpointManager(folder(run), options=options)


def folder(run: pathlib.Path) -> epath.Path:
    """Where the checkpoints of a run are.

    Args:
      run: the run directory; its config may name another folder, or a bucket
        (gs://), in the field `checkpoints`.

    Returns:
      The folder, absolute.
    """
    path = run / _CONFIG
    elsewhere = path.exists() and json.loads(path.read_text())["checkpoints"]
    if not elsewhere:
        return epath.Path((run / _FOLDER).absolute())
    place = epath.Path(elsewhere)
    return place if "://" in elsewhere else place.absolute()


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
      ValueError: when the checkpoint does not fit the template.
    """
    step = checkpoints.latest_step() if step is None else step
    try:
        restored: Any = checkpoints.restore(
            step, args=ocp.args.StandardRestore(template)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint {step} in {checkpoints.directory} does not fit this "
            f"config: {error}"
        ) from error
    return restored


def restore_raw(checkpoints: ocp.CheckpointManager, step: int) -> Any:
    """Reads a checkpoint as it was saved: dictionaries of NumPy arrays.

    Whatever devices it was saved on: these need not be there.
    """
    place = checkpoints.directory / str(step) / "default"
    with ocp.PyTreeCheckpointer() as reader:
        saved: Any = reader.metadata(place).item_metadata
        on_host = ocp.RestoreArgs(restore_type=np.ndarray)
        kinds = jax.tree.map(lambda _: on_host, saved.tree)
        return reader.restore(place, restore_args=kinds)


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
    # What it is scored on, and what a search starts from without a bank.
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
      ValueError: when it was made before runs had a kind.
    """
    folder = place(run)
    path = folder / _CONFIG
    if not path.exists():
        raise FileNotFoundError(
            f"no run at {folder} ({_CONFIG} is missing); train one with "
            "python -m launch.train --config FILE"
        )
    config = ml_collections.ConfigDict(json.loads(path.read_text()))
    if config.get("kind") not in ("proxy", "estimator"):
        raise ValueError(
            f"{folder} was made by an earlier version of this project: its "
            f'{_CONFIG} has no "kind", "proxy" or "estimator"; train it again '
            "under another --config.run (its data can stay)"
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
