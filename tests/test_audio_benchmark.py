import pytest

from launch.benchmark import audio as benchmark_audio
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


def test_network_flops_are_the_published_ones():
    """Billions of multiply-adds for 10 s, as published with the models."""
    published = {"mn04": 0.11, "mn10": 0.54, "mn20": 2.06, "mn40": 8.03}
    for name, billions in published.items():
        width = efficientat.WIDTHS[name]
        ours = benchmark_audio.network_flops(width, 128, 1000) / 2e9
        # The published count holds the layers after block 15 as well.
        assert 0.93 * billions - 0.01 < ours < billions + 0.005


def test_windows_cost_more_than_the_scene():
    windowed = benchmark_audio.flops_per_clip(audio.get("mn04_mel"))
    scene = benchmark_audio.flops_per_clip(audio.get("mn04_scene_mel"))
    assert 3 < windowed / scene < 4
