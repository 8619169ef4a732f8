"""Files with flipped bits or cut short: what is right, or one clear error.

An error is clear when it is of a type that commands tell in one line, is made
by this project and names the file.
"""

import functools
import gc
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import quickstart, ranges
from datasets import files, loader, shards
from datasets.weights import pickles
from launch.runs import checkpoints, metrics
from proxy import spaces
from proxy.published import encoders as published
from tests import commands, test_convert, test_shards

# Of a file, where and which bits are flipped, and what share is left.
DAMAGE = st.tuples(
    st.integers(0, 2**20),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=4),
    st.sampled_from((1.0, 1.0, 1.0, 0.99, 0.5, 0.0)),
).filter(lambda damage: damage[1] or damage[2] < 1)


def hostile(examples):
    """Runs a test on as many damages, the same ones every time."""
    return lambda test: settings(
        derandomize=True,
        deadline=None,
        max_examples=examples,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )(given(damage=DAMAGE)(test))


def spoil(content: bytes, damage) -> bytes:
    _, flips, share = damage
    spoiled = bytearray(content)
    flips = {(int(place * (len(content) - 1)), bit) for place, bit in flips}
    for place, bit in flips if content else ():
        spoiled[place] ^= 1 << bit
    return bytes(spoiled[: int(share * len(content))])


class Folder:
    """A folder that can be made whole again."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.files = {
            file: file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }

    def spoil(self, damage, among=lambda file: True) -> pathlib.Path:
        """Damages one file of a whole folder; returns which."""
        shutil.rmtree(self.path)
        for file, content in self.files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        chosen = [file for file in self.files if among(file)]
        file = chosen[damage[0] % len(chosen)]
        file.write_bytes(spoil(self.files[file], damage))
        return file


# Data sets -------------------------------------------------------------------

SPEC = test_shards.SPEC


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A data set, its columns decoded, and what is in them."""
    path = tmp_path_factory.mktemp("data") / "set"
    test_shards.write_all(path, SPEC)
    columns = open_all(path)
    return Folder(path), {k: np.array(c) for k, c in columns.items()}


def open_all(path):
    return loader.open_columns(path, SPEC, "train", shards.column_names(SPEC))


@hostile(150)
def test_data_sets(dataset, damage):
    folder, wanted = dataset
    spoiled = folder.spoil(damage)
    try:
        columns = open_all(folder.path)
    except files.ShardError as error:
        assert str(folder.path) in str(error)
        assert ".cache" not in str(spoiled)  # what can be made anew is
    else:
        for name, column in columns.items():
            np.testing.assert_array_equal(column, wanted[name])


@hostile(60)
def test_verifying_data_sets(dataset, damage):
    folder, wanted = dataset
    verify = commands.load("launch.precompute")["verify"]
    spoiled = folder.spoil(damage, lambda file: ".cache" not in str(file))
    content = spoiled.read_bytes()
    try:
        verify(folder.path.parent)
    except files.ShardError as error:
        assert str(folder.path) in str(error)
    else:
        # What is read is as before, e.g. another blank in JSON.
        assert ".array_record" not in spoiled.name or spoiled.suffix == ".json"
        for name in ("features.json", "dataset_info.json"):
            path = folder.path / name
            assert json.loads(path.read_text()) == json.loads(
                folder.files[path]
            )
        for name, column in open_all(folder.path).items():
            np.testing.assert_array_equal(column, wanted[name])
    assert spoiled.read_bytes() == content


# Runs ------------------------------------------------------------------------


def state(step):
    return {"x": jnp.full(7, step), "y": {"z": jnp.arange(step)[:4] * 1.5}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints at the steps 8 (the best) and 12."""
    config = quickstart.get_config()
    config.run = str(tmp_path_factory.mktemp("runs") / "run")
    path = checkpoints.prepare(config)
    with checkpoints.manager(path) as saved:
        for step in (8, 12):
            checkpoints.save(saved, step, state(step), {"mrr": 1 / step})
    with metrics.Writer(path) as writer:
        for step in range(1, 13):
            writer.write(step, loss=1 / step)
    shutil.rmtree(path / "tensorboard")
    return Folder(path)


def restored(path, read_only):
    with checkpoints.manager(path, read_only=read_only) as saved:
        step = saved.latest_step()
        found = checkpoints.restore(saved, state(step), step)
        raw = checkpoints.restore_raw(saved, step)
    for tree in (found, raw):
        np.testing.assert_array_equal(tree["x"], state(step)["x"])
        np.testing.assert_array_equal(tree["y"]["z"], state(step)["y"]["z"])
    return step


@hostile(60)
def test_checkpoints(run, damage):
    spoiled = run.spoil(damage, lambda file: "checkpoints" in str(file))
    try:
        assert restored(run.path, True) == 12
    except ValueError as error:
        assert str(spoiled) in str(error)
        # Training goes on from what is whole.
        assert restored(run.path, False) == (
            8 if "/12/" in str(spoiled) else 12
        )


@pytest.fixture
def tidy():
    """Lets nothing that is left behind fail the tests that follow."""
    yield
    gc.collect()


# Coroutines of orbax are left behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@hostile(60)
def test_checkpoints_without_digests(run, tidy, damage):
    """Of an earlier version: damage may go unnoticed, but ends in one line."""
    run.spoil(damage, lambda file: "/12/" in str(file))
    for step in ("8", "12"):
        (run.path / "checkpoints" / step / "sha256.json").unlink()
    try:
        restored(run.path, False)
    except ValueError as error:
        assert str(run.path) in str(error)
    except AssertionError:
        pass  # other numbers


@hostile(200)
def test_configs_and_metrics(run, damage):
    spoiled = run.spoil(
        damage,
        lambda file: (
            file.suffix in (".json", ".jsonl") and file.parent == run.path
        ),
    )
    try:
        config = checkpoints.read_config(run.path)
        list(metrics.read(run.path))
        ranges.check(config)
    except ValueError as error:
        assert str(spoiled) in str(error) or "config." in str(error)


# Weights ---------------------------------------------------------------------


@functools.cache
def weights(folder: pathlib.Path):
    tensors = test_convert.published_state("hn_oh", "talnm", 192)
    path = test_convert.lightning_file(folder / "x.ckpt", tensors)
    return path, path.read_bytes(), tensors


@hostile(200)
def test_weights(tmp_path_factory, damage):
    base = tmp_path_factory.getbasetemp()
    path, content, wanted = weights(base)
    path.write_bytes(spoil(content, damage))
    try:
        found = pickles.read_lightning(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    # What no checksum covers, e.g. the names, is held against the encoder.
    try:
        published.from_published("hn_oh", spaces.get("talnm"), found)
    except ValueError:
        return
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, wanted[name])
