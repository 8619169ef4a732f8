import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matching import decode
from proxy import space as spaces_of
from proxy import spaces
from tests.shared import shared
from tests.variables import normal

NAMES = ("dexed", "diva", "talnm")


def logits_of(space, batch=16, seed=0, scale=2.0):
    return scale * normal(seed, (batch, space.width))


@pytest.mark.parametrize("name", ["dexed", "diva"])
def test_hard_decoding_is_the_published_one(name):
    golden = np.load(shared("golden/matching.npz"))
    space = spaces.get(name)
    preset = decode.hard(jnp.asarray(golden[f"{name}/logits"]), space)
    np.testing.assert_allclose(preset, golden[f"{name}/decoded"], atol=1e-6)
    raw = space.to_plugin(preset)[:, space.positions]
    np.testing.assert_allclose(raw, golden[f"{name}/decoded_raw"], atol=1e-6)


@pytest.mark.parametrize("name", ["dexed", "diva"])
def test_logits_lie_where_the_published_code_puts_them(name):
    golden = np.load(shared("golden/matching.npz"))
    space = spaces.get(name)
    place = dict(
        zip(space.noncategorical, space.relaxed_from_logit, strict=False)
    )
    assert [place[c] for c in space.numerical] == list(
        golden[f"{name}/columns_num"]
    )
    assert [place[c] for c in space.binary] == list(
        golden[f"{name}/columns_bin"]
    )
    first = space.relaxed_from_logit[space.category_offsets]
    np.testing.assert_array_equal(first, golden[f"{name}/columns_cat"])


@pytest.mark.parametrize("name", NAMES)
def test_relaxed_presets_are_probabilities_with_the_hard_ones_on_top(name):
    space = spaces.get(name)
    logits = logits_of(space)
    relaxed = decode.relaxed(logits, space)
    assert relaxed.min() >= 0 and relaxed.max() <= 1
    for offset, size in zip(
        space.category_offsets, space.cardinalities, strict=True
    ):
        block = relaxed[:, offset : offset + size]
        np.testing.assert_allclose(block.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        space.from_relaxed(relaxed), decode.hard(logits, space)
    )


def test_temperature_sharpens_choices_and_leaves_values():
    space = spaces.get("diva")
    logits = logits_of(space)
    cold = decode.relaxed(logits, space, temperature=1e-6)
    hard = space.to_relaxed(decode.hard(logits, space))
    np.testing.assert_allclose(cold, hard, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_straight_through_is_hard_forward_and_relaxed_backward(name):
    space = spaces.get(name)
    logits = logits_of(space)
    weights = normal(1, (space.width,))

    def total(decoded):
        return lambda logits: (decoded(logits, space) * weights).sum()

    np.testing.assert_array_equal(
        decode.straight_through(logits, space),
        space.to_relaxed(decode.hard(logits, space)),
    )
    np.testing.assert_allclose(
        jax.jit(jax.grad(total(decode.straight_through)))(logits),
        jax.jit(jax.grad(total(decode.relaxed)))(logits),
        rtol=1e-6,
    )


def test_gumbel_draws_follow_the_probabilities():
    space = spaces_of.space(
        "toy",
        [
            spaces_of.numerical("level", 0.5),
            spaces_of.binary("switch", 0.0),
            spaces_of.categorical("shape", 0.0, 3),
        ],
    )
    logits = jnp.asarray([0.3, 1.0, 0.5, -0.5, 0.0])
    draws = decode.straight_through(
        jnp.broadcast_to(logits, (20_000, 5)), space, key=jax.random.key(0)
    )
    probabilities = decode.relaxed(logits, space)
    np.testing.assert_allclose(draws.mean(0), probabilities, atol=0.015)
    assert set(np.unique(draws[:, 1:])) == {0.0, 1.0}
    # The numerical value is not drawn.
    np.testing.assert_allclose(draws[:, 0], probabilities[0], rtol=1e-6)


def test_a_space_without_categories_decodes():
    space = spaces_of.space(
        "plain", [spaces_of.binary("on", 0.0), spaces_of.numerical("a", 0.5)]
    )
    logits = jnp.asarray([[2.0, 0.0]])
    np.testing.assert_allclose(decode.hard(logits, space), [[1, 0.5]])
    np.testing.assert_allclose(
        decode.relaxed(logits, space), [[0.880797, 0.5]], rtol=1e-5
    )


def test_bad_input_is_refused():
    space = spaces.get("dexed")
    with pytest.raises(ValueError, match="logits for dexed have 141 values"):
        decode.hard(jnp.zeros((2, 100)), space)
    with pytest.raises(ValueError, match="known: hard, relaxed"):
        decode.for_proxy(jnp.zeros((2, 141)), space, "soft")
    with pytest.raises(ValueError, match="needs a random key"):
        decode.for_proxy(jnp.zeros((2, 141)), space, "gumbel")
