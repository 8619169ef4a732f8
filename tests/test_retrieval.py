"""Retrieval metrics against the recorded ones and against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxy import retrieval
from tests.shared import shared
from tests.variables import normal


@pytest.fixture(scope="module")
def golden():
    data = np.load(shared("golden/matching.npz"))
    prefix = "retrieval/"
    return {
        k.removeprefix(prefix): data[k]
        for k in data.files
        if k.startswith(prefix)
    }


def test_ranking(golden):
    ranks = retrieval.ranking(
        jnp.asarray(golden["ranking_predictions"]),
        jnp.asarray(golden["ranking_targets"][:, 0]),
    )
    mrr = retrieval.mean_reciprocal_rank(ranks)
    assert mrr == pytest.approx(golden["ranking_mrr"], rel=1e-5)


@pytest.mark.parametrize("block", [7, 64, 512])
@pytest.mark.parametrize("metric", ["l1", "cosine"])
def test_one_vs_all(golden, metric, block):
    ranks = retrieval.one_vs_all(
        jnp.asarray(golden["preset_embeddings"]),
        jnp.asarray(golden["audio_embeddings"]),
        metric,
        block=block,
    )
    count = len(golden["audio_embeddings"])
    for short, got in (
        ("p2a", ranks.preset_to_audio),
        ("a2p", ranks.audio_to_preset),
    ):
        known = f"recall_{metric}/{short}_"
        for top in (1, 5, 10):
            assert retrieval.recall(got, top) == pytest.approx(
                golden[f"{known}recall@{top}"], abs=1e-6
            )
        shares = retrieval.normalized(got, count)
        for name, value in (
            ("mean", shares.mean()),
            ("median", jnp.median(shares)),
        ):
            assert value == pytest.approx(
                golden[f"{known}{name}_normalized_rank"], rel=1e-4
            )
    if metric == "l1":
        for name, got in (
            ("preset_to_audio", ranks.preset_to_audio),
            ("audio_to_preset", ranks.audio_to_preset),
        ):
            assert retrieval.mean_reciprocal_rank(got) == pytest.approx(
                golden[f"one_vs_all_mrr_{name}"], rel=1e-5
            )


def test_centroid_distance(golden):
    got = retrieval.centroid_distance(
        jnp.asarray(golden["audio_embeddings"]),
        jnp.asarray(golden["preset_embeddings"]),
    )
    assert got == pytest.approx(golden["centroid_distance"], rel=1e-4)


def test_ties_share_their_mean_rank():
    audio = jnp.arange(5.0)[:, None]
    constant = jnp.full((5, 1), 2.0)
    ranks = retrieval.one_vs_all(constant, audio, block=2)
    # |2 - a| is 2, 1, 0, 1, 2: the outer and the inner pair tie.
    np.testing.assert_allclose(ranks.preset_to_audio, [4.5, 2.5, 1, 2.5, 4.5])
    np.testing.assert_allclose(ranks.audio_to_preset, [3] * 5)
    sounds = normal(0, (40, 8))
    collapsed = jnp.broadcast_to(sounds[3], (40, 8))
    for metric in ("l1", "cosine"):
        ranks = retrieval.one_vs_all(collapsed, sounds, metric, block=16)
        np.testing.assert_allclose(ranks.audio_to_preset, 20.5)
    same = retrieval.ranking(jnp.zeros((1, 9, 3)), jnp.ones((1, 3)))
    np.testing.assert_allclose(same, [5])


def test_perfect_and_top_k():
    x = normal(0, (40, 8))
    ranks = retrieval.one_vs_all(x, x, block=16)
    np.testing.assert_array_equal(ranks.preset_to_audio, 1)
    np.testing.assert_array_equal(ranks.audio_to_preset, 1)
    some = jnp.array([1.0, 2.0, 4.0])
    full = retrieval.mean_reciprocal_rank(some)
    assert full == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert retrieval.mean_reciprocal_rank(some, 2) == pytest.approx(0.5)


def test_memory_does_not_hold_all_distances():
    count, block = 4096, 256
    x = jax.ShapeDtypeStruct((count, 32), jnp.float32)
    compiled = (
        jax.jit(lambda p, a: retrieval.one_vs_all(p, a, block=block))
        .lower(x, x)
        .compile()
    )
    memory = compiled.memory_analysis()
    assert memory is not None
    held = memory.temp_size_in_bytes
    assert held < count * count  # A quarter of the distance matrix.


def test_separability():
    a, b = normal(1, (2, 600, 6))
    assert 0.4 < retrieval.separability(a, b) < 0.6
    assert retrieval.separability(a, b + 4.0) > 0.99


def test_a_perfect_proxy_guesses_among_sounds_that_are_alike():
    audio = jnp.asarray([0.0, 5.0, 1e-4, 9.0, -1e-4])[:, None] * jnp.ones(3)
    found = retrieval.ceiling(audio, 2.1e-4)
    reciprocal = (1 + 1 / 2 + 1 / 3) / 3
    assert found["alike"] == pytest.approx(3 / 5)
    assert found["recall@1"] == pytest.approx((3 / 3 + 2) / 5)
    assert found["mrr"] == pytest.approx((3 * reciprocal + 2) / 5)
    # Being alike goes from neighbour to neighbour only as far as it says.
    found = retrieval.ceiling(audio, 1.1e-4)
    assert found["recall@1"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2 + 2) / 5)
    assert retrieval.ceiling(audio, 0.9e-4)["mrr"] == 1


def test_unknown_metric():
    with pytest.raises(ValueError, match="known: l1, cosine"):
        retrieval.one_vs_all(jnp.ones((2, 2)), jnp.ones((2, 2)), "l2")
