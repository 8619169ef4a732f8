"""Encoders that know modules: what they see, and what they do not mind."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxy import encoders, spaces, symmetries
from proxy.encoders import modules
from tests.variables import draw

SIZES = {
    "modules": {"hidden": 16, "blocks": 1, "token": 8, "hops": 3},
    "modules_tfm": {"hidden": 16, "blocks": 2, "heads": 4, "factor": 2.0},
}


@pytest.mark.parametrize("synth", ["dexed", "talnm"])
def test_features_are_values_and_hats(synth: str) -> None:
    space = spaces.get(synth)
    preset = np.asarray(space.sample(jax.random.key(0), (3,)))
    relaxed = jnp.asarray(space.to_relaxed(preset))
    features = jax.jit(modules.features, static_argnums=(1, 2, 3))
    for alike in space.layouts:
        found = features(relaxed, space, alike, 5)
        for place, module in enumerate(alike):
            values, hats = [], []
            for column in space.module_columns[module]:
                parameter, value = space.used[column], preset[:, column]
                if parameter.kind == "categorical":
                    count = len(parameter.values or ())
                    values.append(value[:, None] == np.arange(count))
                    continue
                values.append(value[:, None])
                if parameter.kind == "numerical":
                    grid = np.array(parameter.values or ())
                    if parameter.interval is not None:
                        low, high = parameter.interval
                        grid = np.linspace(low, high, 5)
                    unit = np.eye(len(grid))
                    bent = [np.interp(value, grid, hat) for hat in unit]
                    hats.append(np.stack(bent, -1))
            expected = np.concatenate([*values, *hats], axis=-1)
            np.testing.assert_allclose(found[:, place], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["modules", "modules_tfm"])
def test_operators_that_exchange_places_are_one_preset(name: str) -> None:
    space = spaces.get("dexed")
    encoder: Any = encoders.build(name, space, 5, **SIZES[name])
    presets = np.array(space.sample(jax.random.key(0), (64,)))
    presets[:, space.index("algorithm")] = np.arange(64) % 32
    presets = jnp.asarray(presets)
    other = symmetries.exchange(jax.random.key(2), presets, space)
    # What feeds back keeps its place only where it does something.
    loud = presets[:, space.index("feedback")] > 0
    assert (other != presets).any(1)[loud].sum() > 10
    variables = draw(encoder.init, space.to_relaxed(presets))
    apply = jax.jit(encoder.apply)
    here, there = (
        np.asarray(apply(variables, space.to_relaxed(x)))[loud]
        for x in (presets, other)
    )
    np.testing.assert_allclose(here, there, atol=1e-4)
    assert np.asarray(here).std(0).min() > 1e-2


@pytest.mark.parametrize("name", ["modules", "modules_tfm"])
def test_the_graph_matters(name: str) -> None:
    """The same operators, wired otherwise, are another sound."""
    space = spaces.get("dexed")
    encoder: Any = encoders.build(name, space, 5, **SIZES[name])
    preset = np.array(space.sample(jax.random.key(0), (1,)))
    presets = np.repeat(preset, 32, axis=0)
    presets[:, space.index("algorithm")] = np.arange(32)
    relaxed = jnp.asarray(space.to_relaxed(presets))
    variables = draw(encoder.init, relaxed)
    apply = jax.jit(encoder.apply)
    # Without what tells the algorithms apart, only the graph does.
    layouts = [space.module_names[alike[0]] for alike in space.layouts]
    own = variables["params"]["tokens"][f"layout_{layouts.index('algorithm')}"]
    own["kernel"] = jnp.zeros_like(own["kernel"])
    found = np.asarray(apply(variables, relaxed))
    apart = np.abs(found[:, None] - found).max(-1)[np.triu_indices(32, 1)]
    assert np.median(apart) > 1e-3
    # Half one algorithm, half another: between, and not either.
    mixed = (relaxed[:1] + relaxed[31:]) / 2
    between = np.asarray(apply(variables, mixed))[0]
    assert np.abs(between - found[[0, 31]]).max(-1).min() > 1e-4


def test_heads_must_divide_the_token() -> None:
    space = spaces.get("talnm")
    encoder = encoders.build("modules_tfm", space, 5, hidden=10, heads=4)
    with pytest.raises(ValueError, match="multiple of heads=4"):
        encoder.init(jax.random.key(0), jnp.zeros((2, space.width)))
