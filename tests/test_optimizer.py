"""The learning-rate schedule and AdamW."""

import jax.numpy as jnp
import numpy as np
import pytest

from proxy import optimizer
from tests.shared import shared


def test_schedule_agrees_with_the_published_one():
    name = "lr/warmup20_factor0.1_cosine200_restart300_factor0.5"
    golden = np.load(shared("golden/matching.npz"))
    golden = golden[f"{name}_min2e-6_base1e-3"]
    schedule = optimizer.warmup_cosine_restart(
        1e-3,
        2e-6,
        warmup_steps=20,
        warmup_factor=0.1,
        cosine_steps=200,
        restart_steps=300,
        restart_factor=0.5,
    )
    ours = [np.asarray(schedule(i)) for i in range(len(golden))]
    np.testing.assert_allclose(ours, golden, rtol=1e-4)


def test_schedule_without_warmup_or_restart():
    schedule = optimizer.warmup_cosine_restart(
        1.0, 0.1, warmup_steps=0, warmup_factor=1.0, cosine_steps=10
    )
    assert schedule(0) == pytest.approx(1.0)
    assert schedule(5) == pytest.approx(0.55)
    for step in (10, 11, 1000):
        assert schedule(step) == pytest.approx(0.1)
    # As converted runs have it, whose optimizer is not to move.
    still = optimizer.warmup_cosine_restart(
        0.0, 0.0, warmup_steps=0, warmup_factor=1.0, cosine_steps=1
    )
    assert still(0) == still(7) == 0


@pytest.mark.parametrize("clip", [None, 0.5])
def test_first_step_of_adamw(clip):
    update = optimizer.adamw(
        0.1, b1=0.9, b2=0.99, eps=1e-3, weight_decay=0.01, clip_norm=clip
    )
    w, g = jnp.array([2.0, -1.0]), jnp.array([3.0, 4.0])
    delta, _ = update.update(g, update.init(w), w)
    clipped = np.array([3.0, 4.0]) * (1 if clip is None else clip / 5)
    step = clipped / (np.abs(clipped) + 1e-3) + 0.01 * np.array([2.0, -1.0])
    np.testing.assert_allclose(np.asarray(delta), -0.1 * step, rtol=1e-5)
