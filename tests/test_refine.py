import functools

import jax
import jax.numpy as jnp
import numpy as np

from matching import decode, refine
from proxy import encoders, spaces

SPACE = spaces.get("diva")


@functools.cache
def proxy():
    encoder = encoders.build("hn_oh", SPACE, 16, hidden=32, blocks=2)
    init = jax.jit(encoder.init)
    return encoder, init(jax.random.key(0), jnp.zeros((1, SPACE.width)))


def embedding_of(preset):
    encoder, variables = proxy()
    return jax.jit(encoder.apply)(variables, SPACE.to_relaxed(preset))


def run(starts, target, steps, **options):
    encoder, variables = proxy()
    state = refine.begin(starts, SPACE)
    for count in steps:
        state = refine.descend(
            state,
            target,
            variables,
            proxy=encoder,
            space=SPACE,
            steps=count,
            **options,
        )
    return state


def test_logits_of_a_relaxed_preset_lead_back_to_it():
    logits = jax.random.normal(jax.random.key(0), (5, SPACE.width))
    relaxed = decode.relaxed(logits, SPACE)
    again = decode.relaxed(refine.to_logits(relaxed, SPACE), SPACE)
    np.testing.assert_allclose(again, relaxed, atol=1e-4)
    # Of a hard one too, choice for choice.
    preset = SPACE.sample(jax.random.key(1), (5,))
    logits = refine.to_logits(SPACE.to_relaxed(preset), SPACE)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(decode.hard(logits, SPACE), preset, atol=1.01e-3)


def test_descent_nears_the_target_with_valid_presets():
    target = embedding_of(SPACE.sample(jax.random.key(1), (1,)))[0]
    starts = SPACE.sample(jax.random.key(2), (6,))
    state = run(starts, target, [80])
    encoder, variables = proxy()
    at_start = jnp.abs(embedding_of(starts) - target).mean(-1)
    assert (state.loss < 0.6 * at_start).all()
    # Values are in [0, 1], and every block of categories sums to 1.
    best, split = np.asarray(state.best), len(SPACE.noncategorical)
    assert (best >= 0).all() and (best <= 1).all()
    blocks = np.add.reduceat(best, SPACE.category_offsets, axis=1)
    assert SPACE.category_offsets[0] == split
    np.testing.assert_allclose(blocks, 1, atol=1e-5)
    # The loss is that of the best relaxed preset.
    embedding = encoder.apply(variables, state.best)
    np.testing.assert_allclose(
        state.loss, jnp.abs(embedding - target).mean(-1), rtol=1e-4
    )
    hard = refine.presets(state, SPACE)
    np.testing.assert_allclose(SPACE.snap(hard), hard)


def test_descents_are_independent_and_can_be_interrupted():
    target = embedding_of(SPACE.sample(jax.random.key(1), (1,)))[0]
    starts = SPACE.sample(jax.random.key(2), (3,))
    together = run(starts, target, [20])
    alone = run(starts[1:2], target, [20])
    in_parts = run(starts, target, [5, 15])
    np.testing.assert_allclose(together.best[1:2], alone.best, atol=1e-3)
    np.testing.assert_allclose(together.best, in_parts.best, atol=1e-5)
    np.testing.assert_allclose(together.loss, in_parts.loss, rtol=1e-5)


def test_nearest_entries_of_a_bank():
    bank = jnp.asarray([[0.0, 0], [3, 3], [1, 0], [0, 1]])
    where, away = refine.nearest(jnp.zeros(2), bank, 3)
    np.testing.assert_array_equal(where, [0, 2, 3])
    np.testing.assert_allclose(away, [0, 0.5, 0.5])
    assert len(refine.nearest(jnp.zeros(2), bank, 40)[0]) == 4


def test_ranking_leaves_out_what_failed():
    scores = np.array([2.0, np.nan, 1.0, np.inf, 1.0])
    np.testing.assert_array_equal(refine.rank(scores), [2, 4, 0])
    np.testing.assert_array_equal(refine.rank(scores, 1), [2])


def test_distinct_candidates_keep_their_order():
    candidates = np.array([[1.0, 2], [0, 0], [1, 2], [0, 1], [0, 0]])
    np.testing.assert_array_equal(refine.distinct(candidates), [0, 1, 3])
