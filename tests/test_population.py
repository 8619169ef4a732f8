"""A population: each member is what it would be alone, wherever it runs."""

import json
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import devices, metrics, population
from proxy import encoders, objective, optimizer, spaces
from proxy import population as members_of
from tests.test_train import SMALL, finish, parameters, start

SPACE = spaces.get("talnm")
RATES = [3e-3, 1e-3, 3e-4, 1e-4]
SIZES = {"mlp_oh": {"hidden": 16}, "hn_oh": {"hidden": 16, "blocks": 2}}


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
    keys = jax.random.split(jax.random.key(seed))
    return {
        "preset": SPACE.sample(keys[0], (8,)).astype(float),
        "embedding": jax.random.normal(keys[1], (8, 12), float),
    }


def _together(name, steps, mesh=None):
    """States and losses of four members after some steps."""
    encoder = encoders.build(name, SPACE, 12, **SIZES[name])
    rates = {"learning_rate": jnp.array(RATES)}
    states = members_of.init_states(
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
    step = members_of.train_step(encoder, SPACE, _update, decay=0.5)
    if mesh is not None:
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


def _alone(name, member, steps):
    encoder = encoders.build(name, SPACE, 12, **SIZES[name])
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


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("count", [1, 4])
def test_a_member_is_what_it_would_be_alone(name, count):
    with jax.enable_x64(True):
        mesh = devices.mesh(count) if count > 1 else None
        states, losses = _together(name, 6, mesh)
        assert not np.allclose(losses[0], losses[1])
        if mesh is not None:
            leaf = jax.tree.leaves(states.params)[0]
            assert len(leaf.sharding.device_set) == 4
            assert leaf.addressable_shards[0].data.shape[0] == 1
        for member in range(4):
            alone, wanted = _alone(name, member, 6)
            np.testing.assert_allclose(losses[member], wanted, rtol=1e-9)
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(
                    x, y, rtol=1e-9, atol=1e-11
                ),
                jax.device_get(members_of.select(states, member)),
                jax.device_get(alone),
            )


def test_the_best_of_each_member_is_kept():
    states = objective.TrainState(
        jnp.array([5, 5]), {"w": jnp.array([[1.0], [2.0]])}, {}, {}, None
    )
    best = members_of.first_best(states)
    best = members_of.keep_best(best, states, jnp.array([0.5, jnp.nan]))
    later = states.replace(
        step=states.step + 1, params={"w": states.params["w"] + 10}
    )
    best = members_of.keep_best(best, later, jnp.array([0.4, 0.1]))
    np.testing.assert_array_equal(best.score, np.float32([0.5, 0.1]))
    np.testing.assert_array_equal(best.step, [5, 6])
    np.testing.assert_array_equal(best.state.params["w"], [[1], [12]])


def run(folder, data, *flags, **variables):
    return start(
        "population",
        *SMALL,
        f"--config.run={folder}",
        f"--config.data={data}",
        "--config.epochs=3",
        *flags,
        **variables,
    )


FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
GRID = ("--seeds=0,1", "--learning_rates=6e-3,2e-3")
NAMES = [f"seed{s}_rate{r}" for s in (0, 1) for r in ("0.006", "0.002")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("population")
    output = finish(run(folder / "all", folder / "data", *GRID, **FOUR))
    return folder / "all", folder / "data", output


def test_every_member_is_an_ordinary_run(finished, tmp_path):
    folder, data, output = finished
    assert "4 members on 4 devices" in output
    found = json.loads((folder / "population.json").read_text())
    assert found == NAMES
    best = {}
    for name in NAMES:
        assert f"{folder / name}" in output
        records = list(metrics.read(folder / name))
        scores = {r["step"]: r["mrr"] for r in records if "mrr" in r}
        assert list(scores) == [16, 32, 48]
        best[name] = max(scores.values())
        step, _ = parameters(folder / name, best=True)
        assert scores[step] == best[name]
        assert f"{best[name]:.4f}" in output
    assert len(set(best.values())) == 4
    # The same as launch.train makes of it, to single precision.
    name = NAMES[3]
    finish(
        start(
            "train",
            *SMALL,
            f"--config.run={tmp_path / 'alone'}",
            f"--config.data={data}",
            "--config.epochs=3",
            "--config.seed=1",
            "--config.optimizer.learning_rate=2e-3",
        )
    )
    (step, ours), (wanted_step, wanted) = (
        parameters(folder / name),
        parameters(tmp_path / "alone"),
    )
    assert step == wanted_step == 48 and ours.keys() == wanted.keys()
    losses, wanted_losses = (
        [r["loss"] for r in metrics.read(place) if "loss" in r]
        for place in (folder / name, tmp_path / "alone")
    )
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-3)
    chosen = max(best, key=lambda n: best[n])
    output = finish(start("evaluate", f"--run={folder / chosen}"))
    assert "| hn_oh " in output


def test_a_stopped_population_ends_with_the_same_parameters(finished, tmp_path):
    folder, data, _ = finished
    killed = tmp_path / "all"
    for number, goal in ((signal.SIGKILL, 5), (signal.SIGTERM, 20)):
        process = run(killed, data, *GRID, **FOUR)
        started, file = time.time(), killed / NAMES[-1] / metrics.FILE
        while process.poll() is None and not (
            file.exists()
            and file.stat().st_mtime > started
            and any(r["step"] >= goal for r in metrics.read(file.parent))
        ):
            time.sleep(0.01)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        assert process.returncode in (0, 143, -number), output
    output = finish(run(killed, data, *GRID, **FOUR))
    assert "going on at step" in output
    for name in NAMES:
        for best in (False, True):
            step, ours = parameters(killed / name, best)
            wanted_step, wanted = parameters(folder / name, best)
            assert step == wanted_step
            for path, value in ours.items():
                np.testing.assert_array_equal(value, wanted[path])
        epochs = [r["epoch"] for r in metrics.read(killed / name) if "mrr" in r]
        assert epochs == [1, 2, 3]
    wrong = run(killed, data, "--seeds=7")
    assert "another population" in finish(wrong, code=1)


def test_a_diverging_member_leaves_the_others_alone(finished, tmp_path):
    _, data, _ = finished
    flags = ("--config.epochs=1", "--learning_rates=1e-3,1e38")
    flags = (*flags, "--config.optimizer.warmup_steps=0")
    output = finish(run(tmp_path / "all", data, *flags))
    lines = [r for r in output.splitlines() if "seed0_rate1e+38 " in r]
    assert len(lines) == 1 and "nan" in lines[0] and "step " in lines[0]
    assert list(metrics.read(tmp_path / "all" / "seed0_rate0.001"))[-1]["mrr"]
    flags = (*flags, "--learning_rates=1e38,2e38")
    output = finish(run(tmp_path / "none", data, *flags), code=1)
    assert "every member diverged" in output and "Traceback" not in output


def test_bad_members_are_told():
    from configs import quickstart

    config = quickstart.get_config()
    found = population.members(config, [], [])
    assert pathlib.Path(found[0].run).name == "seed0_rate0.006"
    assert found[0].data_seed == config.data_seed
    with pytest.raises(ValueError, match="twice: runs/quickstart/seed1"):
        population.members(config, [1, 1], [])
