"""Damaged, shared and contended checkpoints; cut files of a run."""

import json
import pathlib
import random
import shutil

import ml_collections
import numpy as np
import pytest

from configs import dexed, quickstart
from datasets import files
from launch.runs import checkpoints
from tests import commands, test_loop


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with the steps 8 (the best) and 12, and how it ended."""
    run = tmp_path_factory.mktemp("checkpoints") / "run"
    return run, test_loop.train(run)[0]


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def contents(run, step):
    folder = run / "checkpoints" / str(step)
    return sorted(p for p in folder.rglob("*") if p.is_file())


def flip(path, seed=0):
    content = bytearray(path.read_bytes())
    where = random.Random(seed).randrange(len(content))
    content[where] ^= 1 << seed % 8
    path.write_bytes(content)


def test_every_file_of_a_checkpoint_has_a_digest(run):
    for step in (8, 12):
        known = json.loads(
            (run / "checkpoints" / str(step) / "sha256.json").read_text()
        )
        there = {
            str(path.relative_to(run / "checkpoints" / str(step)))
            for path in contents(run, step)
        }
        # The second is empty of meaning, and written after the digests.
        assert there - known.keys() == {"sha256.json", "commit_success.txt"}
        assert {"_CHECKPOINT_METADATA", "metrics/metrics"} <= known.keys()
        assert any(name.startswith("default/d/") for name in known)


def test_a_damaged_file_is_named_and_an_older_checkpoint_used(
    trained, tmp_path, capsys
):
    for number, path in enumerate(contents(trained[0], 12)):
        run = tmp_path / str(number) / "run"
        shutil.copytree(trained[0], run)
        path = run / path.relative_to(trained[0])
        if path.stat().st_size and number % 2:
            flip(path, number)
        else:
            path.unlink()
        name = str(path.relative_to(run))
        if name == "checkpoints/12/commit_success.txt" or (
            path.name == "sha256.json" and not path.exists()
        ):
            np.testing.assert_array_equal(test_loop.train(run)[0], trained[1])
            continue
        with pytest.raises(ValueError, match="damaged") as error:
            checkpoints.manager(run, read_only=True)
        assert name in str(error.value) or path.name == "sha256.json"
        capsys.readouterr()
        x, _ = test_loop.train(run)
        told = capsys.readouterr().out
        assert "damaged checkpoint, now 12.damaged" in told
        assert name in told or path.name == "sha256.json"
        assert "going on at step 8 of 12" in told
        np.testing.assert_array_equal(x, trained[1])
        with checkpoints.manager(run, read_only=True) as saved:
            assert saved.all_steps() == [8, 12]


def test_without_a_whole_checkpoint_nothing_is_begun(run):
    for step in (8, 12):
        flip(run / "checkpoints" / str(step) / "metrics" / "metrics")
    with pytest.raises(ValueError, match=r"8/metrics/metrics.*start anew"):
        test_loop.train(run)
    assert {p.name for p in (run / "checkpoints").iterdir()} >= {"8", "12"}


def test_an_empty_folder_is_no_checkpoint(run, trained):
    (run / "checkpoints" / "14").mkdir()
    with checkpoints.manager(run, read_only=True) as saved:
        assert saved.latest_step() == 12
    (run / "checkpoints" / "14").mkdir()
    np.testing.assert_array_equal(test_loop.train(run)[0], trained[1])


def test_a_checkpoint_without_digests_is_read(run, trained):
    for step in (8, 12):
        (run / "checkpoints" / str(step) / "sha256.json").unlink()
    np.testing.assert_array_equal(test_loop.train(run)[0], trained[1])
    (run / "checkpoints" / "12" / "default" / "manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match=r"12 in .*is damaged"):
        test_loop.train(run)


def test_a_directory_is_trained_in_by_one_process(run):
    with (
        files.claim(run, "training"),
        pytest.raises(RuntimeError, match="another process is training in"),
    ):
        test_loop.train(run)
    test_loop.train(run)


# Configs ---------------------------------------------------------------------


def config_of(tmp_path, name="a", **fields):
    config = quickstart.get_config()
    config.run = str(tmp_path / name)
    config.update(fields)
    return config


def test_shared_checkpoints_belong_to_one_config(tmp_path):
    place = str(tmp_path / "kept")
    run = checkpoints.prepare(config_of(tmp_path, checkpoints=place))
    saved = json.loads(pathlib.Path(place, "config.json").read_text())
    assert saved["run"] == str(run)
    # Another run that would come out the same goes on with them.
    checkpoints.prepare(config_of(tmp_path, "b", checkpoints=place, workers=1))
    with pytest.raises(ValueError, match=r"kept.*\(seed: wanted 3, found 0\)"):
        checkpoints.prepare(config_of(tmp_path, "c", checkpoints=place, seed=3))
    assert not (tmp_path / "c" / "config.json").exists()
    # Two at once are refused even so.
    with (
        files.claim(pathlib.Path(place), "training"),
        pytest.raises(RuntimeError, match="kept"),
        checkpoints.alone(run),
    ):
        pass


def test_checkpoints_of_an_unknown_config_are_refused(tmp_path):
    place = tmp_path / "kept"
    config = config_of(tmp_path, checkpoints=str(place))
    run = checkpoints.prepare(config)
    (place / "config.json").unlink()
    (place / "12").mkdir()
    # The run itself knows them: it is of an earlier version.
    assert checkpoints.prepare(config) == run
    (place / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json beside them"):
        checkpoints.prepare(config_of(tmp_path, "b", checkpoints=str(place)))


@pytest.mark.parametrize(
    "text", ["", '{"run": "a', "[]", "\udcff", '{"kind": "proxy", "a.b": 1}']
)
def test_a_cut_config_is_named(tmp_path, text):
    config = config_of(tmp_path)
    path = checkpoints.prepare(config) / "config.json"
    path.write_text(text, errors="surrogateescape")
    for read in (checkpoints.read_config, checkpoints.load):
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            read(config.run)
    with pytest.raises(ValueError, match=r"json is damaged|another config"):
        checkpoints.prepare(config)
    path.unlink()
    checkpoints.prepare(config)
    again = checkpoints.read_config(config.run)
    assert isinstance(again, ml_collections.ConfigDict)


@pytest.mark.parametrize("experiment", ["hn_oh", "match"])
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("synth", None, "synth is missing .a new run has 'dexed'."),
        ("render.note", None, "render.note is missing .a new run has 60."),
        ("render", 5, "render=5, need fields in braces"),
        ("host", None, "host is missing"),
        ("audio_model", [1], r"audio_model=\[1\], need a name"),
        ("plugin", {"a": 1}, r"plugin=\{'a': 1\}, need the like of ''"),
        ("checkpoints", 5, "checkpoints=5, need the like of ''"),
        ("evaluation.seed", "x", "evaluation.seed='x', need whole"),
        ("data", 3.5, "data=3.5, need a name or path"),
        ("optimizer.b1", True, "optimizer.b1=True, need"),
    ],
)
def test_every_command_names_fields_that_a_config_lacks(
    tmp_path, experiment, field, value, words
):
    config = dexed.get_config(experiment)
    config.run = str(tmp_path / "run")
    path = checkpoints.prepare(config) / "config.json"
    part = content = json.loads(path.read_text())
    *sections, last = field.split(".")
    for section in sections:
        part = part[section]
    part.pop(last)
    if value is not None:
        part[last] = value
    path.write_text(json.dumps(content))
    for command in (
        ("launch.evaluate", f"--run={config.run}"),
        ("launch.match", f"--run={config.run}", "x.wav", f"--out={tmp_path}"),
        ("launch.report", config.run, f"--out={tmp_path / 'site'}"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            commands.run(*command)
        assert str(path) in str(error.value), command
        assert "train again" in str(error.value)


def test_fields_that_came_later_may_be_missing(tmp_path):
    config = config_of(tmp_path)
    path = checkpoints.prepare(config) / "config.json"
    content = json.loads(path.read_text())
    del content["checkpoints"], content["data_seed"], content["host"]["dead"]
    path.write_text(json.dumps(content))
    assert checkpoints.read_config(config.run).synth == "dexed"
