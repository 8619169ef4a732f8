"""The mean and ridge baselines."""

import jax
import jax.numpy as jnp
import numpy as np

from proxy import linear
from tests.variables import normal


def _data(count=500):
    x = normal(0, (count, 6)) + 1
    weight = normal(1, (6, 3))
    noise = 0.1 * normal(2, (count, 3))
    return x, x @ weight + 2 + noise


def test_moments_add_up_over_blocks():
    x, y = _data()
    whole = linear.moments(x, y)
    halves = [linear.moments(x[i::2], y[i::2]) for i in range(2)]
    total = jax.tree.map(jnp.add, *halves)
    for a, b in zip(whole, total, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_mean():
    x, y = _data()
    model = linear.fit_mean(linear.moments(x, y))
    expected = np.broadcast_to(np.mean(y, 0), y.shape)
    np.testing.assert_allclose(linear.apply(model, x), expected, rtol=1e-4)


def test_ridge_solves_its_normal_equations():
    x, y = (np.asarray(v, np.float64) for v in _data())
    model = linear.fit_ridge(linear.moments(*map(jnp.float32, (x, y))), 0.3)
    centred = x - x.mean(0)
    weight = np.linalg.solve(
        centred.T @ centred / len(x) + 0.3 * np.eye(6),
        centred.T @ (y - y.mean(0)) / len(x),
    )
    np.testing.assert_allclose(model.weight, weight, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(
        model.bias, y.mean(0) - x.mean(0) @ weight, rtol=2e-3
    )
