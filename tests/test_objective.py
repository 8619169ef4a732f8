"""The train step: accumulation, averages, and when it goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxy import encoders, objective, spaces, symmetries
from tests.variables import normal

SPACE = spaces.get("talnm")
SIZES = {
    "hn_oh": {"hidden": 16, "blocks": 3},
    "tfm": {"hidden": 16, "blocks": 2, "heads": 4},
}


def _encoder(name):
    return encoders.build(name, SPACE, 12, **SIZES[name])


def _batch(count=32, seed=0):
    dtype = jnp.zeros(()).dtype
    return {
        "preset": SPACE.sample(jax.random.key(seed), (count,)).astype(dtype),
        "embedding": normal(seed, (count, 12)).astype(dtype),
    }


_predict = jax.jit(objective.predict, static_argnums=0)


def _run(name, optimizer, steps, **options):
    """Trains a few steps."""
    state = objective.init_state(
        _encoder(name), optimizer, jax.random.key(1), SPACE.width
    )
    dtype = jnp.zeros(()).dtype
    state = jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, state
    )
    step = jax.jit(
        objective.train_step(_encoder(name), SPACE, optimizer, **options)
    )
    losses = []
    for i in range(steps):
        state, metrics = step(state, _batch(seed=i))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


def test_accumulation_averages_gradients():
    # Without BatchNorm, micro-batches must add up to the whole batch.
    with jax.enable_x64(True):
        (whole, a), (parts, b) = (
            _run("tfm", optax.sgd(1.0), 1, accumulate=n) for n in (1, 4)
        )
    assert a == pytest.approx(b, rel=1e-9)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12),
        whole.params,
        parts.params,
    )


def test_moving_average_follows_the_parameters():
    optimizer = optax.sgd(0.1)
    encoder = _encoder("hn_oh")
    state = objective.init_state(
        encoder, optimizer, jax.random.key(0), SPACE.width, average=True
    )
    step = jax.jit(objective.train_step(encoder, SPACE, optimizer, decay=0.75))
    after, _ = step(state, _batch())
    jax.tree.map(
        lambda old, new, mean: np.testing.assert_allclose(
            mean, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-7
        ),
        state.params,
        after.params,
        after.average,
    )
    relaxed = SPACE.to_relaxed(_batch()["preset"])
    averaged = _predict(encoder, after, relaxed)
    plain = _predict(encoder, after.replace(average=None), relaxed)
    assert np.abs(averaged - plain).max() > 1e-6


def test_the_output_can_start_at_a_given_bias():
    encoder, bias = _encoder("hn_oh"), jnp.arange(12.0)
    states = [
        objective.init_state(
            encoder, optax.sgd(0.1), jax.random.key(0), SPACE.width, bias=b
        )
        for b in (None, bias)
    ]
    relaxed = SPACE.to_relaxed(_batch()["preset"])
    zero, moved = (_predict(encoder, s, relaxed) for s in states)
    np.testing.assert_allclose(moved, zero + bias, rtol=1e-5, atol=1e-5)


def test_a_bad_target_shows_in_loss_and_gradient_norm():
    encoder, optimizer = _encoder("hn_oh"), optax.sgd(0.1)
    state = objective.init_state(
        encoder, optimizer, jax.random.key(0), SPACE.width
    )
    batch = _batch()
    batch["embedding"] = batch["embedding"].at[3, 2].set(jnp.nan)
    step = jax.jit(objective.train_step(encoder, SPACE, optimizer))
    _, metrics = step(state, batch)
    assert not np.isfinite(metrics["loss"])


def test_training_learns():
    optimizer = optax.adamw(3e-3, weight_decay=0.0)
    encoder = _encoder("hn_oh")
    state = objective.init_state(
        encoder, optimizer, jax.random.key(0), SPACE.width
    )
    step = jax.jit(objective.train_step(encoder, SPACE, optimizer))
    batch = _batch(256)
    target = SPACE.to_relaxed(batch["preset"]) @ normal(9, (SPACE.width, 12))
    batch["embedding"] = target
    losses = []
    for _ in range(200):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_contrast_of_constants_is_chance_and_of_the_truth_is_less():
    target = normal(0, (16, 12))
    constant = jnp.broadcast_to(target.mean(0), target.shape)
    # Every preset as near to a sound as the others.
    back = objective.contrastive_loss(target, constant, 0.1)
    assert back > np.log(16) - 1e-4
    exact = objective.contrastive_loss(target, target, 0.1)
    assert 0 <= exact < 0.01
    swapped = objective.contrastive_loss(target, target[::-1], 0.1)
    assert swapped > 5
    gradient = jax.grad(objective.contrastive_loss)(target, target, 0.1)
    assert jnp.isfinite(gradient).all()


def test_equivalent_presets_of_the_step_are_trained_on():
    """Which they are depends on the step, and on nothing else."""
    space = spaces.get("dexed")
    encoder = encoders.build("hn_oh", space, 12, hidden=8, blocks=1)
    update, key = optax.sgd(0.1), jax.random.key(2)
    presets = space.sample(key, (16,))
    batch = {"preset": presets, "embedding": jnp.ones((16, 12))}
    states = [
        objective.init_state(encoder, update, jax.random.key(1), space.width)
    ] * 2
    plain = jax.jit(objective.train_step(encoder, space, update))
    step = jax.jit(
        objective.train_step(encoder, space, update, equivalent=True)
    )
    exchange = jax.jit(symmetries.equivalent, static_argnums=2)
    for number in range(2):
        key = jax.random.fold_in(jax.random.key(0), number)
        other = exchange(key, presets, space)
        assert not np.array_equal(other, presets)
        states[0], found = step(states[0], batch)
        states[1], wanted = plain(states[1], {**batch, "preset": other})
        assert float(found["loss"]) == pytest.approx(float(wanted["loss"]))
        states[1] = states[0]


def test_contrast_is_added_to_the_loss_and_not_to_its_metric():
    plain, losses = _run("tfm", optax.sgd(1.0), 1)
    other, same = _run("tfm", optax.sgd(1.0), 1, contrastive=0.5)
    assert losses == pytest.approx(same, rel=1e-6)
    moved = jax.tree.map(
        lambda x, y: np.abs(x - y).max(), plain.params, other.params
    )
    assert max(jax.tree.leaves(moved)) > 1e-3
