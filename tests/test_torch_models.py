"""The adapter for models in PyTorch, with libraries that only pretend."""

import contextlib
import re
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from datasets.weights import hosts
from proxy import audio


class Tensor:
    """As much of a tensor as the adapter uses."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __getitem__(self, key):
        return Tensor(self.array[key])

    def _same(self, *args):
        del args
        return self

    detach = cpu = to = float = _same

    def numpy(self):
        return self.array


class Network:
    """Its outputs tell what went in."""

    def __init__(self, channels=1024):
        self.channels = channels
        self.config = types.SimpleNamespace(downsampling_ratios=[2, 4, 8, 8])
        self.weight = np.arange(3.0)
        self.loaded = {}

    def eval(self):
        return self

    def to(self, device):
        assert device == "cpu"
        return self

    def state_dict(self):
        return {"weight": Tensor(self.weight)}

    def encode(self, waves):
        """DAC: frame means of 512 samples, in every channel."""
        batch, one, samples = waves.array.shape
        assert one == 1 and samples % 512 == 0
        frames = waves.array.reshape(batch, 1, -1, 512).mean(axis=-1)
        quantised = np.repeat(frames, self.channels, axis=1)
        return types.SimpleNamespace(
            quantized_representation=Tensor(quantised),
            projected_latents=Tensor(-np.repeat(frames, 72, axis=1)),
        )

    def get_audio_features(self, features, is_longer):
        assert is_longer.array.shape == (len(features.array), 1)
        found = np.repeat(features.array.mean(axis=1)[:, None], 512, axis=1)
        return types.SimpleNamespace(pooler_output=Tensor(found))


def extract(clips, *, sampling_rate, return_tensors):
    assert sampling_rate == 48_000 and return_tensors == "pt"
    longer = np.zeros((len(clips), 1), bool)
    return {"input_features": Tensor(clips), "is_longer": Tensor(longer)}


class Coder:
    """Music2Latent."""

    def __init__(self, load_path_inference, device):
        assert load_path_inference is None and device == "cpu"
        self.gen = Network()

    def encode(self, waves, extract_features):
        channels = 8192 if extract_features else 64
        means = waves.array.reshape(len(waves.array), 1, -1, 100).mean(axis=-1)
        return Tensor(np.repeat(means, channels, axis=1))


@pytest.fixture
def libraries(monkeypatch):
    """Puts the pretended libraries in place; returns DAC's network."""
    network = Network()
    loaded = network.loaded
    torch = types.SimpleNamespace(
        cuda=types.SimpleNamespace(is_available=lambda: False),
        inference_mode=contextlib.nullcontext,
        from_numpy=Tensor,
        device=lambda name: name,
    )

    def pretrained(thing):
        def load(source, revision=None):
            loaded[source] = revision
            if source == "absent":
                raise OSError("no connection")
            return thing

        return types.SimpleNamespace(from_pretrained=load)

    transformers = types.SimpleNamespace(
        DacModel=pretrained(network),
        ClapModel=pretrained(Network()),
        ClapFeatureExtractor=pretrained(extract),
    )
    music2latent = types.SimpleNamespace(EncoderDecoder=Coder)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setitem(sys.modules, "music2latent", music2latent)
    hosts.load.cache_clear()
    yield network
    hosts.load.cache_clear()


def sounds(rows=20, samples=1000):
    """More than a block of clips, each constant at its number."""
    return np.repeat(np.arange(rows, dtype=np.float32)[:, None], samples, 1)


def test_embeddings_are_averaged_over_time(libraries):
    for name, sign in (
        ("clap", 1),
        ("m2l", 1),
        ("m2l_features", 1),
        # Of 1,024 samples, 24 of which are filled up with zeros.
        ("dac", 1000 / 1024),
        ("dac_latents", -1000 / 1024),
    ):
        found = hosts.load(name).embed(sounds())
        assert found.shape == (20, audio.get(name).dimension)
        assert found.dtype == np.float32
        expected = sign * np.arange(20)
        np.testing.assert_allclose(found, expected[:, None] + 0 * found)


def test_revisions_of_the_hub_are_pinned(libraries):
    for name in ("clap", "dac", "dac_latents"):
        hosts.load(name)
        revision = libraries.loaded[audio.get(name).weights]
        assert re.fullmatch("[0-9a-f]{40}", revision)
    hosts.load("dac", "folder")
    assert libraries.loaded["folder"] is None


def test_weights_are_told_apart(libraries):
    first = hosts.load("dac").sha256
    assert hosts.load("dac").sha256 == first and len(first) == 64
    hosts.load.cache_clear()
    libraries.weight[1] += 1
    assert hosts.load("dac").sha256 != first


def test_wrong_models_are_named(libraries):
    libraries.channels = 7
    with pytest.raises(ValueError, match=r"shape \(7,\).*dac has 1024"):
        hosts.load("dac", "folder").embed(sounds())
    with pytest.raises(FileNotFoundError, match=r"dac \(absent\).*folder"):
        hosts.load("dac", "absent")
    with pytest.raises(ValueError, match="'mel128' runs in JAX"):
        hosts.load("mel128")


@pytest.mark.parametrize(
    "name, missing, remedy",
    [
        ("clap", "transformers", r"synth-proxy-jax\[torch-models\]"),
        ("dac", "torch", r"synth-proxy-jax\[torch-models\]"),
        ("m2l", "music2latent", "pip install music2latent"),
    ],
)
def test_missing_library(libraries, monkeypatch, name, missing, remedy):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"{name}.*{missing}.*{remedy}"):
        hosts.load(name)


def test_registry_says_that_no_gradient_passes():
    for name in ("clap", "dac", "dac_latents", "m2l", "m2l_features"):
        model = audio.get(name)
        assert not model.differentiable and model.init is None
        with pytest.raises(ValueError, match=f"'{name}'.*not differentiable"):
            model.embed({}, jnp.zeros((1, 100)))
    assert audio.get("mel128").differentiable
