import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from proxy import encoders, spaces
from proxy.encoders import inputs
from proxy.encoders.norm import BatchNorm
from proxy.published import encoders as published
from tests.published import encoder_state
from tests.shared import shared
from tests.variables import draw

SYNTHS = ("dexed", "diva", "talnm")
GOLDEN = ("mlp_oh", "hn_oh", "hn_pt", "hn_ptgru", "tfm")


@functools.cache
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(shared("golden/encoders.npz")))


def part(synth: str, name: str, what: str) -> dict[str, np.ndarray]:
    prefix = f"{synth}/{name}/{what}/"
    return {
        key.removeprefix(prefix): value
        for key, value in golden().items()
        if key.startswith(prefix)
    }


def build(name: str, space, dimension: int, **sizes) -> Any:
    """An encoder, whose results type checkers cannot tell apart."""
    return encoders.build(name, space, dimension, **sizes)


def overrides(name: str) -> dict:
    return {"heads": 4} if name == "tfm" else {}


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def close(ours, theirs, tolerance: float, what: str) -> None:
    scale = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(
        ours, theirs, atol=tolerance * scale, rtol=tolerance, err_msg=what
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("synth", SYNTHS)
def test_golden_step(synth: str, name: str, dtype: str) -> None:
    tolerance = {"float64": 1e-6, "float32": 1e-4}[dtype]
    with jax.enable_x64(dtype == "float64"):
        space = spaces.get(synth)
        sizes, variables = published.from_published(
            name, space, part(synth, name, "init"), **overrides(name)
        )
        encoder = build(name, space, **sizes)
        variables = cast(variables, dtype)
        relaxed = cast(space.to_relaxed(golden()[f"{synth}/x"]), dtype)
        target = cast(golden()[f"{synth}/{name}/target"], dtype)

        @jax.jit
        def step(variables):
            def loss(params):
                y, new = encoder.apply(
                    {**variables, "params": params},
                    relaxed,
                    train=True,
                    mutable=["batch_stats"],
                )
                return jnp.abs(y - target).mean(), (y, new)

            params = variables["params"]
            (value, (y, new)), grads = jax.value_and_grad(loss, has_aux=True)(
                params
            )
            optimizer = optax.adamw(
                1e-2, b1=0.9, b2=0.999, eps=1e-3, weight_decay=0.0
            )
            updates, _ = optimizer.update(grads, optimizer.init(params), params)
            params = optax.apply_updates(params, updates)
            return value, y, grads, {**new, "params": params}

        value, y, grads, after = step(variables)
        assert y.dtype == dtype
        close(y, golden()[f"{synth}/{name}/y_train"], tolerance, "y_train")
        close(value, golden()[f"{synth}/{name}/loss"], tolerance, "loss")
        theirs = part(synth, name, "grad")
        ours = encoder_state(name, {"params": grads})
        assert ours.keys() == theirs.keys()
        for key in theirs:
            close(ours[key], theirs[key], tolerance, f"gradient of {key}")
        theirs = part(synth, name, "after")
        ours = encoder_state(name, after)
        derived = ("cat_offsets", "num_batches_tracked")
        assert ours.keys() == {
            key for key in theirs if not key.endswith(derived)
        }
        for key in ours:
            close(ours[key], theirs[key], tolerance, f"{key} after a step")
        _, theirs = published.from_published(
            name, space, theirs, **overrides(name)
        )
        y = jax.jit(encoder.apply)(cast(theirs, dtype), relaxed)
        close(y, golden()[f"{synth}/{name}/y_eval"], tolerance, "y_eval")


PAPER = tuple(n for n in encoders.names() if not n.startswith("modules"))


@pytest.mark.parametrize("name", PAPER)
def test_round_trip_of_published_names(name: str) -> None:
    space = spaces.get("talnm")
    encoder = build(name, space, 5, **small(name))
    variables = draw(encoder.init, jnp.zeros((2, space.width)))
    state = encoder_state(name, variables)
    sizes, back = published.from_published(
        name, space, state, **overrides(name)
    )
    for size, value in small(name).items():
        if size != "heads":
            assert sizes[size] == value
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def small(name: str) -> dict:
    if name in ("tfm", "modules_tfm"):
        return {"hidden": 16, "blocks": 2, "heads": 4, "factor": 2.0}
    if name == "modules":
        return {"hidden": 16, "blocks": 1, "token": 8, "hops": 2}
    if name == "gru_oh":
        return {"hidden": 8, "layers": 2}
    sizes = {"hidden": 16, "blocks": 3}
    if name in ("hn_pt", "hn_ptgru"):
        sizes["token"] = 8
    return sizes


@pytest.mark.parametrize("name", encoders.names())
def test_relaxed_presets_reach_every_value(name: str) -> None:
    """Each slot has a gradient, and a mixture is not rounded."""
    space = spaces.get("dexed")
    encoder = build(name, space, 5, **small(name))
    key = jax.random.key(1)
    relaxed = space.to_relaxed(space.sample(key, (4,)))
    # As when training ended: statistics that differ from 0 and 1.
    variables = draw(encoder.init, relaxed)
    # Initial tokens are so small that normalisation drowns them.
    if "tokens" in variables["params"]:
        tokens = jax.tree.map(lambda x: x * 50, variables["params"]["tokens"])
        variables["params"]["tokens"] = tokens

    def loss(relaxed):
        return jnp.square(encoder.apply(variables, relaxed)).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(relaxed))
    assert np.isfinite(gradient).all()
    reached = np.abs(gradient).max(0) > 0
    if name == "mlp_raw":  # a category whose plug-in value is 0 adds 0
        split = len(space.noncategorical)
        reached[split:] |= space.slot_value == 0
    assert reached.all()


def test_batch_norm_matches_two_passes() -> None:
    norm: Any = BatchNorm()
    x = 1e3 + np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    variables = norm.init(jax.random.key(0), jnp.asarray(x), train=False)
    y, new = norm.apply(
        variables, jnp.asarray(x), train=True, mutable=["batch_stats"]
    )
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=2e-4)
    np.testing.assert_allclose(
        new["batch_stats"]["var"],
        0.9 + 0.1 * wide.var(0, ddof=1),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        new["batch_stats"]["mean"], 0.1 * wide.mean(0), rtol=1e-6
    )


def test_batch_norm_statistics_stay_float32() -> None:
    norm: Any = BatchNorm()
    x = jnp.asarray(
        np.random.default_rng(0).normal(size=(512, 3)), jnp.bfloat16
    )
    variables = norm.init(jax.random.key(0), x, train=False)
    y, new = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(
        new["batch_stats"]["var"], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-5
    )


def test_batch_of_one_is_refused() -> None:
    space = spaces.get("talnm")
    encoder = build("mlp_oh", space, 5, hidden=4)
    one = jnp.zeros((1, space.width))
    variables = encoder.init(jax.random.key(0), one)
    with pytest.raises(ValueError, match="at least 2"):
        encoder.apply(variables, one, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("name", encoders.names())
def test_bfloat16_compute(name: str) -> None:
    space = spaces.get("talnm")
    wide = build(name, space, 5, **small(name))
    narrow = build(name, space, 5, dtype=jnp.bfloat16, **small(name))
    relaxed = space.to_relaxed(space.sample(jax.random.key(0), (16,)))
    variables = draw(narrow.init, relaxed)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    y = jax.jit(narrow.apply)(variables, relaxed)
    assert y.dtype == jnp.float32
    expected = np.asarray(jax.jit(wide.apply)(variables, relaxed))
    error = np.abs(y - expected).mean() / np.abs(expected).mean()
    assert 0 < error < 0.05


@pytest.mark.parametrize("synth", SYNTHS)
def test_raw_values_are_plugin_values(synth: str) -> None:
    space = spaces.get(synth)
    preset = space.sample(jax.random.key(2), (7,))
    raw = inputs.raw_values(space.to_relaxed(preset), space)
    expected = space.to_plugin(preset)[:, space.positions]
    np.testing.assert_allclose(raw, expected, rtol=1e-6)


@pytest.mark.parametrize("synth", SYNTHS)
def test_tokens_are_the_look_up(synth: str) -> None:
    space = spaces.get(synth)
    preset = np.asarray(space.sample(jax.random.key(2), (3,)))
    table = np.random.default_rng(0).normal(size=(space.width, 4))
    table = table.astype(np.float32)
    relaxed = jnp.asarray(space.to_relaxed(preset))
    tokens = inputs.tokens(relaxed, jnp.asarray(table), space)
    tokens = np.asarray(tokens)[:, inputs.table_order(space)]
    split = len(space.noncategorical)
    for row in range(3):
        for i, column in enumerate(space.noncategorical):
            np.testing.assert_allclose(
                tokens[row, column],
                preset[row, column] * table[i],
                rtol=1e-6,
            )
        for offset, column in zip(
            space.category_offsets, space.categorical, strict=True
        ):
            assert offset >= split
            np.testing.assert_array_equal(
                tokens[row, column], table[offset + int(preset[row, column])]
            )


@pytest.mark.parametrize("synth", SYNTHS)
def test_folded_layer_equals_flattened_tokens(synth: str) -> None:
    space = spaces.get(synth)
    rng = np.random.default_rng(0)
    relaxed = jnp.asarray(rng.uniform(size=(3, space.width)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(space.width, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(space.num_used, 4, 6)), jnp.float32)
    tokens = inputs.tokens(relaxed, table, space)
    flat = tokens[:, inputs.table_order(space)].reshape(3, -1)
    np.testing.assert_allclose(
        inputs.folded(relaxed, table, kernel, space),
        flat @ kernel.reshape(-1, 6),
        rtol=1e-4,
        atol=1e-3,
    )


def test_initial_weights_follow_the_paper() -> None:
    space = spaces.get("dexed")
    relaxed = jnp.zeros((2, space.width))
    params = build("hn_oh", space, 192).init(jax.random.key(0), relaxed)[
        "params"
    ]
    block = params["blocks_1"]
    hidden = block["fc"]["dense"]["kernel"].shape[0]
    assert hidden == 768
    np.testing.assert_allclose(
        block["fc"]["dense"]["kernel"].std(), (2 / hidden) ** 0.5, rtol=0.01
    )
    np.testing.assert_allclose(
        block["gate"]["kernel"].std(), (1 / hidden) ** 0.5, rtol=0.01
    )
    assert (block["gate"]["bias"] == -1).all()
    assert "gate" not in params["blocks_0"]
    np.testing.assert_allclose(
        params["head"]["kernel"].std(), (1 / hidden) ** 0.5, rtol=0.02
    )


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mlp_oh", 4.88),
        ("hn_oh", 6.17),
        ("hn_pt", 6.01),
        ("hn_ptgru", 7.07),
        ("tfm", 4.82),
    ],
)
def test_paper_sizes(name: str, millions: float) -> None:
    space = spaces.get("dexed")
    variables = jax.eval_shape(
        build(name, space, 192).init,
        jax.random.key(0),
        jnp.zeros((2, space.width)),
    )
    leaves = jax.tree.leaves(variables["params"])
    assert round(sum(x.size for x in leaves) / 1e6, 2) == millions


def test_unknown_names_are_told() -> None:
    space = spaces.get("dexed")
    with pytest.raises(ValueError, match="did you mean 'hn_oh'"):
        encoders.get("hn_ho")
    with pytest.raises(ValueError, match=r"mlp_oh 'depth' .known: axis_name"):
        build("mlp_oh", space, 5, depth=3)


def test_wrong_width_is_told() -> None:
    space = spaces.get("dexed")
    with pytest.raises(ValueError, match="141 values, got 100"):
        build("mlp_oh", space, 5).init(jax.random.key(0), jnp.zeros((2, 100)))


def test_published_state_that_does_not_fit() -> None:
    dexed, talnm = spaces.get("dexed"), spaces.get("talnm")
    variables = build("hn_oh", dexed, 5, hidden=8, blocks=2).init(
        jax.random.key(0), jnp.zeros((2, dexed.width))
    )
    state = encoder_state("hn_oh", variables)
    with pytest.raises(ValueError, match=r"fc\.0\.weight' has shape"):
        published.from_published("hn_oh", talnm, state)
    with pytest.raises(ValueError, match="not of this encoder"):
        published.from_published("mlp_oh", dexed, state)
    with pytest.raises(ValueError, match=r"hold 'extra'.*which a hn_oh"):
        published.from_published(
            "hn_oh", dexed, {**state, "extra": np.zeros(1)}
        )
    offsets = {"embedding_layer.cat_offsets": np.arange(8)}
    with pytest.raises(ValueError, match="another synthesizer"):
        published.from_published("hn_oh", dexed, {**state, **offsets})
    del state["blocks.1.gate.0.bias"]
    with pytest.raises(ValueError, match=r"lack 'blocks\.1\.gate"):
        published.from_published("hn_oh", dexed, state)
