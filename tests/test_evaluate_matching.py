"""Evaluating estimators: baselines, statistics, files and tables."""

import json

import jax
import numpy as np
import pytest
from scipy.io import wavfile

from datasets.presets import reading
from launch.evaluate import comparison, estimator
from launch.runs import opened as runs
from proxy import spaces, splits
from tests import commands, matching
from tests.test_nsynth import write
from tests.test_train import finish, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    matching.save_proxy(folder)
    for name, seed in (("ploss", 0), ("mix", 0), ("mix", 1)):
        config = matching.match_config(folder, name, f"{name}_{seed}")
        config.seed = seed
        config.decoding = "relaxed"
        matching.save_estimator(config)
    config = matching.embedding_config(folder, "ploss", "reads_0")
    matching.save_estimator(config)
    write(folder / "notes", seconds=0.5)
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    return runs.load(folder / "mix_0")


def test_the_nearest_neighbour_of_a_bank_sound_is_itself(opened):
    bank = opened.handcrafted.columns("train")
    goal = estimator.Targets(
        clips=np.zeros((3, 10), np.float32),
        heard=np.zeros((3, 10), np.float32),
        names=["a", "b", "c"],
        notes=[60] * 3,
        hold=1.0,
        embeddings=bank["embedding"][[5, 60, 2]] + 1e-4,
        presets=None,
    )
    found = estimator.baselines(opened, goal)
    np.testing.assert_array_equal(
        found["nearest neighbour"], bank["preset"][[5, 60, 2]]
    )
    assert all(
        any((row == p).all() for p in bank["preset"])
        for row in found["random preset"]
    )
    assert (found["mean preset"] == found["mean preset"][0]).all()


def test_the_mean_preset():
    space = spaces.get("diva")
    presets = np.array(space.sample(jax.random.key(0), (9,)))
    binary, category = space.binary[0], space.categorical[0]
    presets[:, binary] = [1, 1, 1, 1, 1, 0, 0, 0, 0]
    presets[:, category] = [2, 2, 0, 0, 0, 1, 1, 1, 1]
    found = estimator.mean_preset(presets, space)
    assert found[binary] == 1 and found[category] == 1
    mean = presets[:, space.numerical].mean(0)
    away = np.abs(found[space.numerical] - mean)
    # Some of Diva's numerical parameters have three values only.
    assert np.median(away) < 1e-3 and away.max() < 0.26


def test_the_bootstrap_agrees_with_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = comparison.bootstrap(values, 4_000, 0)
    half = 1.96 * values.std() / 20
    assert found["mean"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.02)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.02)


def _content(schedule, decoding, seed, distance):
    methods = {"estimator": distance, "mean preset": np.arange(30) + 9.0}
    return {
        "schedule": schedule,
        "decoding": decoding,
        "seed": seed,
        "sets": {
            "in-domain": {
                "methods": {
                    name: {"distances": {"a_mean": list(value)}}
                    for name, value in methods.items()
                }
            }
        },
    }


def test_runs_are_compared_sound_by_sound_over_seeds():
    base = np.linspace(1, 2, 30)
    results = {
        "a": _content("ploss", "hard", 0, base),
        "b": _content("mix", "hard", 0, base - 0.3),
        "c": _content("mix", "hard", 1, base - 0.1 + 0.01 * np.arange(30)),
        "d": _content("mix", "relaxed", 0, base),
    }
    compared = comparison.compare(results)["in-domain"]
    groups, pairs = compared["groups"], compared["pairs"]
    assert list(groups) == ["ploss", "mix, hard", "mix, relaxed", "mean preset"]
    assert groups["mix, hard"]["runs"] == ["b", "c"]
    np.testing.assert_allclose(
        groups["mix, hard"]["sounds"], base - 0.2 + 0.005 * np.arange(30)
    )
    pair = pairs["ploss - mix, hard"]
    assert pair["n"] == 30
    assert pair["low"] < pair["mean"] < pair["high"]
    assert pair["mean"] == pytest.approx(0.2 - 0.005 * 14.5)
    assert pair["p"] < 1e-4
    assert pairs["ploss - mix, relaxed"]["p"] == 1
    text = comparison.comparison_table({"in-domain": compared})
    row = next(r for r in text.splitlines() if "| mix, hard " in r)
    spread = np.std(groups["mix, hard"]["means"], ddof=1)
    assert f"{spread:.3f}" in row and "| 2 " in row


def test_runs_that_differ_in_their_data_are_no_seeds_of_each_other():
    base = np.linspace(1, 2, 30)
    results = {
        name: {**_content("ploss", "hard", 0, base), "num_train": number}
        for name, number in (("a", 10), ("b", 20), ("c", 20))
    }
    groups = comparison.compare(results)["in-domain"]["groups"]
    assert list(groups)[:2] == ["ploss, num_train 10", "ploss, num_train 20"]
    assert groups["ploss, num_train 20"]["runs"] == ["b", "c"]


def test_near_copies_of_training_presets_are_no_targets(opened, monkeypatch):
    options = estimator.Options(distances=())
    whole = estimator.targets(opened, options)[comparison.IN_DOMAIN]
    assert whole.near_copies == 0 and len(whole.names) == 10
    near = np.arange(10) % 5 == 0
    monkeypatch.setattr(splits, "near_copies", lambda *_: near)
    some = estimator.targets(opened, options)[comparison.IN_DOMAIN]
    assert some.near_copies == 2 and whole.presets is not None
    np.testing.assert_array_equal(some.presets, whole.presets[~near])
    assert some.names == [
        n for n, x in zip(whole.names, near, strict=True) if not x
    ]
    monkeypatch.setattr(splits, "near_copies", lambda *_: np.ones(10, bool))
    with pytest.raises(ValueError, match="every test preset is a near copy"):
        estimator.targets(opened, options)


def test_the_command_writes_sounds_presets_and_tables(folder):
    floor = matching.note_noise(folder / "data")
    names = ("ploss_0", "mix_0", "mix_1", "reads_0")
    runs = [str(folder / name) for name in names]
    output = finish(
        start(
            "evaluate",
            f"--runs={','.join(runs)}",
            f"--nsynth={folder / 'notes'}",
            "--pitches=40-50",
            "--limit=4",
            "--export=2",
            f"--out={folder / 'compared'}",
        )
    )
    for words in ("in-domain, 4", "out-of-domain, 2", "nearest neighbour"):
        assert words in output
    assert "hand-crafted: no bank" in output and "mix, relaxed" in output
    assert output.count(floor) == len(runs)
    inside = folder / "mix_0" / "matching"
    content = json.loads((inside / "evaluation.json").read_text())
    assert content["stand_in"] and content["step"] == 7
    assert content["sets"]["out-of-domain"]["notes"] == [45, 40]
    for entry in content["sets"].values():
        assert len(entry["audio"]) == 2
        for name, method in entry["methods"].items():
            count = len(entry["names"])
            for values in method["distances"].values():
                assert len(values) == count and np.isfinite(values).all()
            summary = method["summary"]["a_mean"]
            assert summary["low"] <= summary["mean"] <= summary["high"]
            bank = reading.parse_json(
                (inside / method["presets"]).read_bytes(), spaces.get("dexed")
            )
            assert bank[1] == entry["names"], name
            for file in method["audio"].values():
                rate, sound = wavfile.read(inside / file)
                assert rate == 44_100 and len(sound) == 44_100
    inner = content["sets"]["in-domain"]["methods"]
    near = inner["nearest neighbour"]["distances"]["a_mean"]
    assert not np.allclose(near, inner["random preset"]["distances"]["a_mean"])
    assert 0 <= inner["estimator"]["parameters"]["categorical_accuracy"] <= 1
    for name in ("in_domain", "out_of_domain"):
        assert (inside / f"distances_{name}.png").stat().st_size > 5_000
        file = folder / "compared" / f"comparison_{name}.png"
        assert file.stat().st_size > 5_000
    compared = json.loads((folder / "compared/comparison.json").read_text())
    groups = compared["in-domain"]["groups"]
    assert len(groups["mix, relaxed, hears spectrogram"]["means"]) == 2
    assert groups["ploss, hears embedding"]["runs"] == runs[-1:]


def test_no_run_is_told():
    with pytest.raises(ValueError, match="--run is missing"):
        commands.run("launch.evaluate")
