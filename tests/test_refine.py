import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def propose(parents, count, **ways):
    children = refine.propose(
        jax.random.key(1), jnp.asarray(parents), SPACE, count, **ways
    )
    np.testing.assert_allclose(SPACE.snap(children), children, atol=1e-6)
    return np.asarray(children)


def test_mutations_change_a_share_and_better_parents_have_more_children():
    parents = np.asarray(SPACE.sample(jax.random.key(0), (4,)))
    children = propose(
        parents, 400, crossover=0.0, difference=0.0, share=(0.05, 0.05)
    )
    differ = np.abs(children[:, None] - parents[None]) > 1e-6
    changes = differ.sum(-1)
    parent = changes.argmin(-1)
    # About 5 % of 173 parameters, some of them drawn as they were.
    assert 3 < changes.min(-1).mean() < 9
    counts = np.bincount(parent, minlength=4)
    assert counts[0] > counts[1] > counts[3] > 0
    # Every parameter changes in some child.
    own = differ[np.arange(400), parent]
    assert own.any(0).all()


def test_shares_and_steps_differ_from_child_to_child():
    parent = np.asarray(SPACE.sample(jax.random.key(0), (1,)))
    children = propose(parent, 400, crossover=0.0, difference=0.0)
    away = np.abs(children - parent)
    changed = (away > 1e-6).sum(1)
    assert changed.min() <= 1 and changed.max() > 20
    steps = away[:, SPACE.numerical].max(1)
    assert (steps < 0.03).any() and (steps > 0.3).any()


def test_crossover_gives_whole_modules():
    parents = np.stack(
        [SPACE.snap(jnp.full(SPACE.num_used, value)) for value in (0.0, 1.0)]
    )
    children = propose(parents, 200, crossover=1.0)
    same = np.abs(children[:, None] - parents) < 1e-6
    module = refine.modules(SPACE)
    whole = np.stack(
        [same[..., module == m].all(-1) for m in range(module.max() + 1)], -1
    )
    # Of each child, which modules are the first parent's, the second's.
    unmixed = whole.any(1).all(-1)
    # Half of them are mutated besides.
    assert 80 < unmixed.sum() < 130
    shares = whole[unmixed, 1].mean(-1)
    # One module, or about half of them, from the other parent.
    assert ((shares > 0) & (shares < 0.1)).any()
    assert ((shares > 0.3) & (shares < 0.7)).any()


def test_differences_move_numbers_along_the_population():
    # Parents differ in one number only: so do their children.
    preset = np.asarray(SPACE.sample(jax.random.key(0), (1,)))
    parents = np.tile(preset, (6, 1))
    column = SPACE.numerical[3]
    parents[:, column] = np.linspace(0.1, 0.9, 6)
    parents = np.asarray(SPACE.snap(jnp.asarray(parents)))
    children = propose(parents, 200, crossover=0.0, difference=1.0)
    others = np.delete(children, column, axis=1)
    np.testing.assert_allclose(
        others, np.delete(parents[:1], column, axis=1).repeat(200, 0), atol=1e-5
    )
    assert len(np.unique(children[:, column])) > 20
    assert (children >= 0).all() and (children[:, column] <= 1).all()


def test_proposing_needs_a_parent():
    with pytest.raises(ValueError, match="at least one parent"):
        refine.propose(
            jax.random.key(0), jnp.zeros((0, SPACE.num_used)), SPACE, 4
        )


@pytest.mark.parametrize(("name", "count"), [("dexed", 11), ("talnm", 17)])
def test_modules_follow_the_names(name, count):
    space = spaces.get(name)
    module = refine.modules(space)
    assert module.max() + 1 == count
    if name == "dexed":
        by_name = {p.name: m for p, m in zip(space.used, module, strict=True)}
        own = by_name["op3_eg_rate_1"]
        assert own == by_name["op3_output_level"] != by_name["op4_f_fine"]


def test_ranking_leaves_out_what_failed():
    scores = np.array([2.0, np.nan, 1.0, np.inf, 1.0])
    np.testing.assert_array_equal(refine.rank(scores), [2, 4, 0])
    np.testing.assert_array_equal(refine.rank(scores, 1), [2])


def test_distinct_candidates_keep_their_order():
    candidates = np.array([[1.0, 2], [0, 0], [1, 2], [0, 1], [0, 0]])
    np.testing.assert_array_equal(refine.distinct(candidates), [0, 1, 3])
