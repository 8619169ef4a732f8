"""Commands killed at random moments, and what comes of them when resumed."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import tqdm

from launch.benchmark import attempts, memory
from launch.runs import checkpoints, metrics

COMMANDS = ("precompute", "train", "match")
# Seconds after which a command hangs.
_HANGS = 900.0


def _command(name: str, folder: pathlib.Path, whole: pathlib.Path) -> list[str]:
    """A small one that writes into a folder, and reads from another.

    Args:
      name: one of `COMMANDS`.
      folder: where its results go.
      whole: where those of the commands before it are.
    """
    data = folder if name == "precompute" else whole
    experiment = [
        "--config=configs/quickstart.py",
        "--config.audio_model=mel128",
        f"--config.data={data / 'data'}",
        "--config.num_train=512",
        "--config.num_test=32",
        "--config.evaluation.subset=32",
        "--config.validation=(2,32)",
        "--config.shard_size=64",
        "--config.render.hold=0.3",
        "--config.render.duration=0.5",
        "--config.batch=64",
        "--config.epochs=4",
        "--config.log_every=1",
        "--config.checkpoint_minutes=0",
    ]
    if name == "precompute":
        return ["launch.precompute", *experiment]
    if name == "train":
        run = f"--config.run={folder / 'train'}"
        return ["launch.train", *experiment, run]
    return [
        "launch.match",
        f"--run={whole / 'train'}",
        f"--out={folder / 'match'}",
        "--evaluations=100",
        "--note=69",
        *map(str, sorted(whole.glob("*.wav"))),
    ]


def _finish(
    command: list[str], seconds: float = _HANGS
) -> tuple[int | None, str]:
    """Runs a command and kills it after so many seconds.

    Returns:
      Its exit code, None when it was killed; the end of what it printed.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=pathlib.Path(__file__).parents[2],
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        # It alone: what it has started is to notice.
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return None, ""
    return process.returncode, said.decode(errors="replace").strip()[-500:]


def _untimed(value: Any) -> Any:
    """A JSON document without what differs between two runs of a command."""
    if isinstance(value, list):
        return [_untimed(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _untimed(part)
        for key, part in value.items()
        if "second" not in key and key != "environment"
    }


def results(
    name: str, folder: pathlib.Path, whole: pathlib.Path
) -> dict[str, Any]:
    """What a command has made, as far as it is the same every time."""
    if name == "train":
        run = folder / "train"
        with checkpoints.manager(run, read_only=True) as saved:
            steps = saved.all_steps()
            arrays = {
                str(step): checkpoints.restore_raw(saved, step)
                for step in steps
            }
        return {"metrics": _untimed(list(metrics.read(run))), **arrays}
    inside = folder / ("data" if name == "precompute" else "match")
    found: dict[str, Any] = {}
    for file in sorted(inside.rglob("*")):
        place = file.relative_to(inside)
        hidden = any(part.startswith(".") for part in place.parts)
        if hidden or not file.is_file() or file.suffix == ".png":
            continue
        if file.suffix == ".json":
            text = file.read_text()
            for path in (whole, folder):
                text = text.replace(str(path), "")
            found[str(place)] = _untimed(json.loads(text))
        else:
            content = file.read_bytes()
            found[str(place)] = np.frombuffer(content, np.uint8)
    return found


def killed(name: str, times: int, seed: int, root: pathlib.Path) -> Counter:
    """Kills a command and resumes it, again and again.

    Args:
      name: one of `COMMANDS`.
      times: how often, each time from nothing.
      seed: of the moments.
      root: an empty folder.

    Returns:
      How often the results were those of a command that was left alone.

    Raises:
      RuntimeError: when the command left alone fails.
    """
    whole, counted = root / "whole", Counter()
    whole.mkdir()
    for number in range(2):
        memory.tone(whole / f"{number}.wav")
    for before in COMMANDS[: COMMANDS.index(name) + 1]:
        started = time.monotonic()
        code, said = _finish(_command(before, whole, whole))
        if code != 0:
            raise RuntimeError(
                f"{before}, left alone, ends with {code}: {said}"
            )
    took = time.monotonic() - started
    wanted = results(name, whole, whole)
    for number in tqdm.trange(times, desc=f"{name} killed", unit="kill"):
        # The first third goes into imports.
        draw = random.Random(f"{seed} {number}")
        moment = draw.uniform(0.3, 1) * took
        command = _command(name, root / str(number), whole)
        _finish(command, moment)
        code, said = _finish(command)
        words = f"ends with {code}: {said}"
        if code == 0:
            try:
                outcome = attempts.same(
                    results(name, root / str(number), whole), wanted
                )
                counted[outcome] += 1
                continue
            except (attempts.WrongError, OSError, ValueError) as error:
                words = str(error)
        counted[attempts.ELSE] += 1
        tqdm.tqdm.write(
            f"{name} killed after {moment:.2f} s, number {number}: {words}"
        )
    return counted
