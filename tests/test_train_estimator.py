"""Training estimators: what a run leaves, kills and resumes, the plateau."""

import json
import pathlib
import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datasets import shards
from launch.runs import data, making, metrics
from launch.runs import opened as matching_run
from launch.train import estimator as train_estimator
from launch.train import loop
from matching import distances
from proxy import objective
from tests import matching
from tests.test_train import finish, parameters, start

# 3 steps an epoch, 12 in all; the weights change from step 4 to 8.
STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimator")
    matching.save_proxy(folder)
    return folder


def train(folder, name, **fields):
    """Starts a training command for the config of `matching.match_config`."""
    config = matching.match_config(folder, "mix", name)
    asked = {
        "audio_model": config.audio_model,
        "data": config.data,
        "run": config.run,
        "proxy": config.proxy,
        "shard_size": config.shard_size,
        "num_train": config.num_train,
        "batch": config.batch,
        "epochs": config.epochs,
        "validate_every": config.validate_every,
        "log_every": config.log_every,
        "decoding": "relaxed",
        "optimizer.warmup_steps": config.optimizer.warmup_steps,
        **{f"render.{k}": v for k, v in matching.RENDER.items()},
        **{f"stand_in.{k}": v for k, v in config.stand_in.items()},
        **fields,
    }
    flags = [f"--config.{key}={value}" for key, value in asked.items()]
    return start(
        "train",
        "--config=configs/dexed.py:match_small",
        *flags,
        # The same step is compiled by every run of this file.
        JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )


@pytest.fixture(scope="module")
def finished(folder):
    """An uninterrupted run, and what it printed."""
    floor = matching.note_noise(folder / "data")
    output = finish(train(folder, "run"))
    assert floor in output
    return folder / "run", output


def test_a_run_leaves_metrics_checkpoints_and_pictures(finished, folder):
    run, output = finished
    assert "synthetic presets stand in" in output
    assert "epoch   4" in output and "12 steps done" in output
    records = list(metrics.read(run))
    steps = {r["step"]: r for r in records if "loss" in r}
    assert sorted(steps) == list(range(1, STEPS + 1))
    weights = [
        (steps[s]["parameter_weight"], steps[s]["perceptual_weight"])
        for s in (1, 4, STEPS)
    ]
    # After 3.996 of 12 steps, rounded down, the change has just begun.
    np.testing.assert_allclose(weights[0], (1, 0))
    np.testing.assert_allclose(weights[1], (1, 0))
    np.testing.assert_allclose(weights[2], (0.5, 5))
    # The proxy is not asked while its loss has no weight.
    assert "perceptual" not in steps[4] and steps[5]["perceptual"] > 0
    assert [r["epoch"] for r in records if "epoch" in r] == [2, 4]
    validated = [r for r in records if "a_mean" in r]
    assert all(0 < r["a_mean"] < 20 and r["failed"] == 0 for r in validated)
    assert all(0 <= r["categorical_accuracy"] <= 1 for r in validated)
    assert (run / "training.png").stat().st_size > 10_000
    assert list((run / "tensorboard").glob("events*"))


def test_the_run_opens_with_the_extremes_of_its_training_set(finished):
    run, _ = finished
    opened = matching_run.load(run)
    source = opened.handcrafted
    columns = source.columns("train", ("preset", "audio", "audio_scale"))
    rows = data.matching_rows(source, "train", 48, 0)
    assert len(rows) == 48 and len(columns["preset"]) == 64
    clips = shards.dequantise(
        columns["audio"][rows], columns["audio_scale"][rows]
    )
    assert clips.shape == (48, 44_100)
    decibels = distances.kaldi_decibels(jnp.asarray(clips), 44_100)
    extremes = {"minimum": decibels.min(), "maximum": decibels.max()}
    assert opened.scaling.keys() == extremes.keys()
    for name, value in extremes.items():
        np.testing.assert_allclose(opened.scaling[name], value, rtol=1e-4)

    logits = matching_run.estimate(opened, clips[:3])
    assert logits.shape == (3, opened.space.width)
    alone = matching_run.estimate(opened, clips[1:2])
    np.testing.assert_allclose(alone[0], logits[1], atol=1e-4)
    many = matching_run.estimate(opened, np.tile(clips[:3], (30, 1)))
    np.testing.assert_allclose(many[-3:], logits, atol=1e-4)
    presets = matching_run.decode(logits, opened.space)
    assert presets.shape == (3, opened.space.num_used)
    np.testing.assert_array_equal(presets, opened.space.snap(presets))
    assert opened.names("test")[9] == "synthetic test 9"


def test_killed_runs_end_with_the_same_parameters(finished, folder):
    run, _ = finished
    killed = folder / "killed"
    file = killed / metrics.FILE

    def interrupt(number, step):
        """Sends a signal once a new run has passed a step."""
        started = time.time()
        process = train(folder, "killed")
        while process.poll() is None and not (
            file.exists()
            and file.stat().st_mtime > started
            and any(r["step"] >= step for r in metrics.read(killed))
        ):
            time.sleep(0.01)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    code, output = interrupt(signal.SIGKILL, 3)
    assert code in (0, -signal.SIGKILL), output
    code, output = interrupt(signal.SIGTERM, 7)
    assert code in (0, 143, -signal.SIGTERM), output
    output = finish(train(folder, "killed"))
    assert "going on at step" in output
    (step, ours), (other_step, theirs) = parameters(killed), parameters(run)
    assert step == other_step == STEPS
    assert ours.keys() == theirs.keys() and len(ours) > 60
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=str(path))
    epochs = [r["epoch"] for r in metrics.read(killed) if "epoch" in r]
    assert epochs == [2, 4]


def test_spectrograms_made_in_every_step_are_the_kept_ones(folder):
    config = matching.match_config(folder, "mix", "other")
    source = making.matching_source(config)
    rows = data.matching_rows(source, "train", 48, 0)
    columns = source.columns("train", ("preset", "audio", "audio_scale"))
    low, high, kept = train_estimator.training_spectrograms(
        columns, rows, 44_100, keep=True
    )
    assert kept is not None and kept.shape == (48, 128, 87)
    assert (low, high) == (kept.min(), kept.max())
    batches = {
        "kept": {"spectrogram": kept[:4]},
        "made": {
            "audio": columns["audio"][rows[:4]],
            "audio_scale": columns["audio_scale"][rows[:4]],
        },
    }
    heard = []

    def listen(state, batch, key, variables):
        heard.append(batch["heard"])
        return state, {}

    step = train_estimator.build_step(listen, 44_100)
    tree = {"state": None, "minimum": low, "maximum": high}
    for batch in batches.values():
        assert (
            step(tree, jax.tree.map(jnp.asarray, batch), None, None)[0] == tree
        )
    # Quiet bands, near the floor, feel the last bits of the transform.
    np.testing.assert_allclose(heard[0], heard[1], atol=1e-3)
    assert -1.001 < heard[0].min() < heard[0].max() < 1.001


def test_the_rate_falls_after_the_patience_is_lost():
    config = matching.match_config(pathlib.Path(), "mix", "x")
    rule = train_estimator.plateau(**config.plateau)
    state, factors = rule.init(jnp.zeros(())), []
    for value in [2.0, 1.0, *[1.0] * 5, 0.99995, 0.5, *[0.6] * 6]:
        _, state = rule.update(jnp.zeros(()), state, value=value)
        factors.append(float(state.scale))
    # Five are forgiven; a better one by less than 1e-4 is none.
    assert factors == [1.0] * 7 + [0.5] * 7 + [0.25]


def test_warm_up_and_factor_scale_the_step():
    config = matching.match_config(pathlib.Path(), "mix", "x")
    config.optimizer.weight_decay = 0.0
    update = train_estimator.gradient_transformation(**config.optimizer)
    params = {"w": jnp.zeros(1)}
    state: Any = objective.TrainState(0, params, {}, update.init(params), None)
    moved = []
    for step in range(5):
        if step == 4:
            state = train_estimator._set_factor(state, 0.25)
        ones = {"w": jnp.ones(1)}
        change: Any
        change, moments = update.update(ones, state.opt_state, params)
        state = state.replace(opt_state=moments)
        moved.append(-float(change["w"][0]))
    shares = np.array([0.1, 0.4, 0.7, 1.0, 0.25])
    rate = config.optimizer.learning_rate
    np.testing.assert_allclose(moved, rate * shares, rtol=1e-4)


def test_mistakes_are_told_before_rendering(folder, tmp_path):
    def attempt(match, error: Any = ValueError, **fields):
        config = matching.match_config(folder, "mix", "mistake")
        config.data = str(tmp_path / "data")
        config.update(fields)
        with pytest.raises(error, match=match):
            train_estimator.train(config)
        assert not (tmp_path / "data").exists()

    attempt("config.proxy=.*no run at", FileNotFoundError, proxy="nowhere")
    attempt("audio_model mel128, this experiment", audio_model="mfcc40")
    attempt("'mixx', did you mean 'mix'", schedule="mixx")


def test_too_large_a_batch_is_refused(folder):
    config = matching.match_config(folder, "mix", "batch")
    config.batch = 64
    with pytest.raises(ValueError, match="there are 48 training presets"):
        train_estimator.train(config)


@pytest.fixture(scope="module")
def reader(folder):
    """A run that reads embeddings, through a proxy, killed on the way."""
    config = matching.embedding_config(folder, "mix", "reader")
    config.checkpoint_minutes = 0.0
    write = loop.write_means

    def stop(writer, step, *rest):
        if step == 7:
            raise FloatingPointError("stop here")
        return write(writer, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_means", stop)
        with pytest.raises(FloatingPointError, match="stop here"):
            train_estimator.train(config)
    return train_estimator.train(config)


def test_one_that_reads_embeddings_ends_with_the_same_parameters(
    reader, folder, capsys
):
    config = matching.embedding_config(folder, "mix", "whole")
    whole = train_estimator.train(config)
    assert "going on" not in capsys.readouterr().out
    (step, ours), (other_step, theirs) = parameters(reader), parameters(whole)
    assert step == other_step == STEPS
    assert ours.keys() == theirs.keys() and len(ours) > 60
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=str(path))


def test_one_that_reads_embeddings_opens_and_hears_sounds(reader, folder):
    opened = matching_run.load(reader)
    data_of = making.ensure(making.as_proxy(opened.config))
    assert data_of.synthetic is not None
    used = data.training_columns(opened.config, data_of)["embedding"]
    assert len(used) == 48
    np.testing.assert_allclose(opened.scaling["mean"], used.mean(0), rtol=1e-3)
    np.testing.assert_allclose(opened.scaling["spread"], used.std(0), rtol=1e-3)

    test = opened.handcrafted.columns(
        "test", ("embedding", "audio", "audio_scale")
    )
    clips = shards.dequantise(test["audio"], test["audio_scale"])
    # Its own sound and what is kept of it are heard alike.
    logits = matching_run.estimate(opened, clips[:3])
    kept = matching_run.logits(
        opened.estimator,
        opened.estimator_variables,
        test["embedding"][:3],
        opened.scaling,
        44_100,
    )
    np.testing.assert_allclose(logits, kept, atol=0.05)
    setup = matching_run.setup(reader)
    assert setup.estimate is not None
    preset = setup.estimate(clips[0])
    expected = matching_run.decode(logits[:1], opened.space)[0]
    np.testing.assert_allclose(preset, expected, atol=1e-3)


def test_it_learns_from_synthetic_presets_and_all_voices_of_a_bank(folder):
    config = matching.embedding_config(folder, "ploss", "both")
    made = making.ensure(making.as_proxy(config))
    assert made.synthetic is not None
    both = data.Dataset(made.synthetic, made.synthetic)
    voices = made.synthetic.columns("train")["preset"]
    config.source, config.train_rows = "both", 10
    columns = data.training_columns(config, both)
    np.testing.assert_array_equal(columns["preset"][:10], voices[:10])
    np.testing.assert_array_equal(columns["preset"][10:74], voices)
    assert len(columns["preset"]) == 74
    config.source = "handcrafted"
    assert len(data.training_columns(config, both)["preset"]) == 64
    config.source = "both"
    with pytest.raises(ValueError, match="there is no bank"):
        data.training_columns(config, data.Dataset(made.synthetic, None))
    config.train_rows = 65
    with pytest.raises(ValueError, match="train_rows=65"):
        making.ensure(making.as_proxy(config))


def test_a_config_of_before_estimators_heard_embeddings_opens(folder):
    config = matching.match_config(folder, "ploss", "old")
    run = pathlib.Path(matching.save_estimator(config))
    path = run / "config.json"
    fields = json.loads(path.read_text())
    del fields["hears"]
    path.write_text(json.dumps(fields))
    opened = matching_run.load(run)
    assert opened.scaling == {"minimum": -80, "maximum": 40}
    assert "hears" not in opened.config


def test_a_rate_with_a_minimum_falls_along_a_cosine():
    config = matching.embedding_config(pathlib.Path(), "mix", "x")
    o = {**config.optimizer, "weight_decay": 0.0, "warmup_steps": 2}
    update = train_estimator.gradient_transformation(**o, steps=6)
    params = {"w": jnp.zeros(1)}
    state, moved = update.init(params), []
    for _ in range(8):
        change: Any
        change, state = update.update({"w": jnp.ones(1)}, state, params)
        moved.append(-float(change["w"][0]))
    falling = 0.5 * (1 + np.cos(np.pi * np.array([0, 1, 2, 3, 4, 4]) / 4))
    rates = 1e-5 + (1e-3 - 1e-5) * falling
    np.testing.assert_allclose(moved, [1e-4, 5.5e-4, *rates], rtol=1e-4)


def test_a_proxy_is_no_matching_run(folder):
    with pytest.raises(ValueError, match="is the run of a proxy"):
        matching_run.load(folder / "proxy")


def test_its_data_is_built_in_parts(tmp_path) -> None:
    config = matching.match_config(tmp_path, "ploss", "run")
    config.shard_size = 8
    source = making.matching_source(config, num_tasks=2, task=0)
    left = len(shards.missing(source.directory, source.spec))
    assert left > 0
    source = making.matching_source(config, num_tasks=2, task=1)
    assert not shards.missing(source.directory, source.spec)
    assert making.matching_source(config) == source


def test_precompute_of_it_refuses_what_is_for_a_proxy() -> None:
    config = "--config=configs/dexed.py:match_small"
    output = finish(start("precompute", config, "--shards=0"), 1)
    assert "error: --shards, --mirror and --runner are for a proxy" in output
