"""The training loop, the same for proxies, estimators and populations.

What is trained gives a step, batches, a validation and what to write down;
the loop resumes, steps, saves, and ends well when it is told to stop.
"""

import contextlib
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tqdm

from launch.runs import checkpoints, devices, metrics


def say(message: str) -> None:
    """Prints a line above the progress bar, in one of several processes."""
    if jax.process_index() == 0:
        tqdm.tqdm.write(message)


@contextlib.contextmanager
def resume(
    run: pathlib.Path, state: Any, total: int
) -> Iterator[tuple[ocp.CheckpointManager, Any, int]]:
    """Opens the checkpoints of a run, for this process alone.

    Reads the newest one that is whole.

    Args:
      run: the run directory.
      state: where a run without a checkpoint begins.
      total: steps in the run.

    Yields:
      The checkpoints, the state to go on from, and the steps it has taken.

    Raises:
      RuntimeError: when another process is training in that directory.
      ValueError: when no checkpoint is whole, or they do not fit.
    """
    with checkpoints.alone(run), checkpoints.manager(run) as saved:
        done = saved.latest_step() or 0
        if done:
            state = checkpoints.restore(saved, state)
            say(f"{run}: going on at step {done:,} of {total:,}")
        yield saved, state, done


@contextlib.contextmanager
def catch_termination() -> Iterator[Callable[[], bool]]:
    """Lets a step finish after SIGTERM or Ctrl-C; yields "was there one"."""
    caught: list[int] = []
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(s, lambda n, _: caught.append(n)) for s in signals]
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def write_means(
    writer: metrics.Writer, step: int, latest: Sequence[Any], times: Any
) -> float:
    """Writes the means of the latest steps' metrics, checked to be finite.

    Args:
      writer: writer of the run's metrics.
      step: number of the last of these steps.
      latest: metrics of each step. All have loss and grad_norm.
      times: speed and the like, written as they are.

    Returns:
      The mean loss.

    Raises:
      FloatingPointError: naming the first step that was not finite.
    """
    for number, found in enumerate(latest, step - len(latest) + 1):
        loss, norm = found["loss"], found["grad_norm"]
        if not np.isfinite([loss, norm]).all():
            raise FloatingPointError(
                f"loss {loss}, gradient norm {norm} at step {number}; the last "
                "checkpoint is from before it. Lower config.optimizer."
                "learning_rate or set config.optimizer.clip_norm"
            )
    means = {
        name: np.mean([m[name] for m in latest if name in m]).item()
        for name in latest[-1]
    }
    writer.write(step, **means, **times)
    return means["loss"]


def check_scores(step: int, scores: Mapping[str, float]) -> None:
    """Checks that what a validation found is finite.

    Raises:
      FloatingPointError: naming the step and what is not.
    """
    wrong = {k: v for k, v in scores.items() if not np.isfinite(v)}
    if wrong:
        found = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise FloatingPointError(
            f"validation at step {step}: {found}; the last checkpoint is from "
            "before it. Lower config.optimizer.learning_rate or set "
            "config.optimizer.clip_norm"
        )


def train(
    run: pathlib.Path,
    saved: ocp.CheckpointManager,
    state: Any,
    steps: range,
    batches: Iterator[tuple[Any, Any]],
    *,
    step_at: Callable[[int], Any],
    constants: Sequence[Any] = (),
    log: Callable[[int, list[Any], dict[str, float]], float],
    validate: Callable[[int, int, Any], tuple[Any, Any, str]],
    report: Callable[[int, Any], None] = lambda *_: None,
    epoch_steps: int,
    validate_every: int = 1,
    log_every: int,
    checkpoint_minutes: float,
    examples: int,
    unit: str = "presets",
) -> Any:
    """Trains to the end of a run and returns the last state.

    Args:
      run: the run directory.
      saved: checkpoints of the run, see `resume`.
      state: all that a checkpoint holds, before the first of the steps.
      steps: numbers of the steps to take, counted from 1.
      batches: pairs of a position and a batch, one for each step.
      step_at: gives the jitted function of a step. It maps state, batch and
        constants to the next state and a dictionary of metrics.
      constants: more arguments of these functions.
      log: writes down the latest steps, see `write_means`.
      validate: scores a state, given step, epoch and state. Returns the state
        to go on with, scores to save beside it, and a few words on them.
      report: told epoch and scores once they are saved; may raise to end it.
      epoch_steps: steps in an epoch.
      validate_every: epochs between validations; one follows the last step.
      log_every: steps from one record of the metrics to the next.
      checkpoint_minutes: minutes until a state is saved without validation.
      examples: number of presets or sounds that a step sees.
      unit: what those are called, "presets" or "sounds".

    Raises:
      FloatingPointError: when what a validation finds is not finite.
      SystemExit: after SIGTERM or Ctrl-C, with a checkpoint saved.
    """
    compiled, total = {}, steps.stop - 1
    with (
        catch_termination() as stopped,
        tqdm.tqdm(
            total=total,
            initial=steps.start - 1,
            unit="step",
            disable=jax.process_index() != 0,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        ) as bar,
    ):
        latest, times = [], {}
        since = last_save = time.monotonic()
        for step in steps:
            _, batch = next(batches)
            function = step_at(step)
            if function not in compiled:
                begun = time.monotonic()
                # Ahead of time: a compiled step cannot recompile unnoticed.
                lowered = function.lower(state, batch, *constants)
                compiled[function] = lowered.compile()
                times["compile_seconds"] = time.monotonic() - begun
                since += times["compile_seconds"]
            state, found = compiled[function](state, batch, *constants)
            latest.append(found)
            bar.update()
            epoch, last = step // epoch_steps, step == total
            validated = last or step % (validate_every * epoch_steps) == 0
            due = validated or step % log_every == 0
            # Several processes have to ask each other: not at every step.
            if not due and (jax.process_count() > 1 or not stopped()):
                continue
            stop = devices.any_process(stopped())
            latest = jax.device_get(latest)
            rate = len(latest) * examples / (time.monotonic() - since)
            loss = log(step, latest, {**times, f"{unit}_per_second": rate})
            bar.set_postfix(loss=f"{loss:.4f}")
            latest, times, scores = [], {}, None
            if validated:
                state, scores, words = validate(step, epoch, state)
                check_scores(step, scores or {})
                say(
                    f"epoch {epoch:3d}  loss {loss:.4f}  validation {words}"
                    f"  {rate:,.0f} {unit}/s"
                )
            late = time.monotonic() > last_save + 60 * checkpoint_minutes
            if devices.any_process(late) or validated or stop:
                checkpoints.save(saved, step, state, scores)
                last_save = time.monotonic()
            if validated:
                report(epoch, scores)
            if stop and not last:
                saved.wait_until_finished()
                say(
                    f"{run}: stopped at step {step:,}; the same command goes on"
                )
                raise SystemExit(143)
            since = time.monotonic()
    say(f"{run}: {total:,} steps done")
    return state
