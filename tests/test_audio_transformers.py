"""PaSST and AudioMAE, against a forward pass in NumPy.

The forward passes here read the published tensors by their published names
and layouts; ours get them through `proxy.published.vit`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from datasets.weights import published as weights
from proxy import audio
from proxy.audio import audiomae, efficientat, passt, vit
from proxy.published import vit as published

WIDTH = 128  # two heads
RNG = np.random.default_rng(0)


def tensor(*shape):
    return RNG.normal(0, 0.1, shape).astype(np.float32)


def blocks(depth):
    """Published tensors of the patch embedding and the blocks."""
    state = {
        "patch_embed.proj.weight": tensor(WIDTH, 1, 16, 16),
        "patch_embed.proj.bias": tensor(WIDTH),
    }
    for number in range(depth):
        for name, outputs, inputs in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            state[f"blocks.{number}.{name}.weight"] = tensor(outputs, inputs)
            state[f"blocks.{number}.{name}.bias"] = tensor(outputs)
        for name in ("norm1", "norm2"):
            state |= norm(f"blocks.{number}.{name}")
    return state


def norm(name):
    return {f"{name}.weight": 1 + tensor(WIDTH), f"{name}.bias": tensor(WIDTH)}


@functools.cache
def passt_state(depth=2):
    return {
        "cls_token": tensor(1, 1, WIDTH),
        "dist_token": tensor(1, 1, WIDTH),
        "new_pos_embed": tensor(1, 2, WIDTH),
        "freq_new_pos_embed": tensor(1, WIDTH, 12, 1),
        "time_new_pos_embed": tensor(1, WIDTH, 1, 99),
        **blocks(depth),
        **norm("norm"),
        **norm("head.0"),
        "head.1.weight": tensor(527, WIDTH),
        "head.1.bias": tensor(527),
        "head_dist.weight": tensor(527, WIDTH),
        "head_dist.bias": tensor(527),
    }


@functools.cache
def audiomae_state(depth=3):
    return {
        "cls_token": tensor(1, 1, WIDTH),
        "pos_embed": tensor(1, 513, WIDTH),
        **blocks(depth),
        **norm("fc_norm"),
        "head.weight": tensor(527, WIDTH),
        "head.bias": tensor(527),
    }


# The independent forward pass, in float64, a clip at a time.


def layer_norm(state, name, x):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state, name, x):
    weight = state[f"{name}.weight"].astype(np.float64)
    return np.einsum("oi,ti->to", weight, x) + state[f"{name}.bias"]


def patches(state, image, stride):
    """[rows, columns, width]"""
    weight = state["patch_embed.proj.weight"][:, 0].astype(np.float64)
    view = np.lib.stride_tricks.sliding_window_view(image, (16, 16))
    view = view[::stride, ::stride]
    found = np.einsum("rchw,ohw->rco", view, weight)
    return found + state["patch_embed.proj.bias"]


def run_block(state, number, x):
    name = f"blocks.{number}"
    qkv = linear(
        state, f"{name}.attn.qkv", layer_norm(state, f"{name}.norm1", x)
    )
    outputs = []
    for head in range(WIDTH // 64):
        q, k, v = (
            qkv[:, part * WIDTH + head * 64 :][:, :64] for part in range(3)
        )
        scores = special.softmax(q @ k.T / 8, axis=1)
        outputs.append(scores @ v)
    x = x + linear(state, f"{name}.attn.proj", np.concatenate(outputs, axis=1))
    y = linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", x))
    y = y * special.ndtr(y)  # GELU
    return x + linear(state, f"{name}.mlp.fc2", y)


def passt_features(state, mel):
    """Of [mels, frames]."""
    tokens = patches(state, mel, 10)
    tokens = tokens + state["freq_new_pos_embed"][0, :, :, 0].T[:, None]
    tokens = tokens + state["time_new_pos_embed"][0, :, 0].T[: tokens.shape[1]]
    first = [
        state[name][0, 0] + state["new_pos_embed"][0, i]
        for i, name in enumerate(("cls_token", "dist_token"))
    ]
    x = np.concatenate([first, tokens.reshape(-1, WIDTH)])
    for number in range(2):
        x = run_block(state, number, x)
    x = layer_norm(state, "norm", x)
    return (x[0] + x[1]) / 2


def audiomae_features(state, image, depth, context):
    """Of [1024, 128]."""
    tokens = patches(state, image, 16).reshape(-1, WIDTH)
    x = np.concatenate([state["cls_token"][0], tokens]) + state["pos_embed"][0]
    outputs = []
    for number in range(depth):
        x = run_block(state, number, x)
        if number >= context:
            outputs.append(layer_norm(state, "fc_norm", x))
    return np.mean(outputs, axis=0)[1:]


def agree(ours, theirs, tolerance=1e-4):
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def clip(samples, seed=0):
    rng = np.random.default_rng(seed)
    tone = np.sin(np.arange(samples) * 0.1 * np.linspace(1, 2, samples))
    noise = rng.normal(0, 0.05, samples)
    return (0.3 * tone + 0.02 + noise).astype(np.float32)


# PaSST


@functools.cache
def small_passt():
    return published.passt_variables(passt_state(), 2, WIDTH)


@pytest.mark.parametrize("frames", [16, 79])
def test_passt_network(frames):
    mel = np.random.default_rng(1).normal(0, 1, (2, 128, frames))
    theirs = np.stack([passt_features(passt_state(), one) for one in mel])
    features = jax.jit(passt.features)
    agree(features(small_passt(), mel.astype(np.float32)), theirs)


def test_passt_embedding_is_the_mean_over_windows(monkeypatch):
    """With the mean over frames in place of the network's features."""

    def features(variables, mel, *, dtype):
        assert variables == {} and dtype == jnp.float32
        return mel.mean(axis=-1)

    monkeypatch.setattr(passt, "features", features)
    sound = clip(10_301)
    levels = []
    for size in (5120, 20_480, 1920):
        padded = np.pad(sound, size // 2, mode="reflect")
        starts = range(0, len(padded) - size + 1, 1600)
        windows = np.stack([padded[s : s + size] for s in starts])
        mels = np.asarray(jax.jit(efficientat.front_end)(windows))
        assert mels.shape[:2] == (7, 128)
        rows = mels.reshape(7, -1) if size == 1920 else mels.mean(axis=-1)
        levels.append(rows.mean(axis=0))
    ours = jax.jit(passt.embed)({}, sound[None])[0]
    agree(ours, np.concatenate(levels))


def test_passt_lengths():
    variables = small_passt()
    with pytest.raises(ValueError, match="10240 samples is too short"):
        passt.embed(variables, jnp.zeros((1, 10_240)))
    for frames in (15, 1006):
        with pytest.raises(ValueError, match="16 to 1,005 frames"):
            passt.features(variables, jnp.zeros((1, 128, frames)))


# AudioMAE


@functools.cache
def small_audiomae():
    return published.audiomae_variables(audiomae_state(), 3, WIDTH)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_filter_bank_is_kaldis(rate):
    """Frame by frame, band by band."""
    sound = clip(rate // 10)
    size, hop = rate * 25 // 1000, rate // 100
    fft_size = {16_000: 512, 44_100: 2048}[rate]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))

    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    edges = mel(20.0) + (mel(rate / 2) - mel(20.0)) / 129 * np.arange(130)
    bins = mel(np.arange(fft_size // 2) * rate / fft_size)
    rows = []
    for start in range(0, len(sound) - size + 1, hop):
        frame = sound[start : start + size].astype(np.float64)
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.fft(frame * window, fft_size))[: fft_size // 2]
        bands = [
            np.interp(bins, edges[i : i + 3], [0, 1, 0]) @ power**2
            for i in range(128)
        ]
        rows.append(np.log(np.maximum(bands, 1.1920929e-07)))
    ours = jax.jit(audiomae.filter_bank, static_argnums=1)(sound[None], rate)
    assert ours.shape == (1, len(rows), 128)
    np.testing.assert_allclose(ours[0], rows, atol=5e-3)


def test_audiomae_embedding_is_the_mean_over_patches():
    """One second, so that most of the patches are empty."""
    sound = clip(44_100)
    bands = np.asarray(
        jax.jit(audiomae.filter_bank, static_argnums=1)(
            (sound - sound.mean())[None], 44_100
        )
    )[0]
    image = np.zeros((1024, 128))
    image[: len(bands)] = bands
    image = (image + 4.2677393) / (2 * 4.5689974)
    theirs = audiomae_features(audiomae_state(), image, 3, 1).mean(axis=0)
    embed = jax.jit(functools.partial(audiomae.embed, context=1))
    agree(embed(small_audiomae(), sound[None])[0], theirs, 1e-3)


def test_pretrained_and_finetuned_names():
    state = {
        name.replace("fc_norm", "norm"): array
        for name, array in audiomae_state().items()
        if not name.startswith("head")
    }
    state["mask_token"] = tensor(1, 1, 512)
    state["decoder_blocks.0.norm1.weight"] = tensor(512)
    again = published.audiomae_variables(state, 3, WIDTH)
    jax.tree.map(np.testing.assert_array_equal, again, small_audiomae())


# Both


@pytest.mark.parametrize(
    "name, rate, dimension",
    [
        ("passt_s", 32_000, 2304),
        ("passt_s_scene", 32_000, 768),
        ("passt_l", 32_000, 2304),
        ("passt_l_scene", 32_000, 768),
        ("audiomae", 44_100, 768),
        ("audiomae_16k", 16_000, 768),
    ],
)
def test_registry(name, rate, dimension):
    model = audio.get(name)
    assert (model.sample_rate, model.dimension) == (rate, dimension)
    assert model.differentiable and model.weights in weights.PUBLISHED
    assert model.init is not None
    variables = jax.eval_shape(model.init, jax.random.key(0))
    clips = jax.ShapeDtypeStruct((3, 5 * rate), np.float32)
    out = jax.eval_shape(model.embed, variables, clips)
    assert out.shape == (3, dimension)


def test_parameter_counts():
    def count(shapes):
        return sum(
            int(np.prod(shape))
            for shape in jax.tree.leaves(
                shapes, is_leaf=lambda node: isinstance(node, tuple)
            )
        )

    head = 768 * 527 + 527
    # PaSST with both heads: 86 and 50 million, as the released code counts.
    heads = 2 * head + 2 * 768
    assert count(passt.shapes(12)) + heads == 86_153_758
    assert count(passt.shapes(7)) + heads == 50_714_398
    # AudioMAE's training log says so, fixed position embeddings left out.
    fixed = 513 * 768
    assert count(audiomae.shapes()) - fixed + head == 85_659_407


def test_gradient_is_finite_on_silence():
    sound = np.stack([clip(1600), np.zeros(1600, np.float32)])

    @jax.jit
    @jax.grad
    def gradient(sound):
        return audiomae.filter_bank(sound, 16_000).sum()

    found = gradient(sound)
    assert np.isfinite(found).all() and np.abs(found[0]).max() > 0


def test_bfloat16_is_near():
    blocks = small_passt()["params"]["blocks"]
    tokens = np.random.default_rng(3).normal(0, 1, (1, 5, WIDTH))
    exact, rounded = (
        jax.jit(vit.run)(blocks, jnp.asarray(tokens, dtype))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.bfloat16
    error = np.abs(rounded - exact).mean() / np.abs(exact).mean()
    assert 0 < error < 0.05


def test_wrong_weights_are_named():
    state = passt_state()
    with pytest.raises(ValueError, match=r"'blocks\.2\.norm1.*7 blocks"):
        published.passt_variables(state, 7, WIDTH)
    with pytest.raises(ValueError, match="'extra'"):
        published.passt_variables({**state, "extra": tensor(1)}, 2, WIDTH)
    for name, bad in (
        ("blocks.1.attn.qkv.weight", tensor(3, 4)),
        ("patch_embed.proj.weight", tensor(WIDTH, 256)),
        ("time_new_pos_embed", tensor(1, WIDTH, 1, 98)),
    ):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            published.passt_variables({**state, name: bad}, 2, WIDTH)
    with pytest.raises(ValueError, match="AudioMAE encoder of 12"):
        published.audiomae_variables(audiomae_state())
