"""A small proxy and what an estimator learns from, for tests."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from configs import dexed
from launch.runs import build, checkpoints, data, making, noise, opened
from launch.train import estimator as train_estimator
from tests.variables import draw, start

RENDER = {"duration": 1.0, "hold": 0.5}


def _small(config, folder):
    config.audio_model = "mel128"
    config.data = str(folder / "data")
    config.render.update(RENDER)
    config.shard_size = 64
    return config


def save_proxy(folder: pathlib.Path) -> str:
    """Saves an untrained proxy as a run; returns its directory."""
    config = _small(dexed.get_config("proxy_small"), folder)
    config.run = str(folder / "proxy")
    config.sizes.update({"hidden": 32, "blocks": 2})
    rows = np.full((1, 128), -40, np.float32)
    state = build.initial_state(config, rows)
    with checkpoints.manager(checkpoints.prepare(config)) as manager:
        checkpoints.save(manager, 0, state, None)
        manager.wait_until_finished()
    return config.run


def note_noise(data: pathlib.Path) -> str:
    """Lets data be those of a noisy plug-in; returns what is printed of it."""
    floor = {
        "plugin": "Noisy 1.0 (VST3, reset)",
        **{
            what: dict.fromkeys(noise.METRICS, 0.25)
            for what in ("order", "process")
        },
    }
    folder = data / "noisy"
    folder.mkdir(parents=True)
    (folder / noise.FILE).write_text(json.dumps(floor))
    return noise.describe(floor)


def match_config(
    folder: pathlib.Path, schedule: str, run: str, row: str = "match_small"
):
    """A matching experiment that takes seconds."""
    config = _small(dexed.get_config(row), folder)
    config.schedule = schedule
    config.run = str(folder / run)
    config.proxy = str(folder / "proxy")
    config.num_train = 48
    config.stand_in.update({"train": 64, "validation": 12, "test": 10})
    config.batch = 16
    config.epochs = 4
    config.validate_every = 2
    config.log_every = 1
    config.optimizer.warmup_steps = 3
    config.evaluation.resamples = 500
    return config


def embedding_config(folder: pathlib.Path, schedule: str, run: str):
    """The same of an estimator that reads embeddings, without a bank."""
    config = match_config(folder, schedule, run, "match_embedding")
    config.source = "synthetic"
    config.prior.update({"uniform": 1.0, "fitted": 0.0, "variations": 0.0})
    config.synthetic.update(
        {"num_train": 64, "validation": (2, 4), "num_test": 8}
    )
    config.train_rows = 48
    config.network.update({"hidden": 32, "blocks": 1, "token": 16})
    return config


@functools.cache
def _fresh(embeddings: bool):
    config = dexed.get_config("match")
    shape, scaling = (128, 313), {"minimum": -80, "maximum": 40}
    if embeddings:
        config = embedding_config(pathlib.Path(), "ploss", "")
        shape = (128,)
        scaling = {"mean": np.full(shape, -40), "spread": np.full(shape, 20)}
    variables = draw(opened.network(config).init, np.zeros((2, *shape)))
    update = train_estimator.gradient_transformation(**config.optimizer)
    return {
        "state": start(variables, update, average=embeddings),
        **{k: np.asarray(v, np.float32) for k, v in scaling.items()},
    }


def save_estimator(config) -> str:
    """Saves an untrained estimator as a run; returns its directory."""
    tree = {
        **_fresh(opened.reads_embeddings(config)),
        "plateau": train_estimator.plateau(**config.plateau).init(
            np.float32(0)
        ),
    }
    tree = jax.tree.map(jnp.asarray, tree)
    run = checkpoints.prepare(config)
    data.record(run, matching=making.matching_source(config))
    with checkpoints.manager(run) as manager:
        checkpoints.save(manager, 7, tree, {"a_mean": 2.0})
        manager.wait_until_finished()
    return config.run
