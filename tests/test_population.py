"""A population: each member is what it would be alone, wherever it runs."""

import json
import os
import pathlib
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from launch.evaluate import proxy as evaluate_proxy
from launch.runs import checkpoints, data, devices, metrics
from launch.train import members
from launch.train import proxy as train_proxy
from proxy import encoders, objective, optimizer, population, spaces
from tests import commands
from tests.test_train import parameters
from tests.variables import normal

SPACE = spaces.get("talnm")
RATES = [3e-3, 1e-3, 3e-4, 1e-4]


def _update(learning_rate):
    schedule = optimizer.warmup_cosine_restart(
        learning_rate,
        1e-6,
        warmup_steps=2,
        warmup_factor=0.1,
        cosine_steps=4,
    )
    return optimizer.adamw(schedule, b1=0.8, b2=0.95, weight_decay=0.1)


def _batch(seed):
    return {
        "preset": SPACE.sample(jax.random.key(seed), (8,)).astype(float),
        "embedding": normal(seed, (8, 12)).astype(float),
    }


def _together(steps, mesh):
    """States and losses of four members after some steps."""
    encoder = encoders.build("hn_oh", SPACE, 12, hidden=16, blocks=2)
    rates = {"learning_rate": jnp.array(RATES)}
    states = population.init_states(
        encoder,
        _update,
        rates,
        jax.vmap(jax.random.key)(jnp.arange(4)),
        SPACE.width,
        average=True,
    )
    # The state of a float64 run is float64.
    states = jax.tree.map(
        lambda x: x.astype(float) if x.dtype == jnp.float32 else x, states
    )
    step = population.train_step(encoder, SPACE, _update, decay=0.5)
    spec = devices.split(mesh).spec
    step = jax.shard_map(
        step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    rates, states = (
        devices.place(x, devices.split(mesh)) for x in (rates, states)
    )
    step, losses = jax.jit(step), []
    for i in range(steps):
        parts = [_batch(10 * member + i) for member in range(4)]
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        states, found = step(rates, states, batch)
        losses.append(found["loss"])
    return states, np.stack(losses, 1)


def _alone(member, steps):
    encoder = encoders.build("hn_oh", SPACE, 12, hidden=16, blocks=2)
    update = _update(RATES[member])
    state = objective.init_state(
        encoder, update, jax.random.key(member), SPACE.width, average=True
    )
    state = jax.tree.map(
        lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state
    )
    step = jax.jit(objective.train_step(encoder, SPACE, update, decay=0.5))
    losses = []
    for i in range(steps):
        state, found = step(state, _batch(10 * member + i))
        losses.append(found["loss"])
    return state, np.stack(losses)


@pytest.fixture(scope="module")
def alone():
    with jax.enable_x64(True):
        return {member: _alone(member, 4) for member in (0, 3)}


@pytest.mark.parametrize("count", [1, 4])
def test_a_member_is_what_it_would_be_alone(alone, count):
    with jax.enable_x64(True):
        states, losses = _together(4, devices.mesh(count))
        assert not np.allclose(losses[0], losses[1])
        leaf = jax.tree.leaves(states.params)[0]
        assert len(leaf.sharding.device_set) == count
        assert leaf.addressable_shards[0].data.shape[0] == 4 // count
        for member, (wanted_state, wanted) in alone.items():
            np.testing.assert_allclose(losses[member], wanted, rtol=1e-7)
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(
                    x, y, rtol=1e-7, atol=1e-9
                ),
                jax.device_get(population.select(states, member)),
                jax.device_get(wanted_state),
            )


def test_the_best_of_each_member_is_kept():
    states: Any = objective.TrainState(
        jnp.array([5, 5]), {"w": jnp.array([[1.0], [2.0]])}, {}, {}, None
    )
    best: Any = population.first_best(states)
    best = population.keep_best(best, states, jnp.array([0.5, jnp.nan]))
    later = states.replace(
        step=states.step + 1, params={"w": states.params["w"] + 10}
    )
    best = population.keep_best(best, later, jnp.array([0.4, 0.1]))
    wanted = np.array([0.5, 0.1], np.float32)
    np.testing.assert_array_equal(best.score, wanted)
    np.testing.assert_array_equal(best.step, [5, 6])
    np.testing.assert_array_equal(best.state.params["w"], [[1], [12]])


def config_for(folder, data):
    """A tiny experiment on short sounds."""
    config = quickstart.get_config()
    config.run, config.data = str(folder), str(data)
    config.render.hold, config.render.duration = 0.2, 0.3
    config.render.fade_out = 0.05
    config.num_train, config.validation = 256, (4, 16)
    config.num_test, config.shard_size, config.batch = 64, 256, 32
    config.epochs, config.log_every = 3, 5
    config.optimizer.warmup_steps, config.optimizer.cosine_steps = 8, 40
    config.sizes.hidden, config.sizes.blocks = 16, 2
    config.evaluation.repeats = 1
    return config


SEEDS, GRID = (0, 1), (6e-3, 2e-3)
NAMES = [f"seed{s}_rate{r}" for s in (0, 1) for r in ("0.006", "0.002")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("population")
    config = config_for(folder / "all", folder / "data")
    return config, members.train(config, SEEDS, GRID)


def table(results):
    return commands.load("launch.population")["table"](results)


def test_every_member_is_an_ordinary_run(finished, tmp_path):
    config, results = finished
    folder = pathlib.Path(config.run)
    assert json.loads((folder / "population.json").read_text()) == NAMES
    assert [r.run for r in results] == [folder / name for name in NAMES]
    for result in results:
        records = list(metrics.read(result.run))
        scores = {r["step"]: r["mrr"] for r in records if "mrr" in r}
        assert list(scores) == [8, 16, 24]
        step, _ = parameters(result.run, best=True)
        assert step == result.step and result.diverged is None
        best = max(scores.values())
        assert scores[step] == best == pytest.approx(result.mrr, rel=1e-6)
        assert f"| {best:.4f} " in table(results)
    # The same as launch.train makes of it alone, to single precision.
    alone = config_for(tmp_path / "alone", config.data)
    alone.seed, alone.optimizer.learning_rate = 1, 2e-3
    alone.devices = 1
    train_proxy.train(alone)
    (step, ours), (wanted_step, wanted) = (
        parameters(results[3].run),
        parameters(alone.run),
    )
    assert step == wanted_step == 24 and ours.keys() == wanted.keys()
    losses, wanted_losses = (
        [r["loss"] for r in metrics.read(place) if "loss" in r]
        for place in (results[3].run, pathlib.Path(alone.run))
    )
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-3)
    found, _ = evaluate_proxy.evaluate(str(results[3].run), "best", None)
    assert found["synthetic"]["hn_oh"]["metrics"]["l1"]["mean"] > 0


class _Killed(BaseException):
    pass


def test_a_stopped_population_ends_with_the_same_parameters(finished, tmp_path):
    config, results = finished
    killed = config_for(tmp_path / "all", config.data)

    def die(epoch, _):
        raise _Killed

    def terminate(epoch, _):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(_Killed):
        members.train(killed, SEEDS, GRID, die)
    with pytest.raises(SystemExit):
        members.train(killed, SEEDS, GRID, terminate)
    with checkpoints.manager(tmp_path / "all") as saved:
        assert saved.latest_step() == 17  # in the middle of an epoch
    again = members.train(killed, SEEDS, GRID)
    for mine, theirs in zip(again, results, strict=True):
        assert (mine.mrr, mine.step) == (theirs.mrr, theirs.step)
        for best in (False, True):
            step, ours = parameters(mine.run, best)
            wanted_step, wanted = parameters(theirs.run, best)
            assert step == wanted_step
            for path, value in ours.items():
                np.testing.assert_array_equal(value, wanted[path])
        epochs = [r["epoch"] for r in metrics.read(mine.run) if "mrr" in r]
        assert epochs == [1, 2, 3]
    with pytest.raises(ValueError, match="another population"):
        members.train(killed, (7,))


def test_a_diverging_member_leaves_the_others_alone(finished, tmp_path):
    config = config_for(tmp_path / "all", finished[0].data)
    config.epochs, config.optimizer.warmup_steps = 1, 0
    fine, gone = members.train(config, (), (1e-3, 1e38))
    assert fine.diverged is None and fine.mrr > 0
    assert gone.diverged in range(2, 9) and np.isnan(gone.mrr)
    assert "| nan " in table([fine, gone])
    config.run = str(tmp_path / "none")
    with pytest.raises(FloatingPointError, match="every member diverged"):
        members.train(config, (), (1e38, 2e38))


def test_a_member_whose_validation_is_not_finite_has_diverged(
    finished, tmp_path, monkeypatch
):
    config = config_for(tmp_path / "all", finished[0].data)
    config.epochs, validate, calls = 1, data.validate, []

    def bad_at_first(*arguments):
        calls.append(arguments)
        found = validate(*arguments)
        return {**found, "l1": np.nan} if len(calls) == 1 else found

    monkeypatch.setattr(data, "validate", bad_at_first)
    gone, fine = members.train(config, (0, 1), ())
    assert fine.diverged is None and fine.mrr > 0
    assert gone.diverged == 8 and np.isnan(gone.mrr)


def test_bad_members_are_told():
    config = quickstart.get_config()
    found = members.configs(config, [], [])
    rate = config.optimizer.learning_rate
    assert pathlib.Path(found[0].run).name == f"seed0_rate{rate:g}"
    assert found[0].data_seed == config.data_seed
    with pytest.raises(ValueError, match="twice: runs/quickstart/seed1"):
        members.configs(config, [1, 1], [])
    config.kind = "estimator"
    with pytest.raises(ValueError, match="needs the experiment of a proxy"):
        members.configs(config, [], [])


def test_checkpoints_may_lie_elsewhere(finished, tmp_path):
    config = config_for(tmp_path / "run", finished[0].data)
    config.checkpoints = str(tmp_path / "elsewhere")
    config.epochs = 1
    run = train_proxy.train(config)
    assert not (run / "checkpoints").exists()
    assert (tmp_path / "elsewhere" / "8").is_dir()
    _, saved = checkpoints.load(run)
    with saved:
        assert saved.latest_step() == 8
