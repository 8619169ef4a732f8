"""Placement on devices and its errors."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch.runs import checkpoints, devices


def test_mesh_has_one_axis():
    assert devices.mesh().shape == {devices.AXIS: 4}
    assert devices.mesh(2).shape == {devices.AXIS: 2}
    with pytest.raises(ValueError, match="9 devices asked for, 4 found"):
        devices.mesh(9)


def test_batches_must_divide():
    mesh = devices.mesh(4)
    devices.check_batch(64, mesh, 2)
    with pytest.raises(ValueError, match=r"batch=30.* 4 devices; 32 would"):
        devices.check_batch(30, mesh)


def test_place_splits_and_replicates():
    mesh = devices.mesh(4)
    x = {"x": np.arange(8.0).reshape(8, 1)}
    for sharding, rows in (
        (devices.split(mesh), 2),
        (devices.replicated(mesh), 8),
    ):
        placed = devices.place(x, sharding)["x"]
        assert isinstance(placed, jax.Array)
        shards = [s.data.shape for s in placed.addressable_shards]
        assert shards == [(rows, 1)] * 4
        np.testing.assert_array_equal(placed, x["x"])


def test_description_names_the_devices():
    assert devices.describe().startswith("devices: 4 x ")


def test_warns_of_an_unused_accelerator(monkeypatch):
    monkeypatch.setattr(devices, "_accelerator", lambda: "an NVIDIA GPU")
    assert "jax is the CPU build" in devices.describe()


_READ = """
import pathlib, sys
from launch.runs import checkpoints

with checkpoints.manager(pathlib.Path(sys.argv[1]), read_only=True) as saved:
    tree = checkpoints.restore_raw(saved, 3)
print(type(tree["x"]).__name__, tree["x"].tolist())
"""


def test_a_checkpoint_is_read_where_its_devices_are_not(tmp_path):
    tree = {"x": np.arange(8.0, dtype=np.float32)}
    placed = devices.place(tree, devices.split(devices.mesh(4)))
    with checkpoints.manager(tmp_path) as saved:
        checkpoints.save(saved, 3, placed, None)
        saved.wait_until_finished()
    read = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path)],
        cwd=pathlib.Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},  # one device
        capture_output=True,
        text=True,
    )
    wanted = f"ndarray {tree['x'].tolist()}"
    assert read.stdout.strip() == wanted, read.stderr
