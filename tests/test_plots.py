"""Pictures: drawn, readable by others, and with every rank counted."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from launch.runs import metrics, plots


def _opens(path):
    image = plt.imread(path)
    return image.ndim == 3 and image.std() > 0.01


def test_every_rank_is_in_a_bin(tmp_path, monkeypatch):
    heights = []
    original = Axes.bar

    def bar(self, place, share, *args, **kwargs):
        heights.append(share)
        return original(self, place, share, *args, **kwargs)

    monkeypatch.setattr(Axes, "bar", bar)
    ranks = {"all": np.arange(1.0, 101.0), "ties": np.full(10, 50.5)}
    path = plots.rank_histogram(ranks, 100, "title", tmp_path / "ranks.png")
    assert _opens(path)
    # 1, 2, 3-4, 5-8, 9-16, 17-32, 33-64, 65-128.
    expected = np.array([1, 1, 2, 4, 8, 16, 32, 36]) / 100
    np.testing.assert_allclose(heights[0], expected)
    np.testing.assert_allclose(heights[1], np.eye(8)[6])


def test_embedding_map_of_a_constant_prediction(tmp_path):
    audio = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    path = tmp_path / "map.png"
    plots.embedding_map(audio, np.zeros_like(audio), "title", path)
    assert _opens(path)


def test_size_curves_go_through_the_means_of_seeds(tmp_path, monkeypatch):
    drawn = []
    original = Axes.plot

    def plot(self, x, y, *args, **kwargs):
        drawn.append((kwargs["label"], list(x), list(y)))
        return original(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", plot)
    lines = {"a": [(64, 0.4), (16, 0.1), (64, 0.2)], "b": [(16, 0.3)]}
    ticks, save = [], plots._save

    def look(figure, path):
        saved = save(figure, path)
        for axes in figure.axes:
            both = axes.get_xticklabels() + axes.get_yticklabels()
            ticks.extend(label.get_text() for label in both)
        return saved

    monkeypatch.setattr(plots, "_save", look)
    panels = {"first": lines, "second": {"b": [(16, 0.2)]}}
    assert _opens(plots.size_curves(panels, tmp_path / "curve.png"))
    assert "$" not in "".join(ticks)
    assert {"16", "64"} <= set(ticks)
    assert drawn[0] == ("a", [16, 64], pytest.approx([0.1, 0.3]))
    assert drawn[1:] == [("b", [16], [0.3]), ("b", [16], [0.2])]


def test_training_curves_before_the_first_validation(tmp_path):
    record = {"step": 5, "loss": 1.0}
    (tmp_path / metrics.FILE).write_text(json.dumps(record) + "\n")
    assert _opens(plots.training_curves(tmp_path))


def test_metrics_forget_steps_after_a_resume(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        for step in (5, 10, 15):
            writer.write(step, loss=1.0 / step)
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"step": 20, "lo')  # a kill in the middle of a line
    with metrics.Writer(tmp_path, resume_step=10) as writer:
        writer.write(15, loss=0.5)
    found = list(metrics.read(tmp_path))
    assert [r["step"] for r in found] == [5, 10, 15]
    assert found[-1]["loss"] == 0.5
    with metrics.Writer(tmp_path / "none", silent=True) as writer:
        writer.write(1, loss=1.0)
    assert not (tmp_path / "none").exists()
