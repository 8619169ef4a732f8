"""The training loop on a step that is one multiplication."""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.runs import checkpoints, metrics
from launch.train import loop

EPOCH, EPOCHS = 4, 3
TOTAL = EPOCH * EPOCHS


class Killed(BaseException):
    """Ends a process, as far as the loop can tell."""


@jax.jit
def first(state, batch, factor):
    x = factor * state["x"] + batch
    return {"x": x}, {"loss": x.sum(), "grad_norm": batch.sum()}


@jax.jit
def second(state, batch, factor):
    state, found = first(state, batch, factor)
    return state, {**found, "extra": 2 * found["loss"]}


def train(run, at=lambda step: None, bad=(), end_at=None, scores=(), **options):
    """Trains in a folder; calls `at` when a batch is asked for."""
    run.mkdir(exist_ok=True)
    told = []

    def batches(done):
        for step in range(done + 1, TOTAL + 1):
            at(step)
            value = np.nan if step in bad else step
            yield None, jnp.full(2, value, float)

    def validate(step, epoch, state):
        mrr = -abs(epoch - 2.0)  # the second epoch is the best
        found = {"mrr": mrr, **dict(scores).get(epoch, {})}
        writer.write(step, epoch=epoch, **found)
        return {"x": state["x"] + 1}, found, f"MRR {mrr:.1f}"

    def report(epoch, scores):
        told.append((epoch, scores["mrr"]))
        if epoch == end_at:
            raise Killed

    with (
        loop.resume(run, {"x": jnp.ones(2)}, TOTAL) as (saved, state, done),
        metrics.Writer(run, done) as writer,
    ):
        settings = {
            "validate_every": 1,
            "log_every": 3,
            "checkpoint_minutes": 60.0,
            **options,
        }
        state = loop.train(
            run,
            saved,
            state,
            range(done + 1, TOTAL + 1),
            batches(done),
            step_at=lambda step: first if step < 7 else second,
            constants=[0.5],
            log=functools.partial(loop.write_means, writer),
            validate=validate,
            report=report,
            epoch_steps=EPOCH,
            examples=32,
            **settings,
        )
    return np.asarray(state["x"]), told


def records(run):
    """What was written, without what the clock says."""
    lines = (run / metrics.FILE).read_text().splitlines()
    clock = ("presets_per_second", "compile_seconds")
    return [
        {k: v for k, v in json.loads(line).items() if k not in clock}
        for line in lines
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("loop") / "run"
    return run, *train(run)


def test_logs_validates_and_saves_when_it_should(whole):
    run, x, told = whole
    wanted = 1.0
    for step in range(1, TOTAL + 1):
        # A validation may change the state.
        wanted = 0.5 * wanted + step + (step % EPOCH == 0)
    np.testing.assert_allclose(x, wanted)
    written = records(run)
    assert [r["step"] for r in written if "loss" in r] == [3, 4, 6, 8, 9, 12]
    assert [r["epoch"] for r in written if "mrr" in r] == [1, 2, 3]
    # Means are taken over the steps that have a metric.
    (mixed,) = (r for r in written if r["step"] == 8 and "loss" in r)
    assert mixed["grad_norm"] == 2 * (7 + 8) / 2
    assert mixed["extra"] == 2 * mixed["loss"]
    assert "extra" not in written[0]
    with checkpoints.manager(run, read_only=True) as saved:
        assert saved.all_steps() == [8, 12] and saved.best_step() == 8
    assert told == [(1, -1), (2, 0), (3, -1)]


def test_validation_may_be_rarer_but_ends_the_run(tmp_path):
    _, told = train(tmp_path / "run", validate_every=2)
    assert [epoch for epoch, _ in told] == [2, 3]


def test_a_finished_run_takes_no_step(whole, capsys):
    run, x, _ = whole
    before = records(run)
    again, told = train(run, at=lambda step: pytest.fail("a step"))
    np.testing.assert_array_equal(again, x)
    assert not told and records(run) == before
    assert "going on at step 12 of 12" in capsys.readouterr().out


@pytest.mark.parametrize("step", range(1, TOTAL + 1))
def test_killed_anywhere_it_ends_the_same(whole, tmp_path, step):
    def kill(now):
        if now == step:
            raise Killed

    run = tmp_path / "run"
    with pytest.raises(Killed):
        # Without a pause, a checkpoint follows every record.
        train(run, kill, checkpoint_minutes=0.0 if step % 2 else 60.0)
    x, _ = train(run)
    np.testing.assert_array_equal(x, whole[1])
    epochs = [r for r in records(run) if "mrr" in r]
    assert epochs == [r for r in records(whole[0]) if "mrr" in r]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_and_exits_with_143(
    whole, tmp_path, capsys, number
):
    before = signal.getsignal(number)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        train(run, lambda step: step == 5 and os.kill(os.getpid(), number))
    assert stop.value.code == 143
    assert signal.getsignal(number) is before
    assert "stopped at step 5" in capsys.readouterr().out
    with checkpoints.manager(run, read_only=True) as saved:
        assert saved.latest_step() == 5
    x, _ = train(run)
    np.testing.assert_array_equal(x, whole[1])


def test_told_to_stop_at_the_last_step_it_is_done(whole, tmp_path):
    x, told = train(
        tmp_path / "run",
        lambda step: step == TOTAL and os.kill(os.getpid(), signal.SIGTERM),
    )
    np.testing.assert_array_equal(x, whole[1])
    assert told[-1][0] == EPOCHS


def test_what_is_not_finite_is_named_and_not_saved(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=r"loss nan.* at step 6;"):
        train(run, bad=(6, 7))
    with checkpoints.manager(run, read_only=True) as saved:
        assert saved.latest_step() == 4


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_validation_that_is_not_finite_is_named_and_not_saved(
    tmp_path, value
):
    run = tmp_path / "run"
    with pytest.raises(
        FloatingPointError, match=rf"validation at step 8: l1 {value};"
    ):
        train(run, scores={2: {"l1": value}})
    with checkpoints.manager(run, read_only=True) as saved:
        assert saved.latest_step() == 4


def test_cut_metrics(whole, tmp_path):
    file = tmp_path / metrics.FILE
    content = (whole[0] / metrics.FILE).read_bytes()
    lines = content.splitlines(keepends=True)
    file.write_bytes(content[:-10])  # by a kill
    assert len(list(metrics.read(tmp_path))) == len(lines) - 1
    for damaged in (lines[1][:9] + b"\n", b"[1]\n", b"\xff\n", b"{}\n"):
        file.write_bytes(b"".join([lines[0], damaged, *lines[2:]]))
        with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is dam"):
            list(metrics.read(tmp_path))


def test_a_report_that_ends_the_run_finds_it_saved(whole, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Killed):
        train(run, end_at=2)
    with checkpoints.manager(run, read_only=True) as saved:
        assert saved.latest_step() == 8
    np.testing.assert_array_equal(train(run)[0], whole[1])
