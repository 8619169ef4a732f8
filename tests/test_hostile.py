"""Files damaged at random: what is right, or one clear error.

The attempts are those of `python -m launch.benchmark faults`, fewer of them.
"""

import concurrent.futures
import gc
import json
import os
import pathlib
import random
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets import files, limits
from launch.benchmark import attempts, faults, kills, mutations, samples, stages
from tests import commands


def hostile(examples):
    """Runs a test with as many seeds, the same ones every time."""
    return lambda test: settings(
        derandomize=True,
        deadline=None,
        max_examples=examples,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )(given(seed=st.integers(0, 2**32))(test))


# Of each kind: enough to see that what follows is not by luck.
EXAMPLES = {
    "banks": 300,
    "sounds": 200,
    "shards": 100,
    "columns": 60,
    "checkpoints": 60,
    "weights": 200,
    "configs": 200,
    "HDF5": 20,
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_damaged_files_are_read_or_refused(kind, tmp_path, monkeypatch):
    if kind == "HDF5":
        pytest.importorskip("h5py")
    attempt = attempts.KINDS[kind](tmp_path)
    # Some WAVs keep their decoder busy; whole sounds were read at leisure.
    hasty = limits.Budget(seconds=0.4)
    if kind == "sounds":
        monkeypatch.setattr(limits, "usual", lambda: hasty)
    outcomes = set()

    @hostile(EXAMPLES[kind])
    def run(seed):
        outcomes.add(attempt(random.Random(seed)))

    run()
    # Damage is seen, or mended.
    assert (attempts.RIGHT if kind == "columns" else attempts.ERROR) in outcomes


def test_every_kind_is_tested():
    assert attempts.KINDS.keys() <= EXAMPLES.keys()


def test_verifying_data_sets(tmp_path):
    wanted = samples.dataset(tmp_path / "set")
    folder = mutations.Folder(tmp_path / "set")
    verify = commands.load("launch.precompute")["verify"]

    @hostile(60)
    def run(seed):
        spoiled = folder.spoil(
            random.Random(seed), lambda file: ".cache" not in str(file)
        )
        content = spoiled.read_bytes()
        try:
            verify(tmp_path)
        except files.ShardError as error:
            assert str(folder.path) in str(error)
        else:
            # What is read is as before, e.g. another blank in JSON.
            if ".array_record" in spoiled.name and spoiled.suffix != ".json":
                assert content == folder.files[spoiled]
            for name in ("features.json", "dataset_info.json"):
                path = folder.path / name
                assert json.loads(path.read_text()) == json.loads(
                    folder.files[path]
                )
            for name, column in samples.columns(folder.path).items():
                np.testing.assert_array_equal(column, wanted[name])
        assert spoiled.read_bytes() == content

    run()


@pytest.fixture
def tidy():
    """Lets nothing that is left behind fail the tests that follow."""
    yield
    gc.collect()


# Coroutines of orbax are left behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoints_without_digests(tidy, tmp_path):
    """Of an earlier version: damage may go unnoticed, but ends in one line."""
    samples.run(tmp_path / "run")
    folder = mutations.Folder(tmp_path / "run")

    @hostile(60)
    def run(seed):
        folder.spoil(random.Random(seed), lambda file: "/12/" in str(file))
        for step in ("8", "12"):
            (folder.path / "checkpoints" / step / "sha256.json").unlink()
        try:
            attempts.restored(folder.path, False)
        except ValueError as error:
            assert str(folder.path) in str(error)
        except attempts.WrongError:
            pass  # other numbers

    run()


# The benchmark ---------------------------------------------------------------

WAYS = ("right", "clear", "vague", "silent", "defect", "crash", "hang")


def way(draw):
    return WAYS[draw.randrange(len(WAYS))]


def lenient(folder: pathlib.Path) -> attempts.Attempt:
    """A reader that lets everything pass, crashes and hangs."""

    def attempt(draw):
        match way(draw):
            case "clear":
                return attempts.clear(ValueError(f"{folder} is cut"), folder)
            case "vague":
                return attempts.clear(ValueError("something is off"), folder)
            case "silent":
                return attempts.same(np.zeros(3), np.ones(3))
            case "defect":
                return [][0]
            case "crash":
                os._exit(3)
            case "hang":
                time.sleep(600)
        return attempts.RIGHT

    return attempt


def test_what_is_neither_right_nor_clear_is_counted(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(attempts.KINDS, "lenient", lenient)
    monkeypatch.setattr(faults, "_HANGS", 2.0)
    seed, count = 288, 8
    ways = [way(random.Random(f"{seed} {n}")) for n in range(count)]
    assert set(ways) == set(WAYS)
    (row,) = faults.run(count=count, seed=seed, kinds=["lenient"])
    right, clear = ways.count("right"), ways.count("clear")
    assert row == {
        "kind": "lenient",
        "tried": count,
        "one clear error": clear,
        "right": right,
        "anything else": count - right - clear,
    }
    told = capsys.readouterr().out
    for number, words in (
        (ways.index("vague"), "unclear: something is off"),
        (ways.index("silent"), "silently"),
        (ways.index("defect"), "IndexError"),
        (ways.index("crash"), "crash (3)"),
        (ways.index("hang"), "hang: more than 2 s"),
    ):
        assert any(
            f"lenient, number {number}: " in line and words in line
            for line in told.splitlines()
        ), told


def test_a_fault_fails_the_command(monkeypatch):
    rows = [
        {"kind": "x", "anything else": 2},
        {"kind": "y", "anything else": 1},
    ]
    result = {"devices": "", "rows": rows}
    monkeypatch.setattr(stages, "run_stage", lambda stage, options: result)
    pool = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(
        concurrent.futures, "ProcessPoolExecutor", lambda n, _: pool(n)
    )
    with pytest.raises(RuntimeError, match="3 faults end in anything else"):
        commands.run("launch.benchmark", "faults")


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="unknown kind 'bank'"):
        faults.run(kinds=["bank"])


def test_what_a_killed_command_leaves_is_compared(monkeypatch, tmp_path):
    """With a command that ends otherwise when it was killed."""
    code = (
        "import json, pathlib, sys, time\n"
        "folder, otherwise = pathlib.Path(sys.argv[1]), sys.argv[2] == 'yes'\n"
        "folder.mkdir(parents=True, exist_ok=True)\n"
        "time.sleep(0.2)\n"
        "result = {'seconds': time.time(), 'of': str(folder)}\n"
        "result['whole'] = otherwise and folder.parent.name == 'whole'\n"
        "(folder / 'x.json').write_text(json.dumps(result))\n"
    )
    (tmp_path / "command.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for otherwise, wanted in (("no", "right"), ("yes", "anything else")):
        monkeypatch.setattr(
            kills,
            "_command",
            lambda name, folder, whole, otherwise=otherwise: [
                "command",
                str(folder / "data"),
                otherwise,
            ],
        )
        root = tmp_path / otherwise
        root.mkdir()
        counted = kills.killed("precompute", 2, 0, root)
        assert counted == {wanted: 2}
