import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matching import decode, losses, refine
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


def run(starts, target, steps, geometry, **options):
    encoder, variables = proxy()
    state = refine.begin(starts, SPACE, geometry)
    for count in steps:
        state = refine.descend(
            state,
            target,
            variables,
            proxy=encoder,
            space=SPACE,
            steps=count,
            geometry=geometry,
            **options,
        )
    return state


def test_simplex_projection_is_the_nearest_point():
    x = np.random.default_rng(0).normal(size=(200, 4)).astype("f4")
    real = np.array([True, True, True, False])
    nearest = np.asarray(refine.project_simplex(jnp.asarray(x), real))
    np.testing.assert_allclose(nearest.sum(-1), 1, rtol=1e-5)
    assert (nearest >= 0).all() and (nearest[:, 3] == 0).all()
    # No point of a fine grid on the simplex is nearer.
    side = np.linspace(0, 1, 41)
    grid = np.array([(a, b, 1 - a - b) for a in side for b in side])
    grid = grid[grid[:, 2] >= 0]
    best = np.linalg.norm(grid[:, None] - x[None, :, :3], axis=-1).min(0)
    ours = np.linalg.norm(nearest[:, :3] - x[:, :3], axis=-1)
    assert (ours <= best + 1e-5).all()


def test_projection_keeps_valid_presets():
    logits = jax.random.normal(jax.random.key(0), (5, SPACE.width))
    valid = decode.relaxed(logits, SPACE)
    np.testing.assert_allclose(refine.project(valid, SPACE), valid, atol=1e-6)
    hard = SPACE.to_relaxed(decode.hard(logits, SPACE))
    np.testing.assert_array_equal(refine.project(hard, SPACE), hard)


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


@pytest.mark.parametrize(
    "geometry, mode, rate",
    [
        ("logits", "relaxed", 0.05),
        ("logits", "straight_through", 0.05),
        ("projected", "relaxed", 0.01),
    ],
)
def test_descent_nears_the_target_with_valid_presets(geometry, mode, rate):
    target = embedding_of(SPACE.sample(jax.random.key(1), (1,)))[0]
    starts = SPACE.sample(jax.random.key(2), (6,))
    state = run(starts, target, [80], geometry, mode=mode, learning_rate=rate)
    encoder, variables = proxy()
    at_start = refine.predicted_distance(
        starts, target, losses.frozen(encoder, variables), SPACE
    )
    assert (state.loss < 0.6 * at_start).all()
    np.testing.assert_allclose(
        refine.project(state.best, SPACE), state.best, atol=1e-5
    )
    # The loss is that of the best relaxed preset.
    embedding = encoder.apply(variables, state.best)
    np.testing.assert_allclose(
        state.loss, jnp.abs(embedding - target).mean(-1), rtol=1e-4
    )
    hard = refine.presets(state, SPACE)
    np.testing.assert_allclose(SPACE.snap(hard), hard)
    if mode == "straight_through":
        np.testing.assert_allclose(
            SPACE.to_relaxed(SPACE.from_relaxed(state.best)),
            state.best,
            atol=1e-6,
        )


def test_descents_are_independent_and_can_be_interrupted():
    target = embedding_of(SPACE.sample(jax.random.key(1), (1,)))[0]
    starts = SPACE.sample(jax.random.key(2), (3,))
    together = run(starts, target, [20], "logits")
    alone = run(starts[1:2], target, [20], "logits")
    in_parts = run(starts, target, [5, 15], "logits")
    np.testing.assert_allclose(together.best[1:2], alone.best, atol=1e-3)
    np.testing.assert_allclose(together.best, in_parts.best, atol=1e-5)
    np.testing.assert_allclose(together.loss, in_parts.loss, rtol=1e-5)


def test_a_start_at_the_target_is_never_made_worse():
    preset = SPACE.sample(jax.random.key(1), (1,))
    target = embedding_of(preset)[0]
    state = run(preset, target, [10], "projected")
    np.testing.assert_allclose(state.loss, 0, atol=1e-6)
    np.testing.assert_allclose(refine.presets(state, SPACE), preset, atol=1e-5)


def test_unknown_geometry_is_refused():
    preset = SPACE.sample(jax.random.key(0), (1,))
    with pytest.raises(ValueError, match="known: logits, projected"):
        refine.begin(preset, SPACE, "sphere")


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
