"""The benchmark: its tables, its file, and what its limits are made of."""

import itertools
import json

import numpy as np
import pytest

from datasets.engines import dexed_batch
from launch.benchmark import gradient as benchmark_gradient
from launch.benchmark import loader as benchmark_loader
from launch.benchmark import memory as benchmark_memory
from launch.benchmark import render as benchmark_render
from tests import commands, shared
from tests.matching import RENDER


def test_stages_run_in_processes_of_their_own(capsys, tmp_path):
    file = tmp_path / "rates.json"
    options = ("--seconds=0.01", "--models=mel128", f"--json={file}")
    commands.run("launch.benchmark", "audio", *options)
    found = json.loads(file.read_text())["audio"]
    assert found["peak memory (GB)"] > 0.1
    assert found["devices"].startswith("devices: 1 x")
    (row,) = found["rows"]
    assert row["model"] == "mel128" and row["clips/s"] > 0
    text = capsys.readouterr().out
    assert "mel128" in text and "peak memory" in text


def test_unknown_stages_are_named():
    with pytest.raises(ValueError, match="unknown stage 'cook'"):
        commands.run("launch.benchmark", "render", "cook")


def test_renders_and_shards_beside_the_bare_engine(monkeypatch):
    monkeypatch.setattr(benchmark_render, "_PRESETS", 8)
    monkeypatch.setattr(benchmark_render, "_TURNS", 1)
    monkeypatch.setattr(benchmark_render, "_BATCHES", 1)
    monkeypatch.setattr(dexed_batch, "BATCH", 8)
    rows = {row["what"]: row for row in benchmark_render.run(0.05)}
    bare = rows["bare dexed-py"]
    assert bare["of limit"] == 100
    ways = [
        f"{way} ({engine}), transport640, written"
        for way in ("rendered", "drawn, rendered")
        for engine in ("dexed-py", "JAX")
    ]
    assert list(rows)[-4:] == ways
    for row in rows.values():
        assert row["per second"] > 0
        assert row["of limit"] == pytest.approx(
            100 * row["per core"] / bare["per core"]
        )


def test_loader_beside_the_training_that_it_feeds(monkeypatch):
    monkeypatch.setattr(benchmark_loader, "_ROWS", 4096)
    rows = {row["what"]: row for row in benchmark_loader.run(0.01)}
    training = rows["mlp_oh on one batch"]
    assert training["of mlp_oh"] == 1
    for row in rows.values():
        assert row["of mlp_oh"] == pytest.approx(
            row["per second"] / training["per second"]
        )
    assert rows["copied in order (limit)"]["of limit"] == 100
    assert rows["mlp_oh fed by it"]["per second"] > 0


def test_memory_of_commands_on_their_own(monkeypatch):
    whole = benchmark_memory.commands

    def three(*arguments):
        for name, words in itertools.islice(whole(*arguments), 3):
            sounds = RENDER.items() if name != "evaluate" else ()
            short = [f"--config.render.{k}={v}" for k, v in sounds]
            yield name, [*words, *short]

    monkeypatch.setattr(benchmark_memory, "commands", three)
    rows = benchmark_memory.run(presets=(512, 1024))
    assert [row["command"] for row in rows] == [
        "precompute",
        "train",
        "evaluate",
    ]
    for row in rows:
        first, last = (row[f"MB at {n} presets"] for n in ("512", "1,024"))
        # A process that has loaded JAX, and not the two cores' whole machine.
        assert 100 < first < 4000 and 100 < last < 4000
        assert row["kB per preset"] == pytest.approx((last - first) / 0.512)


def test_memory_of_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="sizes 2048, 1024"):
        benchmark_memory.run(presets=(2048, 1024))


def test_memory_of_a_command_is_not_what_its_parent_holds(tmp_path):
    held = np.ones(10**8)
    assert benchmark_memory.peak(["this"], tmp_path) < held.nbytes / 2


def test_memory_of_a_command_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match=r"launch\.evaluate.*ended with 1"):
        benchmark_memory.peak(
            ["launch.evaluate", f"--run={tmp_path / 'none'}"], tmp_path
        )


def test_gradients_beside_what_the_engine_does(monkeypatch):
    monkeypatch.setattr(benchmark_gradient, "_BATCH", 16)
    levels = {"output levels": (("output_level",), 3)}
    monkeypatch.setattr(benchmark_gradient, "_GROUPS", levels)
    bank = str(shared.shared("presets/Dexed_01.syx"))
    (row,) = benchmark_gradient.run(bank, batch=3)
    assert row["parameters"] == "output levels" and row["voices"] == 3
    for way in ("twin", "proxy"):
        assert row[f"{way}: mean"] > 0.3
        assert row[f"{way}: above 0"] > 0.6
    assert row["chance: mean"] < row["twin: mean"]


def test_gradients_of_no_voices():
    with pytest.raises(ValueError, match="needs --voices"):
        commands.run("launch.benchmark", "gradient")
