from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matching import decode, losses, schedules
from matching.estimator import Estimator
from proxy import encoders, optimizer, spaces
from tests.shared import shared
from tests.variables import draw, normal, start

SIZES = {"hidden": 32, "blocks": 2}


def small_proxy(space, dtype=jnp.float32):
    """A randomly initialised proxy in evaluation mode, not quite linear."""
    encoder = encoders.build("hn_oh", space, 16, **SIZES)
    variables = draw(encoder.init, jnp.zeros((1, space.width)))
    return encoder, jax.tree.map(lambda x: x.astype(dtype), variables)


@pytest.mark.parametrize("name", ["dexed", "diva"])
def test_parameter_loss_and_gradient_are_the_published_ones(name):
    golden = np.load(shared("golden/matching.npz"))
    space = spaces.get(name)
    logits = jnp.asarray(golden[f"{name}/loss_logits"])
    target = jnp.asarray(golden[f"{name}/targets"])

    def terms(logits):
        return losses.parameter_loss(
            logits, target, space, label_smoothing=0.02
        )

    np.testing.assert_allclose(
        np.asarray(terms(logits)),
        golden[f"{name}/loss_numerical_binary_categorical"],
        rtol=1e-5,
    )
    gradient = jax.jit(jax.grad(lambda z: terms(z).total()))(logits)
    np.testing.assert_allclose(
        gradient, golden[f"{name}/loss_grad"], rtol=1e-4, atol=1e-8
    )


def reached(gradient, space):
    """Which used parameters a gradient on logits reaches, in each row."""
    ordered = np.asarray(gradient)[:, space.relaxed_from_logit] != 0
    hit = np.zeros((len(gradient), space.num_used), bool)
    split = len(space.noncategorical)
    hit[:, space.noncategorical] = ordered[:, :split]
    for slot, column in enumerate(space.slot_column):
        hit[:, column] |= ordered[:, split + slot]
    return hit


@pytest.mark.parametrize("name", ["dexed", "diva"])
@pytest.mark.parametrize("mode", decode.MODES)
def test_perceptual_gradient_reaches_every_parameter(name, mode):
    space = spaces.get(name)
    proxy = losses.frozen(*small_proxy(space))
    logits = normal(1, (4, space.width))
    target = normal(2, (4, 16))
    options: dict[str, Any] = {}
    if mode == "gumbel":
        options = {"key": jax.random.key(3)}

    @jax.jit
    @jax.grad
    def gradient_of(logits):
        return losses.perceptual_loss(
            logits, target, proxy, space, mode, **options
        )

    gradient = gradient_of(logits)
    assert np.isfinite(gradient).all()
    hit = reached(gradient, space)
    if mode == "hard":
        # The paper's decoding stops at categories and switches.
        np.testing.assert_array_equal(
            hit.all(0), np.isin(np.arange(space.num_used), space.numerical)
        )
        np.testing.assert_array_equal(hit.any(0), hit.all(0))
    else:
        assert hit.all()


@pytest.mark.parametrize("name", ["dexed", "diva"])
def test_perceptual_gradient_matches_finite_differences(name):
    space = spaces.get(name)
    with jax.enable_x64(True):
        proxy = losses.frozen(*small_proxy(space, jnp.float64))
        start = decode.relaxed(normal(0, (3, space.width)), space)
        target = normal(1, (3, 16))

        @jax.jit
        def loss(relaxed):
            return jnp.abs(proxy(relaxed) - target).mean()

        gradient = np.asarray(jax.jit(jax.grad(loss))(start))
        # Every place of the width moves by itself, in all rows together.
        step = 1e-6
        moves = np.eye(space.width)[:, None] * step
        ahead, behind = (
            jax.lax.map(
                lambda move, sign=sign: loss(start + sign * move), moves
            )
            for sign in (1, -1)
        )
        measured = (np.asarray(ahead) - np.asarray(behind)) / (2 * step)
        np.testing.assert_allclose(
            measured, gradient.sum(0), rtol=1e-5, atol=1e-8
        )


@pytest.mark.parametrize("batch", [8, 7])
def test_a_few_presets_at_a_time_give_the_same(batch):
    space = spaces.get("dexed")
    proxy = losses.frozen(*small_proxy(space))
    logits = normal(1, (batch, space.width))
    target = normal(2, (batch, 16))

    def run(at_once):
        return jax.jit(
            jax.value_and_grad(
                lambda z: losses.perceptual_loss(
                    z, target, proxy, space, at_once=at_once
                )
            )
        )(logits)

    (whole, slope), (parts, slopes) = run(0), run(4)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    np.testing.assert_allclose(slopes, slope, rtol=1e-4, atol=1e-8)


def test_only_transformers_want_few_presets_at_once():
    space = spaces.get("dexed")
    assert encoders.presets_at_once(encoders.build("hn_oh", space, 16)) == 0
    assert encoders.presets_at_once(encoders.build("tfm", space, 16)) == 4


def test_perceptual_loss_is_zero_at_the_target():
    space = spaces.get("dexed")
    proxy = losses.frozen(*small_proxy(space))
    logits = normal(1, (2, space.width))
    embedding = proxy(space.to_relaxed(decode.hard(logits, space)))
    assert losses.perceptual_loss(logits, embedding, proxy, space, "hard") == 0


class Tiny(nn.Module):
    """An estimator that is quick to train."""

    outputs: int

    @nn.compact
    def __call__(self, spectrogram, *, train=False):
        self.variable("batch_stats", "unused", jnp.zeros, ())
        return nn.Dense(self.outputs)(spectrogram.reshape(len(spectrogram), -1))


def batch_for(space, encoder, variables, size=16):
    preset = space.sample(jax.random.key(4), (size,))
    embedding = encoder.apply(variables, space.to_relaxed(preset))
    sound = normal(5, (size, 4, 5))
    return {"preset": preset, "embedding": embedding, "heard": sound}


@pytest.mark.parametrize("mode", ["hard", "relaxed", "straight_through"])
def test_a_step_weighs_both_losses_and_trains(mode):
    space = spaces.get("dexed")
    encoder, variables = small_proxy(space)
    batch = batch_for(space, encoder, variables)
    estimator, adamw = Tiny(space.width), optimizer.adamw(1e-2)
    schedule = schedules.get("mix", 60)
    step = jax.jit(
        losses.train_step(estimator, space, adamw, schedule, encoder, mode=mode)
    )
    state = losses.init_state(estimator, adamw, jax.random.key(0), shape=(4, 5))
    history = []
    for _ in range(60):
        state, metrics = step(state, batch, jax.random.key(7), variables)
        history.append({k: float(v) for k, v in metrics.items()})
    for i in (0, 30, 59):
        m = history[i]
        parameter = m["numerical"] + m["binary"] + 0.01 * m["categorical"]
        weights = [float(w) for w in schedule(i)]
        assert m["loss"] == pytest.approx(
            weights[0] * parameter + weights[1] * m["perceptual"], rel=1e-5
        )
    assert history[-1]["perceptual"] < 0.5 * history[0]["perceptual"]
    assert history[-1]["numerical"] < 0.5 * history[0]["numerical"]
    assert int(state.step) == 60


def test_a_step_on_four_devices_is_that_on_one():
    space = spaces.get("dexed")
    encoder, variables = small_proxy(space)
    batch = batch_for(space, encoder, variables)
    # A large epsilon, so that no rounding noise becomes a full step.
    estimator, adamw = Tiny(space.width), optimizer.adamw(1e-2, eps=1e-3)
    state = losses.init_state(estimator, adamw, jax.random.key(0), shape=(4, 5))

    def step_over(axis):
        return losses.train_step(
            estimator,
            space,
            adamw,
            schedules.get("perceptual", 10),
            encoder,
            axis_name=axis,
        )

    mesh = jax.make_mesh(
        (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    whole, split = (
        jax.sharding.PartitionSpec(),
        jax.sharding.PartitionSpec("data"),
    )
    mapped = jax.shard_map(
        step_over("data"),
        mesh=mesh,
        in_specs=(whole, split, whole, whole),
        out_specs=whole,
        check_vma=False,
    )
    arguments = (state, batch, jax.random.key(1), variables)
    (one, metrics), (four, mapped_metrics) = (
        jax.jit(step)(*arguments) for step in (step_over(None), mapped)
    )
    for name, value in metrics.items():
        np.testing.assert_allclose(mapped_metrics[name], value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        four.params,
        one.params,
    )


def test_the_parameter_step_needs_no_proxy():
    space = spaces.get("talnm")
    estimator, adamw = Estimator(space.width), optimizer.adamw(3e-3)
    step = jax.jit(
        losses.train_step(estimator, space, adamw, schedules.get("ploss", 10))
    )
    sounds = jnp.tanh(normal(1, (8, 128, 9)))
    state = start(draw(estimator.init, sounds), adamw)
    batch = {
        "heard": sounds,
        "preset": space.sample(jax.random.key(2), (8,)),
    }
    before = state
    for _ in range(8):
        state, metrics = step(state, batch, jax.random.key(3))
        if int(state.step) == 1:
            first = metrics
    assert metrics["loss"] < first["loss"]
    assert "perceptual" not in metrics
    # Every parameter and every running statistic moved.
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        (before.params, before.batch_stats),
        (state.params, state.batch_stats),
    )
    still = [p for p, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert not still


def test_presets_that_do_not_fit_are_refused():
    space = spaces.get("dexed")
    with pytest.raises(ValueError, match="100 values"):
        losses.parameter_loss(jnp.zeros((2, 141)), jnp.zeros((2, 99)), space)
    with pytest.raises(ValueError, match="141 values"):
        losses.parameter_loss(jnp.zeros((2, 140)), jnp.zeros((2, 100)), space)
