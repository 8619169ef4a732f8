"""Data sets remember which weights their embeddings were made with."""

import hashlib

import numpy as np
import pytest

from configs import quickstart
from datasets import files
from launch.runs import build as building
from launch.runs import making


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A tiny data set of mn01, embedded by nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        building, "embedder", lambda *_: lambda sounds: np.zeros((2, 56))
    )
    config = quickstart.get_config()
    config.audio_model = "mn01"
    config.data = str(tmp_path / "data")
    config.num_train, config.validation, config.num_test = 2, (1, 2), 1
    config.shard_size = config.embed_batch = 2
    config.workers = 1
    config.weights = str(tmp_path / "mine.pt")
    return config


def build(config):
    synthetic = making.ensure(config).synthetic
    assert synthetic is not None
    return synthetic


def test_weights_are_recorded_and_held_to(config, tmp_path):
    mine, other = tmp_path / "mine.pt", tmp_path / "other.pt"
    with pytest.raises(FileNotFoundError, match="no weights at"):
        making.ensure(config)
    assert not (tmp_path / "data").exists()

    mine.write_bytes(b"mine")
    spec = build(config).spec
    assert spec.weights_sha256 == hashlib.sha256(b"mine").hexdigest()
    # Complete, it is used without the weights, and without knowing them.
    mine.unlink()
    assert build(config).spec == spec
    config.weights = ""
    found = build(config)
    assert found.spec == spec
    assert found.columns("train")["embedding"].shape == (2, 56)

    other.write_bytes(b"other")
    config.weights = str(other)
    with pytest.raises(files.ShardError, match="weights_sha256: wanted d9298"):
        making.ensure(config)


def test_models_outside_jax(config, tmp_path, monkeypatch):
    from datasets.weights import hosts

    class Loaded:
        sha256 = "c" * 64

        @staticmethod
        def embed(sounds):
            return np.zeros((len(sounds), 1024), np.float32)

    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(
        hosts,
        "load",
        lambda name, path: asked.append((name, path)) or Loaded,
    )
    config.audio_model, config.weights = "dac", "folder"
    spec = build(config).spec
    assert spec.weights_sha256 == "c" * 64 and spec.embedding == 1024
    assert set(asked) == {("dac", "folder")}
    # Complete, it needs no PyTorch.
    asked.clear()
    assert build(config).spec == spec and not asked
