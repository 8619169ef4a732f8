"""Priors: what they draw, and that nothing of a bank leaks out of one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datasets.presets import reading
from proxy import priors, space, spaces
from tests.shared import shared

SPACE = spaces.get("diva")
DEXED = spaces.get("dexed")


def uniforms(prior, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, prior.uniforms), dtype=np.float32)


def test_uniform_prior_is_the_space_own_sampling():
    key = jax.random.key(3)
    np.testing.assert_array_equal(
        priors.sample(priors.Uniform(SPACE), key, (4,)), SPACE.sample(key, (4,))
    )
    u = uniforms(priors.Uniform(SPACE), 3)
    np.testing.assert_array_equal(
        priors.Uniform(SPACE).from_uniform(u), SPACE.from_uniform(u)
    )
    with pytest.raises(ValueError, match=r"at_default is 0\.9"):
        priors.Uniform(SPACE, at_default=0.9, at_end=0.2)


# Variations ------------------------------------------------------------------


def propose(parents, count, **ways):
    children = priors.propose(
        jax.random.key(1),
        jnp.asarray(parents),
        SPACE,
        count,
        dataclasses.replace(priors.SEARCH, **ways),
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
    module = SPACE.modules
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
        priors.propose(
            jax.random.key(0), jnp.zeros((0, SPACE.num_used)), SPACE, 4
        )


def test_numpy_and_jax_make_the_same_children():
    bank = np.asarray(DEXED.sample(jax.random.key(0), (50,)))
    prior = priors.Variations(DEXED, bank)
    u = uniforms(prior, 200)
    ours = prior.from_uniform(u)
    assert isinstance(ours, np.ndarray) and ours.dtype == np.float32
    traced = jax.jit(prior.from_uniform)(jnp.asarray(u))
    np.testing.assert_allclose(traced, ours, atol=1e-5)
    # A child follows from its own row, whatever comes with it.
    np.testing.assert_array_equal(prior.from_uniform(u[7:8])[0], ours[7])
    np.testing.assert_array_equal(
        prior.from_uniform(u.reshape(4, 50, -1)).reshape(200, -1), ours
    )


def test_modules_keep_their_roles():
    """What is given to a carrier was a carrier, and likewise a modulator."""
    routing = DEXED.routing
    assert routing is not None
    outputs = routing.output_table
    bank = np.array(DEXED.sample(jax.random.key(0), (40,)))
    algorithm = DEXED.index("algorithm")
    # Operators that can be told apart, and are by preset, place and role.
    role = outputs[bank[:, algorithm].astype(int)]
    level = np.stack([DEXED.index(f"op{n}_output_level") for n in range(1, 7)])
    number = np.arange(40)[:, None] * 12 + np.arange(6) * 2 + role
    bank[:, level] = number / 512
    ways = priors.Ways(
        crossover=1.0, modules=(0.3, 0.9), share=(1e-9, 1e-9), ranked=False
    )
    prior = priors.Variations(DEXED, bank, ways)
    children = prior.from_uniform(uniforms(prior, 2000))
    found = children[:, level] * 512
    now = outputs[children[:, algorithm].astype(int)]
    exact = np.abs(found - np.rint(found)) < 1e-3
    was = np.rint(found) % 2
    place = np.rint(found) // 2 % 6
    moved = exact & (place != np.arange(6))
    assert moved.sum() > 200
    # Some donors lack the role: what comes from them stays in its place.
    assert (was == now)[moved].mean() > 0.98


def test_borrowed_values_are_the_banks():
    bank = np.asarray(DEXED.sample(jax.random.key(0), (20,)))
    ways = priors.Ways(
        crossover=0.0, difference=0.0, share=(0.3, 0.3), borrow=1.0
    )
    prior = priors.Variations(DEXED, bank, ways)
    children = prior.from_uniform(uniforms(prior, 300))
    known = (np.abs(children[:, None] - bank) < 1e-6).any(1)
    assert known.all()
    away = (np.abs(children[:, None] - bank) > 1e-6).sum(-1).min(1)
    assert 10 < away.mean() < 30


# Fitted ----------------------------------------------------------------------


SMALL = space.space(
    "small",
    [
        space.categorical("wave", 0.0, 4),
        space.numerical("cutoff", 0.5),
        space.numerical("attack", 0.21, 0.2, 0.8),
        space.binary("sync", 0.0),
        space.stepped("octave", 0.5, 5),
    ],
)


def chain(count, seed):
    """Presets in which one parameter follows another."""
    rng = np.random.default_rng(seed)
    presets = np.tile(SMALL.defaults, (count, 1))
    presets[:, 0] = rng.integers(0, 3, count)
    presets[:, 1] = (presets[:, 0] + 1) / 4
    presets[:, 2] = np.where(rng.random(count) < 0.5, 0.3, presets[:, 1])
    return np.asarray(SMALL.snap(presets), np.float32)


def test_a_tree_finds_what_depends_on_what():
    presets = chain(2000, 0)
    prior = priors.fit(presets, SMALL, components=1)
    drawn = prior.from_uniform(uniforms(prior, 2000))
    np.testing.assert_allclose(SMALL.snap(drawn), drawn, atol=1e-6)
    # Off the dependence only by smoothing.
    follows = np.abs(drawn[:, 1] - (drawn[:, 0] + 1) / 4) < 1e-3
    assert follows.mean() > 0.98
    same = np.abs(drawn[:, 2] - drawn[:, 1]) < 1e-3
    assert 0.45 < same.mean() < 0.55
    assert np.isin(np.unique(drawn[:, 0]), [0, 1, 2]).all()
    assert (np.abs(drawn[:, 3:] - SMALL.defaults[3:]) < 1e-6).mean() > 0.99


def test_probabilities_are_those_of_the_draws():
    presets = chain(2000, 0)
    prior = priors.fit(presets, SMALL, components=2, rounds=5)
    drawn = prior.from_uniform(uniforms(prior, 20_000, 1))
    for preset in presets[:3]:
        share = (np.abs(drawn - preset).max(1) < 1e-4).mean()
        expected = np.exp(prior.log_prob(preset[None]))[0]
        assert expected > 0.05
        np.testing.assert_allclose(share, expected, atol=0.015)
    unseen = presets[:1].copy()
    unseen[0, 1] = 0.75 if presets[0, 0] != 2 else 0.25
    assert prior.log_prob(unseen)[0] < prior.log_prob(presets[:1])[0] - 2


def test_two_kinds_of_presets_are_two_components():
    numbers = [space.numerical(f"n{i}", 0.5) for i in range(12)]
    many = space.space("many", [*numbers, space.binary("sync", 0.0)])
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, (1000, 1))
    # Within a kind nothing depends on anything.
    noise = rng.random((1000, 13)) < 0.2
    presets = np.where(noise, 1 - kind, kind).astype(np.float32)
    one = priors.fit(presets, many, components=1).log_prob(presets).mean()
    two = priors.fit(presets, many, components=2).log_prob(presets).mean()
    assert two > one + 0.5


def test_fitted_numpy_and_jax_agree():
    prior = priors.fit(chain(300, 0), SMALL, components=2, rounds=3)
    u = uniforms(prior, 64)
    drawn = prior.from_uniform(u)
    traced = jax.jit(prior.from_uniform)(jnp.asarray(u))
    np.testing.assert_allclose(traced, drawn, atol=1e-6)
    with pytest.raises(ValueError, match="6 uniform numbers, got 5"):
        prior.from_uniform(u[:, 1:])


def test_a_default_off_every_grid_is_kept():
    presets = np.array(SMALL.sample(jax.random.key(0), (200,)))
    presets[::2, 2] = 0.21
    prior = priors.fit(presets, SMALL, components=1)
    drawn = prior.from_uniform(uniforms(prior, 500))
    exact = (drawn[:, 2] == np.float32(0.21)).mean()
    assert 0.4 < exact < 0.6
    assert len(np.unique(drawn[:, 2])) > 30


@pytest.fixture(scope="module")
def voices():
    path = shared("presets/dx7_voices.bin")
    return reading.load(path, DEXED).presets


def test_fitted_dexed_draws_no_voice(voices):
    prior = priors.fit(voices, DEXED, rounds=2)
    arrays = (prior.steps, prior.cells, prior.weights, prior.parents)
    size = sum(x.nbytes for x in (*arrays, *prior.tables))
    assert size < 200_000
    # Every value is one that a DX7 has, up to the ends of the intervals.
    drawn = prior.from_uniform(uniforms(prior, 1000))
    steps = drawn[:, DEXED.index("op1_eg_rate_1")] * 99
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    known = {row.tobytes() for row in np.rint(voices * 10_000).astype("i4")}
    for seed in range(10):
        drawn = prior.from_uniform(uniforms(prior, 10_000, seed))
        codes = np.rint(drawn * 10_000).astype("i4")
        assert not known.intersection(row.tobytes() for row in codes)


def test_fitted_dexed_is_like_voices(voices):
    prior = priors.fit(voices[::2], DEXED, components=1)
    drawn = prior.from_uniform(uniforms(prior, 2000))
    held_out = prior.log_prob(voices[1::2]).mean()
    uniform = np.asarray(DEXED.sample(jax.random.key(0), (500,)))
    assert held_out > prior.log_prob(uniform).mean() + 100
    off = np.abs(drawn.mean(0) - voices.mean(0)) / (0.01 + voices.std(0))
    assert off.max() < 0.15


def test_fitting_nothing_is_refused():
    with pytest.raises(ValueError, match="got 0 presets"):
        priors.fit(np.zeros((0, DEXED.num_used), np.float32), DEXED)


def test_files_of_fitted_priors():
    presets = np.asarray(SPACE.sample(jax.random.key(0), (40,)))
    prior = priors.fit(presets, SPACE, levels=4, rounds=1)
    content = priors.to_bytes(prior)
    found = priors.from_bytes(content, SPACE)
    assert priors.digest(found) == priors.digest(prior)
    assert content == priors.to_bytes(found) and len(content) < 200_000
    with pytest.raises(ValueError, match="one of diva, with 173 parameters"):
        priors.from_bytes(content, DEXED)
    for broken in (b"", b"nonsense", content[:-100]):
        with pytest.raises(ValueError, match="not a file of a fitted prior"):
            priors.from_bytes(broken, SPACE)


# Mixtures and digests --------------------------------------------------------


def test_mixtures_keep_their_shares():
    bank = np.tile(SPACE.defaults, (3, 1)).astype(np.float32)
    still = priors.Ways(
        crossover=0.0, difference=0.0, share=(1e-9, 1e-9), spread=(1e-9, 1e-9)
    )
    variations = priors.Variations(SPACE, bank, still)
    prior = priors.Mixture((variations, priors.Uniform(SPACE)), (0.3, 0.7))
    drawn = prior.from_uniform(uniforms(prior, 2000))
    near = (np.abs(drawn - bank[0]) > 1e-3).sum(1) <= 1
    assert 0.26 < near.mean() < 0.34
    with pytest.raises(ValueError, match="needs one space"):
        priors.Mixture(
            (priors.Uniform(SPACE), priors.Uniform(DEXED)), (1.0, 0.0)
        )
    with pytest.raises(ValueError, match="1 together"):
        priors.Mixture((priors.Uniform(SPACE),), (0.5,))


def test_digests_tell_priors_apart():
    bank = np.asarray(SPACE.sample(jax.random.key(0), (5,)))
    other = bank.copy()
    other[0, 3] += 0.01
    found = [
        priors.Uniform(SPACE),
        priors.Uniform(DEXED),
        priors.Uniform(SPACE, at_default=0.1),
        priors.Variations(SPACE, bank),
        priors.Variations(SPACE, bank, priors.SEARCH),
        priors.Variations(SPACE, other),
        priors.Mixture((priors.Uniform(SPACE),), (1.0,)),
        priors.fit(chain(20, 0), SMALL, components=1),
    ]
    digests = [priors.digest(prior) for prior in found]
    assert len(set(digests)) == len(digests)
    again = priors.Variations(SPACE, bank.copy())
    assert priors.digest(again) == digests[3]
    assert all(len(digest) == 32 for digest in digests)
