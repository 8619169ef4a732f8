import functools

import jax
import jax.numpy as jnp
import pytest

from launch.benchmark import audio as benchmark_audio
from launch.benchmark import measure
from proxy import audio
from proxy.audio import efficientat


def test_rows_are_consistent():
    row, other = benchmark_audio.run(["mel128", "mstft"], 0.01, 2)
    assert row["model"] == "mel128" and other["model"] == "mstft"
    assert row["clips/s"] == pytest.approx(2e3 / row["ms/batch"])
    rate = row["GFLOP/clip"] * row["clips/s"]
    assert row["GFLOP/s"] == pytest.approx(rate)
    assert 0 < row["share of peak"] < 1


def test_unknown_model_is_named():
    with pytest.raises(ValueError, match="mel129"):
        benchmark_audio.run(["mel129"], 0.01, 1)


def shapes(width):
    init = functools.partial(efficientat.init, width=width)
    return jax.eval_shape(init, jax.random.key(0))


def test_network_flops_are_the_published_ones():
    """Billions of multiply-adds for 10 s, as published with the models."""
    published = {"mn04": 0.11, "mn10": 0.54, "mn20": 2.06, "mn40": 8.03}
    mel = jax.ShapeDtypeStruct((1, 128, 1000), jnp.float32)
    means = functools.partial(efficientat.map_means, form="convolution")
    for name, billions in published.items():
        variables = shapes(efficientat.WIDTHS[name])
        ours = measure.flops(means, variables, mel) / 2e9
        assert 0.93 * billions - 0.01 < ours < billions + 0.005


def test_windows_cost_more_than_the_scene():
    windowed, scene = (
        benchmark_audio.flops_per_clip(
            audio.get(name), shapes(efficientat.WIDTHS["mn04"]), 160_000
        )
        for name in ("mn04_mel", "mn04_scene_mel")
    )
    assert 3 < windowed / scene < 4
