"""OpenL3, against a forward pass in NumPy, and its weights' file format."""

import functools
import gzip
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datasets.weights import keras
from datasets.weights import published as weights
from proxy import audio
from proxy.audio import openl3
from proxy.published import openl3 as published


@functools.cache
def variables():
    """Random variables, the statistics of the normalisation too."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        name = path[-1].key
        if name == "kernel":
            noise = rng.normal(0, (2 / 9 / shape[2]) ** 0.5, shape)
        elif name in ("scale", "var"):
            noise = rng.uniform(0.5, 1.5, shape)
        else:
            noise = rng.normal(0, 0.3, shape)
        return noise.astype(np.float32)

    return jax.tree_util.tree_map_with_path(
        leaf, openl3.shapes(), is_leaf=lambda node: isinstance(node, tuple)
    )


def clip(samples=48_000, seed=0):
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 48_000
    tone = np.sin(2 * np.pi * 440 * time) * np.exp(-3 * time)
    return (0.5 * tone + rng.normal(0, 0.01, samples)).astype(np.float32)


def spectrogram(sound, spectrum):
    """As kapre 0.1.4: correlations with windowed sinusoids, in float64."""
    size = 512 if spectrum == "linear" else 2048
    if spectrum != "linear":
        sound = np.pad(sound, (982, 982))
    steps = np.arange(size)
    window = np.sin(np.pi * steps / size) ** 2
    starts = range(0, len(sound) - size + 1, 242)
    frames = np.stack([sound[s : s + size] for s in starts])
    angle = 2 * np.pi / size * np.outer(np.arange(size // 2 + 1), steps)
    real, imaginary = (
        frames @ (window * kernel).T
        for kernel in (np.cos(angle), np.sin(angle))
    )
    power = real**2 + imaginary**2
    if spectrum != "linear":
        count = int(spectrum[3:])
        top = 2595 * np.log10(1 + 24_000 / 700)
        mels = np.linspace(0, top, count + 2)
        corners = 700 * (10 ** (mels / 2595) - 1)
        hertz = np.arange(size // 2 + 1) * 48_000 / size
        bands = []
        for left, centre, right in zip(
            corners, corners[1:], corners[2:], strict=False
        ):
            triangle = np.interp(hertz, [left, centre, right], [0, 1, 0])
            bands.append(power @ triangle * 2 / (right - left))
        power = np.stack(bands, axis=1)
    level = 10 * np.log10(np.maximum(np.sqrt(power), 1e-10))
    return np.maximum(level - level.max(), -80).T


@pytest.mark.parametrize("spectrum", openl3.SPECTRA)
def test_front_end(spectrum):
    sound = clip()
    theirs = spectrogram(sound, spectrum)
    front_end = functools.partial(openl3.front_end, spectrum=spectrum)
    ours = jax.jit(front_end)(sound[None])[0]
    bins = 257 if spectrum == "linear" else int(spectrum[3:])
    assert ours.shape == (bins, 197 if spectrum == "linear" else 199)
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    assert ours.max() == 0 and ours.min() >= -80


def test_gradient_is_finite_on_silence():
    silence = np.zeros((1, 48_000), np.float32)
    gradient = jax.jit(jax.grad(lambda x: openl3.front_end(x, "linear").sum()))(
        silence
    )
    assert np.isfinite(gradient).all()


def convolve(x, kernel, bias):
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    height, width = x.shape[:2]
    total = np.zeros((height, width, kernel.shape[-1])) + bias
    for i in range(3):
        for j in range(3):
            total += padded[i : i + height, j : j + width] @ kernel[i, j]
    return total


def halve(x):
    height, width = (n // 2 * 2 for n in x.shape[:2])
    x = x[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return x.max(axis=(1, 3))


def network(tree, image):
    """Layer by layer, as the published description lists them."""

    def norm(x, number):
        p = tree["params"][f"norm_{number}"]
        s = tree["batch_stats"][f"norm_{number}"]
        x = (x - s["mean"]) / np.sqrt(s["var"] + 0.001)
        return x * p["scale"] + p["bias"]

    def conv(x, number):
        p = tree["params"][f"conv_{number}"]
        return convolve(x, p["kernel"].astype(np.float64), p["bias"])

    def relu(x):
        return np.maximum(x, 0)

    x = norm(image[..., None], 1)
    for first in (1, 3, 5):  # three blocks of two, each halved
        x = relu(norm(conv(x, first), first + 1))
        x = halve(relu(norm(conv(x, first + 1), first + 2)))
    return conv(relu(norm(conv(x, 7), 8)), 8)


def test_network():
    image = np.random.default_rng(1).uniform(-80, 0, (19, 26))
    theirs = network(variables(), image)
    image = image[None].astype(np.float32)
    ours = jax.jit(openl3.features)(variables(), image)[0]
    assert ours.shape == (2, 3, 512)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_embedding_is_the_mean_over_seconds():
    """One and a half seconds: the second window is half empty."""
    sound = clip(72_000)
    seconds = np.stack([sound[:48_000], np.pad(sound[48_000:], (0, 24_000))])

    @jax.jit
    def maps(tree, seconds):
        return openl3.features(tree, openl3.front_end(seconds, "mel128"))

    found = np.asarray(maps(variables(), seconds))
    assert found.shape == (2, 16, 24, 512)
    for size, grid in ((512, (1, 1)), (6144, (4, 3))):
        model = audio.get(f"openl3_mel128_music_{size}")
        assert model.sample_rate == 48_000 and model.differentiable
        ours = jax.jit(model.embed)(variables(), sound[None])
        cells = found.reshape(2, grid[0], 16 // grid[0], grid[1], -1, 512)
        theirs = cells.max(axis=(2, 4)).reshape(2, -1).mean(axis=0)
        assert ours.shape == (1, size) == (1, model.dimension)
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-3, atol=1e-4)


def test_all_kinds_are_registered_and_sized():
    for spectrum in ("linear", "mel128", "mel256"):
        for content in ("music", "env"):
            for size in (512, 6144):
                model = audio.get(f"openl3_{spectrum}_{content}_{size}")
                assert model.weights == f"openl3_{spectrum}_{content}"
                assert model.weights in weights.PUBLISHED
                clips = jax.ShapeDtypeStruct((2, 240_000), np.float32)
                assert model.init is not None
                tree = jax.eval_shape(model.init, jax.random.key(0))
                out = jax.eval_shape(model.embed, tree, clips)
                assert out.shape == (2, size)
    # "Close to 4.7 million" as published for the network.
    count = sum(x.size for x in jax.tree.leaves(variables()["params"]))
    assert count == 4_687_042
    with pytest.raises(ValueError, match="512 or 6144"):
        openl3.embed(variables(), jnp.zeros((1, 100)), size=100)


# The file.


def layers(tree):
    """Layer and weight names as published files have them."""
    found = {"input_1": {}}
    for number in range(1, 9):
        norm, conv = f"norm_{number}", f"conv_{number}"
        params, statistics = tree["params"], tree["batch_stats"]
        name = f"batch_normalization_{number}"
        found[name] = {
            f"{name}/gamma:0": params[norm]["scale"],
            f"{name}/beta:0": params[norm]["bias"],
            f"{name}/moving_mean:0": statistics[norm]["mean"],
            f"{name}/moving_variance:0": statistics[norm]["var"],
        }
        found[f"activation_{number}"] = {}
        name = "audio_embedding_layer" if number == 8 else f"conv2d_{number}"
        found[name] = {
            f"{name}/kernel:0": params[conv]["kernel"],
            f"{name}/bias:0": params[conv]["bias"],
        }
    return found


def write(path, layers):
    """What Keras's `save_weights` writes."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, found in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in found]
            for weight, array in found.items():
                group[weight] = array
    return path


def test_weights_file(tmp_path):
    plain = write(tmp_path / "a.h5", layers(variables()))
    packed = tmp_path / "a.h5.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes(), 1))
    for path in (plain, packed):
        loaded = weights.load("openl3_mel256_music", path=path)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables())


def test_layers_that_do_not_fit_are_named():
    good = layers(variables())
    extra = {"melspectrogram_1": {"freq2mel:0": np.ones(3)}, **good}
    published.variables(extra)  # in files before version 0.4
    lacking = {n: v for n, v in good.items() if n != "conv2d_3"}
    with pytest.raises(ValueError, match="15 layers, not the 16"):
        published.variables(lacking)
    swapped = {**good, "conv2d_2": {"conv2d_2/gamma:0": np.ones(64)}}
    with pytest.raises(ValueError, match="lack 'conv2d_2/kernel'"):
        published.variables(swapped)
    bent = dict(good["conv2d_2"]) | {"conv2d_2/bias:0": np.ones(3)}
    with pytest.raises(ValueError, match=r"'conv2d_2/bias'.*\(3,\)"):
        published.variables({**good, "conv2d_2": bent})


def test_reader_refuses(tmp_path, monkeypatch):
    small = {"conv": {"conv/kernel:0": np.ones(3, np.float32)}}
    path = write(tmp_path / "a.h5", small)
    assert keras.read(path)["conv"]["conv/kernel:0"].sum() == 3
    with h5py.File(path, "a") as file:
        del file["conv/conv/kernel:0"]
        file["conv/conv/kernel:0"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(ValueError, match=r"a\.h5 is not a Keras.*elsewhere"):
        keras.read(path)
    write(path, {"conv": {"conv/kernel:0": np.array(b"text")}})
    with pytest.raises(ValueError, match="not a plain array of numbers"):
        keras.read(path)
    (tmp_path / "b.h5").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"b\.h5 is not a Keras"):
        keras.read(tmp_path / "b.h5")
    with pytest.raises(FileNotFoundError, match=r"c\.h5"):
        keras.read(tmp_path / "c.h5")
    monkeypatch.setattr(keras, "_LARGEST", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        keras.read(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"synth-proxy-jax\[openl3\]"):
        keras.read(path)


def test_a_crash_of_the_library_is_one_error(tmp_path, monkeypatch):
    small = {"conv": {"conv/kernel:0": np.ones(3, np.float32)}}
    path = write(tmp_path / "a.h5", small)
    host = tmp_path / "host.py"
    host.write_text(
        "import os\n"
        "class Host:\n"
        "    def __init__(self, sound): pass\n"
        "    def read(self, path, largest): os.abort()\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(keras, "_HOST", host)
        with pytest.raises(ValueError, match=r"a\.h5 is not .* in a crash"):
            keras.read(path)
    assert keras.read(path)["conv"]["conv/kernel:0"].sum() == 3
