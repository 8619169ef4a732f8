import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datasets.weights import published as weights
from proxy import audio
from proxy.audio import efficientat
from proxy.published.efficientat import variables as from_published
from tests.published import efficientat_state
from tests.shared import shared
from tests.variables import draw

FORMS = ("shift", "convolution")


@functools.cache
def golden():
    with np.load(shared("golden/mn04.npz")) as file:
        return dict(file)


@functools.cache
def mn04():
    return weights.load("mn04", path=shared("weights/mn04_as_mAP_432.pt"))


@functools.cache
def random(name):
    """Random variables of a width, as NumPy arrays."""
    init = functools.partial(efficientat.init, width=efficientat.WIDTHS[name])
    return draw(init)


@functools.cache
def means(form):
    function = functools.partial(efficientat.map_means, form=form)
    return jax.jit(function)(mn04(), golden()["mel"])


def agree(ours, theirs, tolerance=1e-4):
    """Relative to the scale of the vector, for every clip."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max(axis=-1)
    assert (error <= tolerance * np.abs(theirs).max(axis=-1)).all()


def wave(batch=2, samples=16_000, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(-0.5, 0.5, (batch, samples)), jnp.float32)


def test_front_end_is_golden():
    ours = jax.jit(efficientat.front_end)(golden()["wave"])
    agree(ours, golden()["mel"])
    bank = efficientat._bank()
    np.testing.assert_allclose(bank[:512].T, golden()["mel_basis"], atol=1e-4)


def window_mels(clips):
    """[batch, windows, mels, frames]."""
    return jnp.moveaxis(efficientat.windowed_front_end(clips), 0, 2)


def test_windowed_front_end_is_golden():
    ours = jax.jit(window_mels)(golden()["wave"])
    agree(ours[:, 50], golden()["segment50_mel"])
    frames = golden()["wrapper_mn04_mel_frames"]
    agree(ours.mean(axis=-1), frames[..., :128])


@pytest.mark.parametrize("form", FORMS)
def test_every_block_is_golden(form):
    assert len(means(form)) == 17
    for block, ours in enumerate(means(form)):
        agree(ours, golden()[f"block{block:02d}_mean"])
    agree(means(form)[-1], golden()["features"])


@pytest.mark.parametrize("form", FORMS)
def test_predictions_are_golden(form):
    logits = efficientat.classify(mn04(), means(form)[-1])
    agree(logits, golden()["logits"])
    # Of AudioSet's classes, 0 is speech, 137 music, 384 to 386 typing.
    music, speech, typing = np.argmax(logits, axis=1)
    assert (music, speech) == (137, 0) and 384 <= typing <= 386


@pytest.mark.parametrize("form", FORMS)
def test_windows_are_golden(form):
    function = functools.partial(efficientat.embed_windows, mel=True, form=form)
    ours = jax.jit(function)(mn04(), golden()["wave"])
    agree(ours, golden()["wrapper_mn04_mel_frames"])


@pytest.mark.parametrize("name", ["mn04", "mn04_mel", "mn04_scene_mel"])
def test_embeddings_are_golden(name):
    model = audio.get(name)
    ours = jax.jit(model.embed)(mn04(), golden()["wave"])
    theirs = golden()[
        "scene_mn04_mel" if "scene" in name else f"wrapper_{name}"
    ]
    assert model.dimension == theirs.shape[-1]
    assert model.weights == "mn04" and model.sample_rate == 32_000
    agree(ours, theirs)


def test_mel_averages_come_first():
    variables, clips = random("mn01"), wave(samples=8000)
    with_mel, without = (
        jax.jit(
            functools.partial(
                efficientat.embed_scene, mel=mel, form="convolution"
            )
        )(variables, clips)
        for mel in (True, False)
    )
    averages = efficientat.front_end(clips).mean(axis=-1)
    np.testing.assert_allclose(with_mel[:, :128], averages, atol=1e-4)
    agree(with_mel[:, 128:], without)


@pytest.mark.parametrize("samples", [2561, 5000, 16_000, 16_123])
def test_shared_frames_are_the_windows_own(samples):
    """Against the front end of every window by itself."""
    clips = wave(samples=samples)
    half = efficientat.WINDOW // 2
    padded = np.pad(clips, ((0, 0), (half, half)), mode="reflect")
    view = np.lib.stride_tricks.sliding_window_view(padded, 2 * half, axis=1)
    cut = view[:, :: efficientat.HOP]
    ours = jax.jit(window_mels)(clips)
    assert ours.shape[1] == efficientat.windows(samples) == cut.shape[1]
    own = efficientat.front_end(jnp.asarray(cut.reshape(-1, 2 * half)))
    np.testing.assert_allclose(ours.reshape(own.shape), own, atol=1e-4)


def test_silence():
    quiet = efficientat.front_end(jnp.zeros((1, 8000)))
    np.testing.assert_allclose(quiet, -1.4026, atol=1e-4)
    windows = efficientat.windowed_front_end(jnp.zeros((1, 8000)))
    np.testing.assert_allclose(windows, -1.4026, atol=1e-4)


@pytest.mark.parametrize(
    "function", [efficientat.embed, efficientat.embed_scene]
)
def test_gradients_are_finite_on_silence(function):
    variables = random("mn01")
    clips = wave(samples=8000)
    clips = clips.at[1].set(0)

    def loss(clips):
        return function(variables, clips, mel=True, form="convolution").sum()

    gradient = jax.jit(jax.grad(loss))(clips)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0


@pytest.mark.parametrize(
    "function", [efficientat.embed, efficientat.embed_scene]
)
def test_forms_and_chunks_agree(function):
    """Odd map sizes too: 8,123 samples make 26 frames, 13, 7, 4, 2."""
    variables = random("mn02")
    clips = wave(3, 8123)
    shift, convolution = (
        jax.jit(functools.partial(function, form=form, at_once=at_once))(
            variables, clips
        )
        for form, at_once in (("shift", 2), ("convolution", 0))
    )
    agree(shift, convolution)


def test_bfloat16_is_near():
    clips = wave()
    exact, rounded = (
        jax.jit(
            functools.partial(
                efficientat.embed, dtype=dtype, form="convolution"
            )
        )(mn04(), clips)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.float32
    error = np.abs(rounded - exact).mean() / np.abs(exact).mean()
    assert 0 < error < 0.05


@pytest.mark.parametrize("name,width", efficientat.WIDTHS.items())
def test_every_width_has_its_shapes(name, width):
    """State-dict names and shapes, scaled from those of mn04."""
    text = shared("golden/mn04_state_dict.txt").read_text().splitlines()
    rows = [line.split("\t")[:2] for line in text if not line.startswith("#")]
    known = {row[0] for row in rows if "tracked" not in row[0]}

    variables = jax.tree.map(
        lambda shape: np.zeros(shape, np.float32),
        efficientat.shapes(width),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    state = efficientat_state(variables, width)
    if width > 0.2:
        assert set(state) == known
    else:
        # Narrow enough that some blocks do not expand, which shifts numbers.
        assert len(state) <= len(known)
    again = from_published(state, width)
    assert jax.tree.map(np.shape, again) == efficientat.shapes(width)
    assert efficientat.width_of(variables) == width

    # Millions of parameters as published for the models.
    published = {
        "mn04": 0.983,
        "mn05": 1.43,
        "mn10": 4.88,
        "mn20": 17.91,
        "mn30": 39.09,
        "mn40": 68.43,
    }
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    if name in published:
        assert abs(count / 1e6 - published[name]) < 0.005
    if name == "mn04":
        assert count == 983_599
    outputs = {"mn04": 192, "mn20": 944}
    plain, mel = audio.get(name), audio.get(f"{name}_mel")
    assert mel.dimension == plain.dimension + 128
    if name in outputs:
        assert plain.dimension == outputs[name]


@pytest.mark.parametrize("name,width", efficientat.WIDTHS.items())
def test_every_width_embeds(name, width):
    variables = jax.eval_shape(
        functools.partial(efficientat.init, width=width), jax.random.key(0)
    )
    clips = jax.ShapeDtypeStruct((2, 8000), jnp.float32)
    for suffix in ("_mel", "_scene"):
        model = audio.get(name + suffix)
        out = jax.eval_shape(model.embed, variables, clips)
        assert out.shape == (2, model.dimension)


def test_fold_is_batch_normalisation():
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32),
        random("mn01"),
    )
    layer = variables["params"]["block_03"]["project"]
    statistics = variables["batch_stats"]["block_03"]["project"]
    x = jnp.asarray(wave(5, layer["kernel"].shape[0]))
    y = (x @ layer["kernel"] - statistics["mean"]) / jnp.sqrt(
        statistics["var"] + 1e-3
    )
    y = y * layer["scale"] + layer["bias"]
    folded = efficientat.fold(variables)["block_03"]["project"]
    np.testing.assert_allclose(
        x @ folded["kernel"] + folded["bias"], y, rtol=1e-4, atol=1e-5
    )


def test_bad_input_is_named():
    variables = random("mn01")
    with pytest.raises(ValueError, match="2560 samples is too short"):
        efficientat.embed(variables, jnp.zeros((1, 2560)))
    with pytest.raises(ValueError, match="513 samples is too short"):
        efficientat.embed_scene(variables, jnp.zeros((1, 513)))
    broken = {**variables, "params": dict(variables["params"])}
    del broken["params"]["stem"]
    with pytest.raises(ValueError, match=r"datasets\.weights"):
        efficientat.embed(broken, jnp.zeros((1, 8000)))


def test_wrong_weights_are_named():
    variables = random("mn01")
    state = efficientat_state(variables, 0.1)
    with pytest.raises(ValueError, match=r"width 0\.4"):
        from_published(state, 0.4)
    lacking = {n: a for n, a in state.items() if n != "features.0.0.weight"}
    with pytest.raises(ValueError, match=re.escape("'features.0.0.weight'")):
        from_published(lacking, 0.1)
    with pytest.raises(ValueError, match="'extra'"):
        from_published({**state, "extra": np.zeros(1)}, 0.1)
    bent = {**state, "classifier.5.bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"'classifier\.5\.bias'"):
        from_published(bent, 0.1)
