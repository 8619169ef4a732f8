"""How much memory the commands take on the quickstart, and how it grows."""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

_RATE = 44_100


# Runs a command; prints the most memory that it held, and its exit code. A new
# process is charged with what its parent holds at that moment: this one is
# small, whoever measures.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, code)
"""


def peak(command: Sequence[str], folder: pathlib.Path) -> float:
    """The most memory that a command holds at a time, in bytes.

    Args:
      command: a module of the project and its arguments.
      folder: folder for temporary files.

    Raises:
      RuntimeError: when it fails; with the end of what it printed.
    """
    python = sys.executable
    process = subprocess.run(
        [python, "-c", _MEASURE, python, "-m", *command],
        capture_output=True,
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(folder)},
        check=True,
    )
    most, code = map(int, process.stdout.split())
    if code:
        text = process.stderr.decode(errors="replace").strip()
        raise RuntimeError(
            f"{' '.join(command)}: ended with {code}: {text[-500:]}"
        )
    # In kilobytes, on macOS in bytes.
    return most * (1 if sys.platform == "darwin" else 1024)


def tone(path: pathlib.Path) -> None:
    """Writes two seconds of a tone, note 69."""
    from scipy.io import wavfile

    time = np.arange(2 * _RATE) / _RATE
    sound = 0.5 * np.sin(880 * np.pi * time)
    wavfile.write(path, _RATE, sound.astype(np.float32))


def commands(
    folder: pathlib.Path, presets: int
) -> Iterator[tuple[str, list[str]]]:
    """Commands on a quickstart of some size, in an order that works.

    Args:
      folder: folder of everything that they write.
      presets: number of presets to train on; a quarter as many are to test,
        and the estimator, which keeps their sounds, gets an eighth.

    Yields:
      A name, and the command's module and arguments.
    """
    proxy, match = str(folder / "proxy"), str(folder / "match")
    quickstart = [
        "--config=configs/quickstart.py",
        f"--config.data={folder / 'data'}",
        f"--config.num_train={presets}",
        f"--config.num_test={presets // 4}",
        f"--config.evaluation.subset={min(1024, presets // 4)}",
        "--config.validation=(4,64)",
        f"--config.shard_size={min(1024, presets)}",
        "--config.epochs=1",
    ]
    yield "precompute", ["launch.precompute", *quickstart]
    yield "train", ["launch.train", *quickstart, f"--config.run={proxy}"]
    yield "evaluate", ["launch.evaluate", f"--run={proxy}"]
    members = f"--config.run={folder / 'population'}"
    seeds = "--seeds=0,1"
    yield "population", ["launch.population", *quickstart, seeds, members]
    study = [
        "--space=configs/sweeps/hn.py",
        "--trials=1",
        f"--out={folder / 'sweep'}",
    ]
    yield "sweep", ["launch.sweep", *quickstart, *study]
    sounds = {"train": presets // 8, "validation": 64, "test": 64}
    estimator = [
        "--config=configs/dexed.py:match_small",
        "--config.audio_model=transport640",
        "--config.prior.uniform=0",
        "--config.prior.fitted=1",
        f"--config.data={folder / 'data'}",
        f"--config.proxy={proxy}",
        f"--config.run={match}",
        "--config.epochs=1",
        "--config.validation_rows=64",
        *(f"--config.stand_in.{k}={n}" for k, n in sounds.items()),
    ]
    yield "train (estimator)", ["launch.train", *estimator]
    yield "evaluate (estimator)", ["launch.evaluate", f"--run={match}"]
    tone(folder / "tone.wav")
    search = [str(folder / "tone.wav"), f"--out={folder / 'matched'}"]
    search += [f"--run={match}", "--evaluations=500", "--note=69"]
    yield "match", ["launch.match", *search]
    yield "report", ["launch.report", proxy, match, f"--out={folder / 'site'}"]


def run(
    seconds: float = 0.0, presets: Sequence[int] = (4_096, 16_384)
) -> list[dict[str, Any]]:
    """Measures the commands, each in a process of its own, at several sizes.

    Args:
      seconds: ignored; commands take as long as they take.
      presets: sizes of the quickstart, ascending.

    Returns:
      One row a command: "command", "MB at N presets" for each size, and "kB
      per preset", the growth from the smallest to the largest. A megabyte is
      10^6 bytes.

    Raises:
      RuntimeError: when a command fails.
      ValueError: when the sizes do not ascend from 512 on.
    """
    del seconds
    if list(presets) != sorted(set(presets)) or min(presets) < 512:
        raise ValueError(
            f"sizes {', '.join(map(str, presets))}: need numbers of presets "
            "that ascend, the first at least 512"
        )
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for size in presets:
            folder = pathlib.Path(name) / str(size)
            folder.mkdir()
            todo = list(commands(folder, size))
            bar = tqdm.tqdm(todo, desc=f"{size:,} presets", unit="command")
            for command, arguments in bar:
                bar.set_postfix_str(command)
                most = peak(arguments, folder)
                peaks.setdefault(command, []).append(most)
    return [
        {
            "command": command,
            **{
                f"MB at {size:,} presets": peak / 1e6
                for size, peak in zip(presets, found, strict=True)
            },
            "kB per preset": (found[-1] - found[0])
            / 1e3
            / max(presets[-1] - presets[0], 1),
        }
        for command, found in peaks.items()
    ]
