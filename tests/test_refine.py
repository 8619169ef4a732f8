import jax
import jax.numpy as jnp
import numpy as np

from matching import distances, refine
from proxy import spaces
from tests.variables import normal


def test_nearest_entries_of_a_bank():
    bank = jnp.asarray([[0.0, 0], [3, 3], [1, 0], [0, 1]])
    where = refine.nearest(jnp.zeros(2), bank, 3)
    np.testing.assert_array_equal(where, [0, 2, 3])
    assert len(refine.nearest(jnp.zeros(2), bank, 40)) == 4


def test_ranking_leaves_out_what_failed():
    scores = np.array([2.0, np.nan, 1.0, np.inf, 1.0])
    np.testing.assert_array_equal(refine.rank(scores), [2, 4, 0])
    np.testing.assert_array_equal(refine.rank(scores, 1), [2])


def test_distinct_candidates_keep_their_order():
    candidates = np.array([[1.0, 2], [0, 0], [1, 2], [0, 1], [0, 0]])
    np.testing.assert_array_equal(refine.distinct(candidates), [0, 1, 3])


# Levels ----------------------------------------------------------------------


def test_presets_are_brought_to_the_level_of_a_target():
    space = spaces.get("dexed")
    loud = np.array(space.defaults, np.float32)[None]  # a sine
    time = np.arange(16_000) / 32_000
    clip = jnp.asarray(np.sin(2 * np.pi * 440 * time)[None], jnp.float32)
    goal = distances.features(0.25 * clip, 32_000, ("stft",), every=2)["stft"]
    presets = refine.at_level(jnp.asarray(loud), clip, goal, space, every=2)
    level = space.index("op1_output_level")
    np.testing.assert_allclose(presets[0, level] * 99, 83)  # 16 of 0.75 dB
    assert (np.asarray(presets != loud).sum(1) == 1).all()
    # What is at the level already stays as it is, and what cannot follow.
    for preset, sound in (
        (presets, 0.25 * clip),
        (presets.at[:, space.index("algorithm")].set(31.0), clip),
    ):
        fed = preset.at[:, space.index("feedback")].set(1.0)
        same = refine.at_level(fed, sound, goal, space, every=2)
        np.testing.assert_array_equal(same, fed)
    diva = spaces.get("diva")
    preset = jnp.asarray(diva.defaults)[None]
    assert refine.at_level(preset, clip, goal, diva, every=2) is preset


def test_levels_that_are_kept_are_not_moved():
    space = spaces.get("dexed")
    assert refine.moves_level(space, None)
    assert not refine.moves_level(spaces.get("diva"), None)
    for name, moves in (("op3_output_level", False), ("op3_f_fine", True)):
        locked = np.arange(space.num_used) == space.index(name)
        kept = refine.Kept(space.defaults, locked)
        assert refine.moves_level(space, kept) == moves


# Screening -------------------------------------------------------------------


def bowl(count, seed, dimensions=6):
    """Points, and scores that fall towards a place among them."""
    points = normal(seed, (count, dimensions))
    return points, jnp.linalg.norm(points - 0.5, axis=1)


def choose(count=8, seed=0, scores=None, used=None, candidates=None):
    points, score = bowl(64, 1)
    found = refine.promising(
        jax.random.key(seed),
        points,
        score if scores is None else scores,
        jnp.ones(64, bool) if used is None else used,
        bowl(200, 2)[0] if candidates is None else candidates,
        count,
    )
    return np.asarray(found)


def test_promising_candidates_are_better_than_most_and_not_all_alike():
    scores = np.asarray(bowl(200, 2)[1])
    chosen = choose(20)
    assert len(set(chosen)) == 20
    ranks = np.argsort(np.argsort(scores))[chosen]
    assert ranks.mean() < 40  # of 200; 100 by chance
    # Another key draws other functions.
    assert set(choose(20, seed=1)) != set(chosen)


def test_rows_that_do_not_count_change_nothing():
    scores = bowl(64, 1)[1]
    used = jnp.arange(64) < 40
    expected = choose(used=used)
    wrong = jnp.where(used, scores, -100.0)
    np.testing.assert_array_equal(choose(scores=wrong, used=used), expected)


def test_equal_scores_and_equal_candidates_still_give_a_choice():
    candidates = jnp.zeros((200, 6))
    chosen = choose(scores=jnp.ones(64), candidates=candidates)
    assert len(set(chosen)) == 8
    assert chosen.min() >= 0 and chosen.max() < 200
