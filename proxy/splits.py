"""Dividing a bank of presets without leaks.

A preset's part follows from its content alone, so that everything made from
a bank (a fitted prior, variations, proxies, estimators) can keep to its
training part, whoever divides it and whatever else is in the bank.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

# Of 18,953 DX7 voices, the test has 3,392.
SHARES = {"train": 0.74, "validation": 0.08, "test": 0.18}


def _content(presets: np.ndarray) -> np.ndarray:
    # Rounded, so that the last bits of a float32 do not decide.
    return np.rint(np.asarray(presets, np.float64) * 10_000).astype("<i4")


def bucket(
    presets: Float[np.ndarray, "presets parameters"], seed: int = 0
) -> Float[np.ndarray, " presets"]:
    """A number for each preset that looks random and follows its content.

    Args:
      presets: presets of one space.
      seed: another seed gives other numbers.

    Returns:
      Uniform in [0, 1]; equal presets, to four decimals, have equal numbers.
    """
    key = int(seed).to_bytes(8, "little", signed=True)
    digests = (
        hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest()
        for row in _content(presets)
    )
    drawn = [int.from_bytes(digest, "little") for digest in digests]
    return np.array(drawn, np.float64) / 2.0**64


def split(
    presets: Float[np.ndarray, "presets parameters"],
    seed: int = 0,
    shares: Mapping[str, float] = SHARES,
) -> dict[str, Int[np.ndarray, " rows"]]:
    """Divides presets into parts by `bucket`.

    Adding or removing presets moves no other one.

    Args:
      presets: presets of one space.
      seed: another seed divides them differently.
      shares: share of each part by name, positive, 1 together.

    Returns:
      Rows of each part, ascending. A part is near its share, as each preset
      is dealt by itself.

    Raises:
      ValueError: when the shares are none.
    """
    sizes = np.array(list(shares.values()))
    if not len(sizes) or sizes.min() <= 0 or abs(sizes.sum() - 1) > 1e-6:
        raise ValueError(
            f"split: shares {dict(shares)} must be positive and sum to 1"
        )
    edges = np.cumsum(sizes)[:-1]
    part = np.searchsorted(edges, bucket(presets, seed), side="right")
    return {name: np.flatnonzero(part == i) for i, name in enumerate(shares)}


def near_copies(
    held_out: Float[np.ndarray, "presets parameters"],
    train: Float[np.ndarray, "others parameters"],
    most: int = 2,
) -> Bool[np.ndarray, " presets"]:
    """Tells held-out presets that are hardly new.

    Args:
      held_out: presets that nothing was trained on.
      train: presets of the same space that something was.
      most: parameters in which a near copy differs from one of these.

    Returns:
      True for each near copy among the held-out ones.
    """
    rows, others = _content(held_out), _content(train)
    return np.array(
        [((others != row).sum(1) <= most).any() for row in rows], bool
    )
