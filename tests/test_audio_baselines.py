import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.signal

from proxy import audio
from proxy.audio import averages, spectral

RATE = 44_100


def clips(batch=3, samples=RATE):
    """A tone, noise that fades, and near silence."""
    time = np.arange(samples) / RATE
    rng = np.random.default_rng(0)
    rows = [
        0.3 * np.sin(2 * np.pi * 261.6 * time),
        rng.standard_normal(samples) * np.exp(-3 * time) * 0.2,
        1e-6 * rng.standard_normal(samples),
    ]
    return np.stack(rows[:batch]).astype(np.float32)


def reference_power(row, size):
    window = np.asarray(scipy.signal.get_window("hann", size))
    padded = np.pad(row.astype(np.float64), size // 2, mode="reflect")
    slices = np.lib.stride_tricks.sliding_window_view(padded, size)
    frames = slices[:: size // 2] * window / np.linalg.norm(window)
    return np.abs(np.fft.rfft(frames)) ** 2


def reference_bank():
    corners = 700 * (
        10
        ** (
            np.linspace(np.log10(1 + 20 / 700), np.log10(1 + 16_000 / 700), 130)
        )
        - 1
    )
    hz = np.fft.rfftfreq(2048, 1 / RATE)
    return np.stack(
        [np.interp(hz, corners[i : i + 3], [0, 1, 0]) for i in range(128)]
    )


def reference_scale(power):
    decibels = 10 * np.log10(np.maximum(power, 1e-8))
    return (decibels + 4.2677393) / 4.5689974


def reference(name, row):
    if name == "mstft":
        return np.concatenate(
            [
                reference_scale(reference_power(row, size)).mean(0)
                for size in (512, 1024, 2048)
            ]
        )
    bands = reference_scale(reference_power(row, 2048) @ reference_bank().T)
    if name == "mfcc40":
        bands = np.asarray(scipy.fft.dct(bands, norm="ortho"))[:, :40]
    return bands.mean(0)


@pytest.mark.parametrize("name", ["mel128", "mfcc40", "mstft"])
def test_agrees_with_a_float64_reference(name):
    model = audio.get(name)
    wave = clips()
    ours = jax.jit(model.embed)({}, wave)
    theirs = np.stack([reference(name, row) for row in wave])
    assert ours.shape == (3, model.dimension)
    assert model.sample_rate == RATE and model.weights is None
    np.testing.assert_allclose(ours, theirs, atol=5e-4)


@pytest.mark.parametrize("name", ["mel128", "mfcc40", "mstft"])
def test_gradients_are_finite(name):
    model = audio.get(name)
    wave = clips(samples=4000)
    wave[2] = 0
    gradient = jax.grad(lambda x: model.embed({}, x).sum())(jnp.asarray(wave))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0
    np.testing.assert_array_equal(gradient[2], 0)


@pytest.mark.parametrize("at_once", [0, 1, 2])
def test_batch_and_chunks_do_not_matter(at_once):
    wave = clips()
    ours = averages.mel128(jnp.asarray(wave), at_once=at_once)
    alone = averages.mel128(jnp.asarray(wave[1:2]))
    np.testing.assert_allclose(ours[1], alone[0], atol=1e-5)


def test_silence_is_the_floor():
    silent = averages.mel128(jnp.zeros((1, 5000)))
    np.testing.assert_allclose(silent, (-80 + 4.2677393) / 4.5689974, rtol=1e-6)


def test_registry():
    assert {"mel128", "mfcc40", "mstft"} <= set(audio.names())
    with pytest.raises(ValueError, match="mel128"):
        audio.get("mel12")


def test_short_clip_is_refused():
    with pytest.raises(ValueError, match="more than 1024 samples"):
        averages.mel128(jnp.zeros((1, 1024)))


def test_mel128_uses_the_documented_bank():
    bank = spectral.mel_bank(
        128, sample_rate=RATE, fft_size=2048, low=20.0, high=16_000.0
    )
    np.testing.assert_allclose(bank.T, reference_bank(), atol=1e-5)
