"""Splits: parts follow from content, and near copies are found."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from proxy import splits

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def presets(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.round(rng.random((count, 12), dtype=np.float32), 4)


def test_parts_follow_from_content():
    rows = presets(2000)
    parts = splits.split(rows, shares=SHARES)
    together = np.sort(np.concatenate(list(parts.values())))
    np.testing.assert_array_equal(together, np.arange(2000))
    for name, share in SHARES.items():
        assert abs(len(parts[name]) / 2000 - share) < 0.04
    # Whatever else is in the bank, and however a float is rounded.
    fewer = splits.split(rows[::2] + np.float32(1e-6), shares=SHARES)
    np.testing.assert_array_equal(
        fewer["train"] * 2, parts["train"][parts["train"] % 2 == 0]
    )
    assert not np.array_equal(splits.bucket(rows), splits.bucket(rows, 1))


@hypothesis.settings(deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1), split_seed=st.integers(0, 9))
def test_no_preset_ever_moves(seed, split_seed):
    """Neither the others nor the order decide on a preset's part."""
    rows = presets(30, seed)
    part = np.empty(30, object)
    for name, found in splits.split(rows, split_seed).items():
        part[found] = name
    order = np.random.default_rng(seed).permutation(30)[:17]
    for name, found in splits.split(rows[order], split_seed).items():
        assert all(part[order[found]] == name)


def test_splits_are_the_same_everywhere():
    """Figures of evaluations hang on these: they must not change."""
    rows = np.linspace(0, 1, 30 * 100, dtype=np.float32).reshape(30, 100)
    parts = splits.split(rows)
    assert parts["validation"].tolist() == [3, 27]
    assert parts["test"].tolist() == [6, 7, 8, 13, 17, 20, 23, 26, 28]
    assert len(parts["train"]) == 19
    other = splits.split(rows, seed=1)
    assert other["train"].tolist() != parts["train"].tolist()


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"a": 1.5, "b": -0.5}])
def test_shares_that_are_none(shares):
    with pytest.raises(ValueError, match="positive and sum to 1"):
        splits.split(presets(3), shares=shares)


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
