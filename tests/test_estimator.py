import ast
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matching import estimator
from matching.convolution import strided_convolution
from matching.published import from_published
from proxy import spaces
from tests.shared import shared
from tests.variables import draw, normal


def published(outputs):
    """The formula weights, for a network of that many outputs."""
    golden = np.load(shared("golden/matching.npz"))
    state = {}
    names = golden["estimator/state_dict_names"]
    shapes = golden["estimator/state_dict_shapes"]
    for j, (name, text) in enumerate(zip(names, shapes, strict=True)):
        if name.endswith("num_batches_tracked"):
            continue
        shape = [outputs if n == 141 else n for n in ast.literal_eval(text)]
        size = int(np.prod(shape))
        x = np.sin(0.7 * np.arange(size) + j)
        if name.endswith("running_var"):
            x = 1 + 0.5 * x
        elif len(shape) > 1:
            x = x * np.sqrt(2 / (size / shape[0]))
        elif name.endswith("weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        state[str(name)] = x.reshape(shape).astype(np.float32)
    return state


@pytest.mark.parametrize("name", ["dexed", "diva"])
def test_logits_are_the_published_ones(name):
    golden = np.load(shared("golden/matching.npz"))
    width = spaces.get(name).width
    variables = from_published(published(width))
    logits = jax.jit(estimator.Estimator(width).apply)(
        variables, golden["dexed/mel"]
    )
    expected = golden[f"{name}/logits"]
    scale = np.abs(expected).max()
    assert np.abs(logits - expected).max() < 1e-4 * scale


def test_published_weights_behind_a_prefix_and_what_is_refused():
    state = published(141)
    variables = from_published({f"estimator.{k}": v for k, v in state.items()})
    np.testing.assert_array_equal(
        variables["params"]["head"]["kernel"], state["mlp.1.weight"].T
    )
    missing = {k: v for k, v in state.items() if k != "enc_nn.8.bias"}
    with pytest.raises(ValueError, match=r"lack 'enc_nn\.8\.bias'"):
        from_published(missing)
    state["enc_nn.8.weight"] = state["enc_nn.8.weight"][:, :-1]
    with pytest.raises(ValueError, match=r"enc_nn\.8\.weight' has shape"):
        from_published(state)


# Rows and columns that the last window does not reach, one channel, many
# channels, odd kernels.
SHAPES = [
    ((2, 128, 33, 1), 5, 8),
    ((2, 16, 19, 1), 4, 3),
    ((2, 17, 20, 6), 4, 5),
    ((2, 17, 21, 8), 4, 16),
    ((2, 8, 18, 3), 5, 9),
    ((2, 16, 21, 6), 5, 5),
    ((2, 3, 6, 256), 4, 7),
    ((2, 4, 5, 256), 5, 7),
    ((1, 1, 1, 4), 4, 2),
]


@pytest.mark.parametrize("shape, size, features", SHAPES)
def test_strided_convolution_and_its_gradients(shape, size, features):
    x = normal(0, shape)
    kernel = normal(1, (size, size, shape[-1], features))

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 2),
            [(2, 2), (2, 2)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    cotangent = normal(2, jax.eval_shape(plain, x, kernel).shape)

    def run(convolution, *arrays):
        x, kernel, cotangent = arrays
        y, pull = jax.vjp(convolution, x, kernel)
        return y, *pull(cotangent)

    single = x, kernel, cotangent
    with jax.enable_x64(True):
        double = [jnp.asarray(a, jnp.float64) for a in single]
        exact = jax.jit(lambda *a: run(plain, *a))(*double)
        ours = jax.jit(lambda *a: run(strided_convolution, *a))
        close = ours(*double), ours(*single)
    for precision, found in zip((1e-12, 1e-5), close, strict=True):
        for a, b in zip(found, exact, strict=True):
            atol = precision * np.abs(b).max()
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)


class Reference(nn.Module):
    """The same network in Linen's own layers, all of them slow or inexact."""

    @nn.compact
    def __call__(self, spectrogram):
        x = spectrogram[..., None]
        for i, features in enumerate(estimator.CHANNELS):
            size = 4 if i else 5
            x = nn.Conv(
                features, (size, size), 2, [(2, 2), (2, 2)], name=f"conv_{i}"
            )(x)
            x = nn.leaky_relu(x, 0.1)
            if i:
                x = self.norm(f"norm_{i}")(x)
        x = nn.leaky_relu(nn.Dense(2048, name="mixer")(x), 0.1).mean((1, 2))
        return self.norm("head_norm")(nn.Dense(141, name="head")(x))

    def norm(self, name):
        return nn.BatchNorm(
            False, momentum=0.9, use_fast_variance=False, name=name
        )


def test_training_mode_against_a_plain_network():
    network = estimator.Estimator(141, dropout=0.0)
    sound = jnp.tanh(normal(0, (4, 128, 60)))
    variables = draw(network.init, sound)
    # The mean square of a normalised output would not depend on anything.
    weights = normal(1, (4, 141))

    def loss(apply):
        def of(params):
            logits, updated = apply(
                {**variables, "params": params},
                sound,
                mutable=["batch_stats"],
            )
            return (weights * logits).mean(), updated

        return jax.jit(jax.value_and_grad(of, has_aux=True))

    (ours, stats), grads = loss(
        lambda *args, **kw: network.apply(*args, train=True, **kw)
    )(variables["params"])
    (theirs, expected_stats), expected = loss(Reference().apply)(
        variables["params"]
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)
    for path, gradient in jax.tree_util.tree_leaves_with_path(grads):
        goal = expected
        for part in path:
            goal = goal[part.key]
        goal = np.asarray(goal)
        # Biases before a batch normalisation have no gradient but rounding.
        atol = 1e-4 * np.abs(goal).max() + 1e-6
        np.testing.assert_allclose(
            np.asarray(gradient), goal, atol=atol, err_msg=str(path)
        )
    means, goals = (
        np.asarray(s["batch_stats"]["norm_3"]["mean"])
        for s in (stats, expected_stats)
    )
    np.testing.assert_allclose(means, goals, rtol=1e-4, atol=1e-6)


def test_dropout_takes_part_in_training_only():
    network = estimator.Estimator(7)
    sound = jnp.tanh(normal(0, (3, 128, 9)))
    variables = draw(network.init, sound)

    # Weights that were constants of the program would be folded into it.
    @jax.jit
    def apply(variables, key):
        return network.apply(
            variables,
            sound,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )[0]

    one, other = (apply(variables, jax.random.key(i)) for i in (2, 3))
    assert not np.allclose(one, other)
    # Evaluation looks at each sound by itself.
    apply = jax.jit(network.apply)
    np.testing.assert_allclose(
        apply(variables, sound)[:1], apply(variables, sound[:1]), atol=1e-5
    )


def test_half_precision_keeps_float32_logits_and_parameters():
    network = estimator.Estimator(7, dtype=jnp.bfloat16)
    sound = jnp.tanh(normal(0, (3, 128, 9)))
    variables = draw(network.init, sound)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    logits = jax.jit(network.apply)(variables, sound)
    exact = jax.jit(estimator.Estimator(7).apply)(variables, sound)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=0.05)


def test_spectrogram_of_five_seconds_and_its_scale():
    time = np.arange(160_000) / 32_000
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time)
    audio = jnp.asarray(np.stack([tone, 0 * tone]), jnp.float32)
    decibels = estimator.spectrogram(audio)
    assert decibels.shape == (2, 128, 313)
    np.testing.assert_allclose(decibels[1], -80, atol=1e-4)
    # 1 kHz is band 128 * m(1000) / m(16000), less one for its corner.
    mel = np.log1p(1000 / 700) / np.log1p(16_000 / 700) * 129 - 1
    loudest = np.asarray(decibels[0, :, 100]).argmax()
    assert abs(loudest - mel) <= 1
    low, high = float(decibels.min()), float(decibels.max())
    scaled = estimator.scale(decibels, low, high)
    assert scaled.min() == pytest.approx(-1, abs=1e-5)
    assert scaled.max() == pytest.approx(1, abs=1e-5)


def test_too_short_a_clip_is_refused():
    with pytest.raises(ValueError, match="too short"):
        estimator.spectrogram(jnp.zeros((1, 300)))


SMALL: dict[str, Any] = {"hidden": 32, "blocks": 1, "token": 16}


@pytest.mark.parametrize("name", ["dexed", "diva", "talnm"])
def test_modules_give_every_logit_and_all_weights_learn(name):
    space = spaces.get(name)
    network = estimator.ModuleEstimator(space, **SMALL)
    heard = normal(0, (16, 24))
    variables = draw(network.init, heard)

    @jax.jit
    @jax.grad
    def gradient(variables):
        logits: Any = network.apply(variables, heard)
        assert logits.shape == (16, space.width)
        assert logits.dtype == jnp.float32
        return jnp.square(logits).sum()

    found = jax.tree_util.tree_leaves_with_path(gradient(variables))
    assert found
    still = [path for path, g in found if not np.asarray(g).any()]
    assert not still


def test_exchanging_tokens_of_operators_exchanges_their_logits():
    space = spaces.get("dexed")
    network = estimator.ModuleEstimator(space, **SMALL)
    heard = normal(0, (3, 24))
    variables = draw(network.init, heard)
    one, other = (space.module_names.index(name) for name in ("op2", "op5"))
    order = np.arange(len(space.module_names))
    order[[one, other]] = other, one
    params = dict(variables["params"])
    for own in ("tokens", "mixtures"):
        params[own] = params[own][order]
    apply = jax.jit(lambda v: space.from_relaxed(relaxed(network, v)))

    def relaxed(network, variables):
        logits = network.apply(variables, heard)
        return logits[:, space.relaxed_from_logit]

    before, after = apply(variables), apply({"params": params})
    columns = np.arange(space.num_used)
    columns[space.module_columns[one]] = space.module_columns[other]
    columns[space.module_columns[other]] = space.module_columns[one]
    assert (columns != np.arange(space.num_used)).sum() > 20
    np.testing.assert_allclose(after, before[:, columns], atol=1e-5)
    assert not np.allclose(after, before, atol=1e-2)


def test_noise_and_dropout_take_part_in_training_only():
    space = spaces.get("talnm")
    heard = normal(0, (3, 24))
    kinds: tuple[dict[str, Any], ...] = ({"noise": 0.5}, {"dropout": 0.5})
    for options in kinds:
        network = estimator.ModuleEstimator(space, **SMALL, **options)
        variables = draw(network.init, heard)

        @jax.jit
        def train(variables, key, network=network):
            rngs = {"dropout": key}
            return network.apply(variables, heard, train=True, rngs=rngs)

        one, other = (train(variables, jax.random.key(i)) for i in (2, 3))
        assert not np.allclose(one, other)
        plain = jax.jit(network.apply)
        np.testing.assert_allclose(
            plain(variables, heard)[:1],
            plain(variables, heard[:1]),
            atol=1e-5,
        )


def test_embeddings_are_standardised_but_for_what_hardly_varies():
    heard = jnp.array([[1.0, 5.0], [3.0, 5.001]])
    scaling = {"mean": heard.mean(0), "spread": heard.std(0)}
    found = estimator.prepare(heard, scaling)
    np.testing.assert_allclose(found[:, 0], [-1, 1])
    np.testing.assert_allclose(found[:, 1], [-0.01, 0.01], rtol=0.01)
