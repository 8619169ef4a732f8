"""Spaces: the published tables, sampling, and exact round trips."""

import dataclasses
import json
import pickle

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxy import space as sp
from proxy import spaces
from tests.shared import shared

SIZES = {
    "dexed": (155, 100, 92, 0, 8, 141),
    "diva": (280, 173, 100, 22, 51, 396),
    "talnm": (83, 59, 48, 3, 8, 103),
}


@pytest.fixture(params=spaces.names(), scope="module")
def space(request):
    return spaces.get(request.param)


def _uniform(space, seed, count):
    shape = (count, space.num_used)
    return np.random.default_rng(seed).random(shape, np.float32)


def test_sizes(space):
    assert SIZES[space.name] == (
        space.num_parameters,
        space.num_used,
        len(space.numerical),
        len(space.binary),
        len(space.categorical),
        space.width,
    )


def test_tables_equal_the_published_ones(space):
    table = json.loads(shared(f"synths/{space.name}.json").read_text())
    assert len(table["parameters"]) == space.num_parameters
    for fact, ours in zip(table["parameters"], space.parameters, strict=True):
        fields = dataclasses.asdict(ours)
        for field, value in fields.items():
            if field == "default":
                assert value == pytest.approx(fact["default"], abs=1e-12)
                continue
            default = () if field.startswith("excluded") else None
            expected = fact.get(field, default)
            if isinstance(expected, list):
                expected = tuple(expected)
            assert value == expected, (ours.name, field)
        assert set(fact) <= set(fields)


def test_layout_agrees_with_the_published_code(space):
    golden = np.load(shared("golden/encoders.npz"))

    def get(name):
        return golden[f"{space.name}/{name}"]

    np.testing.assert_array_equal(space.names, get("used_names"))
    np.testing.assert_array_equal(space.numerical, get("num_idx"))
    np.testing.assert_array_equal(space.binary, get("bin_idx"))
    np.testing.assert_array_equal(space.categorical, get("cat_idx"))
    np.testing.assert_array_equal(space.cardinalities, get("cardinality"))


def test_logit_layout_agrees_with_the_published_code():
    golden = np.load(shared("golden/matching.npz"))
    for name in ("dexed", "diva"):
        space = spaces.get(name)
        position = space.relaxed_from_logit
        assert sorted(position) == list(range(space.width))
        where = {c: i for i, c in enumerate(space.noncategorical)}
        for kind, columns in (
            ("num", space.numerical),
            ("bin", space.binary),
        ):
            np.testing.assert_array_equal(
                [position[where[c]] for c in columns],
                golden[f"{name}/columns_{kind}"],
            )
        np.testing.assert_array_equal(
            position[space.category_offsets], golden[f"{name}/columns_cat"]
        )


@hypothesis.given(seed=st.integers(0, 2**31), batch=st.integers(0, 5))
@hypothesis.settings(deadline=None, max_examples=25)
def test_round_trips_are_exact(space, seed, batch):
    preset = space.from_uniform(_uniform(space, seed, batch))
    assert preset.dtype == np.float32
    same = np.testing.assert_array_equal
    same(space.snap(preset), preset)
    relaxed = space.to_relaxed(preset)
    assert relaxed.shape == (batch, space.width)
    same(space.from_relaxed(relaxed), preset)
    values = space.to_plugin(preset)
    assert values.shape == (batch, space.num_parameters)
    same(space.from_plugin(values), preset)
    unused = [i for i, p in enumerate(space.parameters) if not p.used]
    defaults = np.array(
        [space.parameters[i].default for i in unused], np.float32
    )
    same(values[:, unused], np.broadcast_to(defaults, (batch, len(unused))))


@hypothesis.given(seed=st.integers(0, 2**31))
@hypothesis.settings(deadline=None, max_examples=25)
def test_snap_reaches_the_nearest_allowed_value(space, seed):
    rng = np.random.default_rng(seed)
    wild = rng.normal(0.5, 2.0, (4, space.num_used)).astype(np.float32)
    snapped = space.snap(wild)
    for column, p in enumerate(space.used):
        for x, y in zip(wild[:, column], snapped[:, column], strict=True):
            if p.interval is not None:
                allowed = np.array([np.clip(x, *p.interval)], np.float32)
            elif p.kind == "categorical":
                allowed = np.arange(len(p.values), dtype=np.float32)
            else:
                allowed = np.array(p.values, np.float32)
            assert y in allowed
            clipped = np.clip(x, allowed.min(), allowed.max())
            assert abs(clipped - y) <= np.abs(clipped - allowed).min() + 1e-7


def test_relaxed_blocks_are_one_hot_and_jax_agrees_with_numpy(space):
    preset = space.from_uniform(_uniform(space, 0, 16))
    relaxed = space.to_relaxed(preset)
    np.testing.assert_array_equal(
        relaxed[:, : len(space.noncategorical)],
        preset[:, space.noncategorical],
    )
    for start, size, column in zip(
        space.category_offsets,
        space.cardinalities,
        space.categorical,
        strict=True,
    ):
        block = relaxed[:, start : start + size]
        np.testing.assert_array_equal(block.sum(1), 1)
        np.testing.assert_array_equal(block.argmax(1), preset[:, column])
    for method, x in (
        (space.to_relaxed, preset),
        (space.from_relaxed, relaxed),
        (space.to_plugin, preset),
        (space.from_plugin, space.to_plugin(preset)),
        (space.snap, preset),
    ):
        got = jax.jit(method)(jnp.asarray(x))
        assert isinstance(got, jax.Array)
        np.testing.assert_array_equal(got, method(x))


def test_relaxed_value_of_a_category_is_its_plugin_value(space):
    preset = space.from_uniform(_uniform(space, 1, 8))
    relaxed = space.to_relaxed(preset)
    values = space.to_plugin(preset)[:, space.positions]
    split = len(space.noncategorical)
    for start, size, column in zip(
        space.category_offsets,
        space.cardinalities,
        space.categorical,
        strict=True,
    ):
        block = slice(start - split, start - split + size)
        np.testing.assert_allclose(
            relaxed[:, start : start + size] @ space.slot_value[block],
            values[:, column],
            rtol=1e-6,
        )


def test_sampling_follows_intervals_and_weights(space):
    count = 20_000
    presets = np.asarray(space.sample(jax.random.key(0), (count,)))
    for column, p in enumerate(space.used):
        x = presets[:, column]
        if p.interval is not None:
            low, high = p.interval
            assert low <= x.min() and x.max() <= high
            mean, spread = (low + high) / 2, (high - low) / np.sqrt(12)
            assert abs(x.mean() - mean) < 5 * spread / np.sqrt(count)
            assert x.std() == pytest.approx(spread, rel=0.03)
            continue
        allowed = np.array(p.values, np.float32)
        if p.kind == "categorical":
            allowed = np.arange(len(p.values))
        weights = np.array(p.weights or [1.0] * len(p.values))
        expected = weights / weights.sum()
        counts = (x[:, None] == allowed).sum(0)
        assert counts.sum() == count
        error = np.abs(counts / count - expected)
        assert (error < 5 * np.sqrt(expected / count) + 1e-9).all(), p.name


def test_sampling_as_people_do(space):
    """Shares of defaults and ends are as asked for; the rest is as before."""
    count = 20_000
    uniform = _uniform(space, 5, count)
    presets = space.from_uniform(uniform, at_default=0.5, at_end=0.1)
    plain = space.from_uniform(uniform)
    values = np.array([p.default for p in space.parameters])
    default = space.from_plugin(values)
    low, high = (
        space.snap(np.full(space.num_used, bound)) for bound in (-1.0, 1e3)
    )
    error = 5 / np.sqrt(count)
    for column in space.numerical:
        x = presets[:, column]
        shares = {}
        for value, share in ((default, 0.5), (low, 0.05), (high, 0.05)):
            found = float(value[column])
            shares[found] = shares.get(found, 0.0) + share
        for value, share in shares.items():
            # A grid's value is also drawn as one among the others.
            other = np.mean(np.abs(plain[:, column] - value) < 1e-6)
            wanted = share + 0.4 * other
            assert np.mean(np.abs(x - value) < 1e-6) == pytest.approx(
                wanted, abs=error
            )
        rest = x[uniform[:, column] >= 0.6]
        again = plain[:, column]
        assert rest.mean() == pytest.approx(again.mean(), abs=2 * error)
        assert rest.std() == pytest.approx(again.std(), abs=2 * error)
    others = np.setdiff1d(np.arange(space.num_used), space.numerical)
    np.testing.assert_array_equal(presets[:, others], plain[:, others])
    np.testing.assert_allclose(space.snap(presets), presets, atol=1e-6)
    traced = jax.jit(
        lambda u: space.from_uniform(u, at_default=0.5, at_end=0.1)
    )(jnp.asarray(uniform[:64]))
    np.testing.assert_allclose(traced, presets[:64], atol=1e-6)


@pytest.mark.parametrize("shares", [(-0.1, 0.0), (0.0, -0.1), (0.5, 0.5)])
def test_sampling_that_cannot_be(space, shares):
    with pytest.raises(ValueError, match=r"at_default is .* at_end is"):
        space.from_uniform(
            _uniform(space, 0, 1), at_default=shares[0], at_end=shares[1]
        )


def test_sampling_depends_on_the_key_only(space):
    def draw(seed):
        return np.asarray(space.sample(jax.random.key(seed), (4,)))

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()


def test_extreme_uniforms_stay_allowed(space):
    one = np.nextafter(np.float32(1), np.float32(0))
    for u in (0.0, one):
        block = np.full((1, space.num_used), u, np.float32)
        preset = space.from_uniform(block)
        np.testing.assert_allclose(space.snap(preset), preset, atol=1e-7)


def test_gradients_reach_every_relaxed_value(space):
    preset = space.from_uniform(_uniform(space, 2, 1))
    weights = jnp.arange(1.0, space.width + 1)

    def through(preset):
        return (space.to_relaxed(preset) * weights).sum()

    grad = jax.grad(through)(jnp.asarray(preset))[0]
    assert (np.asarray(grad)[space.noncategorical] > 0).all()


def test_spaces_are_static_under_jit_and_survive_pickling(space):
    copy = pickle.loads(pickle.dumps(space))
    assert copy == space and hash(copy) == hash(space)
    jitted = jax.jit(lambda space, x: space.to_relaxed(x), static_argnums=0)
    x = jnp.zeros((2, space.num_used))
    assert jitted(space, x).shape == (2, space.width)


def test_errors_name_the_thing(space):
    with pytest.raises(ValueError, match=f"{space.num_used} values"):
        space.to_relaxed(np.zeros((2, 3), np.float32))
    near = space.names[5][:-1] + "~"
    with pytest.raises(
        ValueError, match="did you mean .*" + space.names[5][:4]
    ):
        space.index(near)
    with pytest.raises(ValueError, match="did you mean 'dexed'"):
        spaces.get("dexd")
    with pytest.raises(ValueError, match="duplicate parameter names"):
        sp.space("twice", [sp.binary("a", 0.0), sp.binary("a", 0.0)])
    with pytest.raises(ValueError, match=r"'w'.*weights"):
        sp.stepped("w", 0.0, 3, weights=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"'i'.*ascending"):
        sp.numerical("i", 0.0, 0.7, 0.2)


@pytest.mark.parametrize(
    ("name", "count", "alike"),
    [("dexed", 11, 6), ("talnm", 17, 2), ("diva", 17, 2)],
)
def test_modules_follow_the_names(name, count, alike):
    space = spaces.get(name)
    assert len(space.module_names) == count
    assert max(map(len, space.layouts)) == alike
    columns = np.sort(np.concatenate(space.module_columns))
    np.testing.assert_array_equal(columns, np.arange(space.num_used))
    if name == "dexed":
        by_name = dict(zip(space.names, space.modules.tolist(), strict=True))
        own = by_name["op3_eg_rate_1"]
        assert own == by_name["op3_output_level"] != by_name["op4_f_fine"]
        assert space.module_names[own] == "op3"


def test_graph_is_expected_over_categories():
    space = spaces.get("dexed")
    preset = np.zeros((2, space.num_used), np.float32)
    preset[1, space.index("algorithm")] = 31
    relaxed = space.to_relaxed(preset)
    graph = space.graph(relaxed)
    assert graph.edges[0, 1, 0] == graph.edges[0, 5, 4] == 1
    assert graph.edges[0].sum() == 4 and graph.edges[1].sum() == 0
    np.testing.assert_array_equal(graph.outputs[0], [1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(np.argwhere(graph.loops[0]), [[5, 5]])
    between = space.graph(jnp.asarray(relaxed.mean(0)))
    for mean, both in zip(between, graph, strict=True):
        np.testing.assert_allclose(mean, both.mean(0))
    with pytest.raises(ValueError, match="no routing"):
        spaces.get("talnm").graph(np.zeros(103))


def test_routing_must_fit_its_space():
    dexed = spaces.get("dexed")
    assert dexed.routing is not None
    with pytest.raises(ValueError, match="must be modules of one layout"):
        dataclasses.replace(
            dexed,
            routing=dataclasses.replace(dexed.routing, modules=("op1", "lfo")),
        )
    with pytest.raises(ValueError, match="each of the 32 categories"):
        dataclasses.replace(
            dexed, routing=dataclasses.replace(dexed.routing, edges=((),))
        )
