import jax
import numpy as np
import pytest

from matching import schedules
from tests.shared import shared


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("ploss", "ploss"),
        ("mix", "mix"),
        ("switch", "switch"),
        ("perceptual", "perceptual_only"),
    ],
)
def test_agrees_with_the_published_schedules(ours, theirs):
    golden = np.load(shared("golden/matching.npz"))
    total, start, length = golden["schedule/total_start_warm"]
    schedule = schedules.get(
        ours, int(total), start=start / total, length=length / total
    )
    weights = [schedule(int(step)) for step in golden["schedule/steps"]]
    np.testing.assert_allclose(
        np.asarray(weights, float), golden[f"schedule/{theirs}"], atol=1e-6
    )


@pytest.mark.parametrize(
    "name, first, last",
    [
        ("reversed_mix", (0, 10), (0.5, 5)),
        ("reversed_switch", (0, 10), (1, 0)),
    ],
)
def test_reversed_schedules_meet_their_ends_exactly(name, first, last):
    schedule = schedules.get(name, 600)
    # The change begins after step 199 (0.333 of 600) and lasts 198 steps.
    assert tuple(map(float, schedule(0))) == first
    assert tuple(map(float, schedule(199))) == first
    assert tuple(map(float, schedule(200))) != first
    assert tuple(map(float, schedule(199 + 198))) == last
    assert tuple(map(float, schedule(600))) == last
    middle = np.asarray(schedule(199 + 99), float)
    np.testing.assert_allclose(middle, (np.add(first, last)) / 2, rtol=1e-6)


def test_a_schedule_can_be_traced():
    schedule = schedules.get("mix", 100)
    steps = np.arange(100)
    traced = jax.jit(jax.vmap(schedule))(steps)
    plain = np.asarray([schedule(int(i)) for i in steps], float).T
    np.testing.assert_allclose(np.asarray(traced), plain, rtol=1e-6)


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="'mxi', did you mean 'mix'"):
        schedules.get("mxi", 100)
    with pytest.raises(ValueError, match=r"start 33\.0 and length"):
        schedules.get("mix", 100, start=33.0, length=0.3)


def test_temperature_decays_exponentially_and_stays():
    value = schedules.temperature(2.0, 0.5, 10)
    np.testing.assert_allclose(np.asarray(value(0)), 2.0)
    np.testing.assert_allclose(np.asarray(value(5)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(value(99)), 0.5, rtol=1e-6)
    with pytest.raises(ValueError, match="must be positive"):
        schedules.temperature(1.0, 0.0, 10)
