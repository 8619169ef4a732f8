"""Placement on devices and its errors."""

import jax
import numpy as np
import pytest

from launch import devices


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
