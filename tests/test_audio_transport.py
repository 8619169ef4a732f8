import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from proxy import audio
from proxy.audio import transport

RATE = transport.SAMPLE_RATE
MODEL = audio.get("transport640")
PARTS = {
    "spectrum": slice(0, 128),
    "frequency": slice(128, 256),
    "time": slice(256, 512),
    "flux": slice(512, 640),
}


_embed = jax.jit(MODEL.embed)


def embed(rows):
    return np.asarray(_embed({}, np.asarray(rows, np.float32)))


def tone(pitch=220.0, seconds=1.0, rate=0.0, depth=0.0, decay=0.0):
    """A band-limited sawtooth with a tremolo, in [-0.3, 0.3]."""
    time = np.arange(round(seconds * RATE)) / RATE
    harmonics = np.arange(1, 30)
    wave = np.sin(2 * np.pi * pitch * np.outer(harmonics, time))
    wave = (wave / harmonics[:, None]).sum(0)
    tremolo = 1 - depth * (0.5 - 0.5 * np.cos(2 * np.pi * rate * time))
    return 0.15 * wave * tremolo * np.exp(-decay * time)


def clips():
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    noise = rng.standard_normal(RATE) * np.exp(-3 * time) * 0.2
    return np.stack([tone(), noise, 1e-6 * noise]).astype(np.float32)


def reference(row):
    """The definition, in float64, by other means."""
    window = np.asarray(scipy.signal.get_window("hann", 1024))
    padded = np.pad(row.astype(np.float64), 512, mode="reflect")
    slices = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::512]
    power = np.abs(np.fft.rfft(slices * window)) ** 2 / (window**2).sum()
    corners = 700 * (
        10
        ** np.linspace(np.log10(1 + 20 / 700), np.log10(1 + 16_000 / 700), 130)
        - 1
    )
    hz = np.fft.rfftfreq(1024, 1 / RATE)
    bands = np.stack(
        [
            power @ np.interp(hz, corners[i : i + 3], [0, 1, 0])
            for i in range(128)
        ],
        axis=1,
    )
    frames = len(bands)
    mean = bands.mean(0)
    weight = (mean + 1e-8) ** 0.3
    groups = np.maximum(bands.reshape(frames, 16, 8).sum(-1), 1e-7) ** 0.15
    grown = np.concatenate([np.zeros((1, 16)), np.cumsum(groups, 0)]) / frames
    ends = frames * np.arange(1, 17) / 16
    growth = [
        np.interp(ends, np.arange(frames + 1), grown[:, g]) for g in range(16)
    ]
    change = np.abs(np.diff(np.maximum(bands, 1e-7) ** 0.3, axis=0)).mean(0)
    return np.concatenate(
        [
            (10 * np.log10(np.maximum(mean, 1e-6)) + 45) / 12,
            8 * (np.cumsum(weight) / weight.sum() - 0.7),
            4 * (np.concatenate(growth) - 0.15),
            18 * (np.sqrt(change + 1e-6) - 0.05),
        ]
    )


def test_agrees_with_a_float64_reference():
    wave = clips()
    ours = embed(wave)
    assert ours.shape == (3, MODEL.dimension)
    theirs = np.stack([reference(row) for row in wave])
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_registered():
    assert MODEL.sample_rate == 32_000 and MODEL.weights is None
    assert MODEL.dimension == 640 < 1000


def test_gradients_are_finite_and_reach_the_sound():
    wave = clips()[:, :4000]
    wave[2] = 0

    def total(x):
        return MODEL.embed({}, x).sum()

    gradient = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(wave)))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[:2]).max(axis=1).min() > 0


@pytest.mark.parametrize("at_once", [0, 1, 2])
def test_batch_and_chunks_do_not_matter(at_once):
    wave = jnp.asarray(clips())
    together = jax.jit(lambda x: transport.transport640(x, at_once=at_once))
    alone = embed(wave[1:2])
    np.testing.assert_allclose(together(wave)[1], alone[0], atol=1e-5)


def test_a_longer_recording_of_the_same_sound_embeds_alike():
    short, long = (embed([tone(seconds=s)])[0] for s in (1.0, 3.0))
    other = embed([tone(pitch=277.2)])[0]
    assert np.abs(short - long).mean() < np.abs(short - other).mean() / 3


@pytest.mark.parametrize("seconds", [0.04, 0.5, 12.0])
def test_any_length(seconds):
    embedding = embed([tone(seconds=seconds)])
    assert embedding.shape == (1, 640)
    assert np.isfinite(embedding).all()


def test_too_short_is_refused():
    with pytest.raises(ValueError, match="more than 512 samples"):
        transport.transport640(jnp.zeros((1, 512)))


def test_silence_has_an_embedding_of_its_own():
    silent = embed(np.zeros((1, RATE)))[0]
    # A straight line: no frequency has more than its share.
    np.testing.assert_allclose(
        np.diff(silent[PARTS["frequency"]]), 8 / 128, rtol=1e-3
    )
    assert np.abs(silent - embed([tone()])[0]).mean() > 0.5


def test_level_is_heard():
    levels = [tone() * gain for gain in 10 ** np.linspace(-1, 0, 6)]
    found = embed(levels)
    distances = np.abs(found - found[0]).mean(1)
    assert (np.diff(distances) > 0.03).all()


SWEEPS = {
    # What moves, and the part made for it. The last two steps are still
    # further apart than the first: nothing saturates.
    "pitch": ("frequency", [tone(pitch=110 * 2**o) for o in (0, 1, 2, 3)]),
    "decay": ("time", [tone(decay=d) for d in (8, 4, 2, 1)]),
    "tremolo rate": (
        "flux",
        [tone(rate=r, depth=0.8) for r in (1, 2, 4, 8)],
    ),
    "tremolo depth": (
        "flux",
        [tone(rate=5, depth=d) for d in (0.1, 0.4, 0.7, 1.0)],
    ),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_distance_grows_with(name):
    part, sounds = SWEEPS[name]
    found = embed(sounds)
    for columns in (PARTS[part], slice(None)):
        near = np.abs(found - found[0])[:, columns].mean(1)
        assert (np.diff(near) > 0).all()
    steps = np.diff(np.abs(found - found[0])[:, PARTS[part]].mean(1))
    assert steps.min() > steps.max() / 8


def test_parts_weigh_about_the_same():
    rng = np.random.default_rng(1)
    sounds = [
        tone(
            pitch=rng.uniform(100, 500),
            rate=rng.uniform(1, 9),
            depth=rng.uniform(0, 1),
            decay=rng.uniform(0, 5),
        )
        for _ in range(12)
    ]
    found = embed(sounds)
    difference = np.abs(found[:, None] - found[None])
    weights = [difference[..., part].sum() for part in PARTS.values()]
    assert max(weights) < 6 * min(weights)
    assert abs(found.mean()) < 1 and 0.2 < found.std(0).mean() < 2
