"""Splits: parts follow from content, and near copies are found."""

import numpy as np
import pytest

from datasets.presets import bank
from proxy import splits

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def presets(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.round(rng.random((count, 12), dtype=np.float32), 4)


def test_parts_follow_from_content():
    rows = presets(2000)
    parts = splits.split(rows, SHARES)
    together = np.sort(np.concatenate(list(parts.values())))
    np.testing.assert_array_equal(together, np.arange(2000))
    for name, share in SHARES.items():
        assert abs(len(parts[name]) / 2000 - share) < 0.04
    # Whatever else is in the bank, and however a float is rounded.
    fewer = splits.split(rows[::2] + np.float32(1e-6), SHARES)
    np.testing.assert_array_equal(
        fewer["train"] * 2, parts["train"][parts["train"] % 2 == 0]
    )
    assert not np.array_equal(splits.bucket(rows), splits.bucket(rows, 1))


def test_it_divides_as_banks_always_were():
    rows = presets(300)
    parts = splits.split(rows, bank.SPLITS, seed=3)
    for name, expected in bank.split(rows, seed=3).items():
        np.testing.assert_array_equal(parts[name], expected)


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"a": 1.5, "b": -0.5}])
def test_shares_that_are_none(shares):
    with pytest.raises(ValueError, match="positive and sum to 1"):
        splits.split(presets(3), shares)


def test_near_copies_differ_in_two_parameters_at_most():
    train = presets(50)
    held_out = train[:4].copy()
    held_out[1, :2] = 0.5
    held_out[2, :3] = 0.5
    held_out[3] = 0.5
    np.testing.assert_array_equal(
        splits.near_copies(held_out, train), [True, True, False, False]
    )
    np.testing.assert_array_equal(
        splits.near_copies(held_out, train, most=0), [True] + 3 * [False]
    )
