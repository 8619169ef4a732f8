"""Equal sound by construction, or equal but for its level, by rendering."""

import dexed
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datasets import engines
from datasets.engines.dexed import DexedRenderer
from datasets.presets import reading
from proxy import priors, spaces, symmetries
from proxy.spaces.dexed import ROUTING, free, headroom, louder
from tests.shared import shared

SPACE = spaces.get("dexed")


def voices(count):
    bank = reading.load(shared("presets/dx7_voices.bin"), SPACE)
    rows = np.random.default_rng(0).choice(len(bank), count, replace=False)
    return bank.presets[rows]


def drawn(count):
    """Presets with many silent operators, equal levels and loops."""
    prior = priors.Uniform(SPACE, at_default=0.4, at_end=0.4)
    presets = np.array(priors.sample(prior, jax.random.key(0), (count,)))
    presets[::3, SPACE.index("algorithm")] = 3
    presets[1::3, SPACE.index("algorithm")] = 5
    presets[::2, SPACE.index("op4_output_level")] = 1
    presets[::2, SPACE.index("op4_eg_level_2")] = 1
    return presets


def test_algorithms_are_the_engine_own():
    for number in range(32):
        modulates = np.asarray(dexed.get_mod_matrix(number)).T
        np.testing.assert_array_equal(ROUTING.edge_table[number], modulates)
        assert set(ROUTING.outputs[number]) == set(dexed.get_carriers(number))
        assert ROUTING.loops[number] == (dexed.get_feedback_edge(number),)


@pytest.mark.parametrize("source", [voices, drawn])
def test_equivalent_presets_sound_the_same(source):
    presets = source(200)
    other = symmetries.equivalent(
        jax.random.key(1), jnp.asarray(presets), SPACE
    )
    other = np.asarray(other)
    np.testing.assert_allclose(SPACE.snap(other), other, atol=1e-6)
    settings = engines.RenderSettings(
        sample_rate=32_000, duration=0.6, hold=0.3
    )
    renderer = DexedRenderer(settings)
    differ = 0
    for row, twin in zip(presets, other, strict=True):
        sound = renderer.render(SPACE.to_plugin(row))
        differ += bool((row != twin).any())
        np.testing.assert_array_equal(
            renderer.render(SPACE.to_plugin(twin)), sound
        )
    assert differ > 150
    assert np.abs(other - presets).max() > 0.5


def test_nothing_heard_is_called_free():
    """Every parameter of a loud voice in which all is at work."""
    preset = np.array(SPACE.defaults, np.float32)
    preset[SPACE.index("algorithm")] = 31
    for name, value in {
        "feedback": 1.0,
        "lfo_pm_depth": 0.5,
        "lfo_am_depth": 0.5,
        "p_mode_sens.": 0.428,
        "pitch_eg_level_1": 0.6,
        **{f"op{n}_output_level": 1.0 for n in range(1, 7)},
        **{f"op{n}_a_mod_sens.": 1.0 for n in range(1, 7)},
        **{f"op{n}_eg_level_2": 0.8 for n in range(1, 7)},
        **{f"op{n}_eg_level_3": 0.6 for n in range(1, 7)},
    }.items():
        preset[SPACE.index(name)] = value
    assert not free(jnp.asarray(preset)).any()
    preset[SPACE.index("op2_output_level")] = 0
    found = np.asarray(free(jnp.asarray(preset)))
    names = {SPACE.names[column] for column in np.flatnonzero(found)}
    assert names == {
        name
        for name in SPACE.names
        if name.startswith("op2") and name != "op2_output_level"
    }


def test_exchanges_of_some_algorithms():
    tables, counts = symmetries.automorphisms(ROUTING)
    # All six heard: any order; the one that feeds back stays.
    np.testing.assert_array_equal(counts[31], [120, 720])
    # Two pairs beside a chain of four: none.
    np.testing.assert_array_equal(counts[0], [1, 1])
    # Three pairs, one of which feeds back.
    np.testing.assert_array_equal(counts[4], [2, 6])
    # Three into one.
    np.testing.assert_array_equal(counts[11], [6, 6])
    for category, both in enumerate(tables):
        for order in both[1]:
            pairs = ROUTING.edge_table[category][np.ix_(order, order)]
            np.testing.assert_array_equal(pairs, ROUTING.edge_table[category])


def test_other_spaces_stay_as_they_are():
    space = spaces.get("talnm")
    presets = space.sample(jax.random.key(0), (4,))
    same = symmetries.equivalent(jax.random.key(1), presets, space)
    np.testing.assert_array_equal(same, presets)


def test_louder_presets_sound_the_same_but_for_their_level():
    presets = np.array(voices(60))
    presets[::20, SPACE.index("algorithm")] = 31  # six carriers, one fed back
    presets[::20, SPACE.index("feedback")] = [1, 0, 1]
    most = np.asarray(headroom(jnp.asarray(presets)))
    np.testing.assert_array_equal(np.isnan(most)[::20], [True, False, True])
    assert np.isnan(most).mean() < 0.2 and (most[~np.isnan(most)] >= 0).all()
    wanted = np.resize([-15.0, -6.0, 200.0], 60)
    wanted = np.where(np.isnan(most), 0, np.minimum(wanted, most))
    moved = louder(jnp.asarray(presets), jnp.asarray(wanted, jnp.float32))
    moved = np.asarray(moved)
    np.testing.assert_allclose(SPACE.snap(moved), moved, atol=1e-6)
    left = np.asarray(headroom(jnp.asarray(moved)))
    np.testing.assert_allclose(left + wanted, most, atol=0.4)
    settings = engines.RenderSettings(
        sample_rate=32_000, duration=0.6, hold=0.3
    )
    renderer = DexedRenderer(settings)
    errors = []
    for preset, other, decibels in zip(presets, moved, wanted, strict=True):
        before, after = (
            renderer.render(SPACE.to_plugin(p)) for p in (preset, other)
        )
        if not 0.02 < np.abs(before).max() < 0.9:
            continue  # the engine clips
        steps = np.rint(decibels / (20 * np.log10(2) / 8))
        expected = before * 2 ** (steps / 8)
        if np.abs(expected).max() < 0.9:
            error, power = (np.sum(x**2) for x in (after - expected, expected))
            errors += [np.sqrt(error / power)] if decibels else []
    # Attacks begin at the same level, however loud they end.
    assert len(errors) > 30
    assert np.median(errors) < 0.1 and np.min(errors) < 1e-3
