"""One device against four: every encoder trains the same on both."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.runs import devices
from proxy import encoders, objective, space

SMALL = space.space(
    "small",
    [
        space.categorical("wave", 0.0, 3),
        space.numerical("cutoff", 0.5),
        space.binary("sync", 0.0),
        space.numerical("pitch", 0.5, 0.2, 0.8),
        space.categorical("mode", 0.0, 2),
        space.stepped("octave", 0.5, 5),
    ],
)
SIZES = {
    "tfm": {"hidden": 8, "blocks": 2, "heads": 2, "factor": 2.0},
    "modules_tfm": {"hidden": 8, "blocks": 2, "heads": 2, "factor": 2.0},
    "gru_oh": {"hidden": 8},
    "hn_pt": {"hidden": 8, "blocks": 2, "token": 4},
    "hn_ptgru": {"hidden": 8, "blocks": 2, "token": 6},
}


def setup(name, count, update, dtype, **options):
    encoder = encoders.build(
        name,
        SMALL,
        5,
        axis_name=devices.AXIS,
        **SIZES.get(name, {"hidden": 8, "blocks": 2}),
    )
    mesh = devices.mesh(count)
    step = devices.map_step(
        objective.train_step(
            encoder, SMALL, update, axis_name=devices.AXIS, **options
        ),
        mesh,
    )
    state: Any = objective.init_state(
        encoder, update, jax.random.key(0), SMALL.width
    )
    # Tokens so small that normalisation drowns them make a poor comparison.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 50 if "tokens" in str(path) else x, state.params
    )
    state = state.replace(params=params, opt_state=update.init(params))
    state = jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, state
    )
    return step, mesh, devices.place(state, devices.replicated(mesh))


def batch(mesh, seed, dtype):
    keys = jax.random.split(jax.random.key(seed))
    data = {
        "preset": SMALL.sample(keys[0], (32,)),
        "embedding": 3 + jax.random.normal(keys[1], (32, 5)),
    }
    return devices.place(
        jax.tree.map(lambda x: x.astype(dtype), data), devices.split(mesh)
    )


def one_step(name, count, **options):
    # Plain descent at rate 1 leaves the gradient in the parameters.
    step, mesh, state = setup(
        name, count, optax.sgd(1.0), jnp.float64, **options
    )
    before = jax.device_get(state.params)
    state, metrics = step(state, batch(mesh, 1, jnp.float64))
    grads = jax.tree.map(np.subtract, before, jax.device_get(state.params))
    return jax.device_get((metrics["loss"], grads, state.batch_stats))


@pytest.mark.parametrize("name", encoders.names())
def test_loss_gradients_and_statistics_of_one_step(name: str) -> None:
    with jax.enable_x64(True):
        one, four = one_step(name, 1), one_step(name, 4)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one),
        jax.tree.leaves(four),
        strict=True,
    ):
        assert a.dtype == np.float64
        np.testing.assert_allclose(
            b, a, rtol=0, atol=1e-9, err_msg=jax.tree_util.keystr(path)
        )
    assert max(np.abs(g).max() for g in jax.tree.leaves(one[1])) > 1e-3


def test_contrast_sees_the_batch_of_all_devices() -> None:
    with jax.enable_x64(True):
        one = one_step("mlp_oh", 1, contrastive=1.0)
        four = one_step("mlp_oh", 4, contrastive=1.0)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", encoders.names())
def test_curves_of_fifty_steps(name: str) -> None:
    curves = []
    for count in (1, 4):
        step, mesh, state = setup(name, count, optax.adamw(1e-3), jnp.float32)
        losses = []
        for i in range(50):
            state, metrics = step(state, batch(mesh, i % 4, jnp.float32))
            losses.append(metrics["loss"])
        assert step._cache_size() == 1  # nothing compiled again
        curves.append(np.array(jax.device_get(losses)))
    np.testing.assert_allclose(*curves, rtol=1e-3)
    assert curves[0][48] < curves[0][0]  # the same batch
