"""One device against four: every encoder trains the same on both."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch.runs import devices
from proxy import encoders, objective, space
from tests.variables import draw, normal, start

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
    variables = draw(encoder.init, jnp.zeros((2, SMALL.width)))
    # Tokens so small that normalisation drowns them make a poor comparison.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(dtype) * (50 if "tokens" in str(path) else 1),
        variables,
    )
    state = start(variables, update)
    return step, mesh, devices.place(state, devices.replicated(mesh))


def batch(mesh, seed, dtype):
    data = {
        "preset": SMALL.sample(jax.random.key(seed), (32,)),
        "embedding": 3 + normal(seed, (32, 5)),
    }
    return devices.place(
        jax.tree.map(lambda x: x.astype(dtype), data), devices.split(mesh)
    )


def train(name, count, steps=1, dtype=jnp.float64, **options):
    """Losses of some steps; gradient and statistics of the first."""
    update = optax.adamw(1e-3, b1=0.9)
    step, mesh, state = setup(name, count, update, dtype, **options)
    batches = [batch(mesh, i, dtype) for i in range(min(steps, 4))]
    losses, grads, statistics = [], None, None
    for i in range(steps):
        state, metrics = step(state, batches[i % 4])
        # Waited for: on CPUs, devices of steps that pile up wait for threads.
        losses.append(float(metrics["loss"]))
        if i == 0:
            # Adam's first moment is a tenth of the gradient so far.
            moment = optax.tree.get(state.opt_state, "mu")
            grads = jax.tree.map(lambda x: np.asarray(x) * 10, moment)
            statistics = jax.device_get(state.batch_stats)
    assert step._cache_size() == 1  # nothing compiled again
    return np.array(losses), grads, statistics


@pytest.mark.parametrize("name", encoders.names())
def test_one_step_and_fifty_are_the_same_on_four_devices(name: str) -> None:
    with jax.enable_x64(True):
        one, four = train(name, 1, 50), train(name, 4, 50)
    np.testing.assert_allclose(four[0], one[0], rtol=1e-6)
    assert one[0][48] < one[0][0]  # the same batch
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one[1:]),
        jax.tree.leaves(four[1:]),
        strict=True,
    ):
        assert a.dtype == np.float64
        np.testing.assert_allclose(
            b, a, rtol=0, atol=1e-9, err_msg=jax.tree_util.keystr(path)
        )
    assert max(np.abs(g).max() for g in jax.tree.leaves(one[1])) > 1e-3


def test_fifty_steps_in_single_precision() -> None:
    one, four = (train("hn_oh", n, 50, jnp.float32)[0] for n in (1, 4))
    np.testing.assert_allclose(four, one, rtol=1e-3)
    assert one[48] < one[0]


def test_contrast_sees_the_batch_of_all_devices() -> None:
    with jax.enable_x64(True):
        one = train("mlp_oh", 1, contrastive=1.0)
        four = train("mlp_oh", 4, contrastive=1.0)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-9)
