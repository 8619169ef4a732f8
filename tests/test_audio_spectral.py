import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.signal

from proxy.audio import spectral


def noise(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def reference_stft(audio, window, fft_size, hop):
    """Frame by frame in float64."""
    spare = fft_size - len(window)
    window = np.pad(window, (spare // 2, spare - spare // 2))
    audio = np.pad(audio.astype(np.float64), fft_size // 2, mode="reflect")
    starts = range(0, len(audio) - fft_size + 1, hop)
    return np.stack(
        [np.fft.rfft(audio[s : s + fft_size] * window) for s in starts]
    )


@pytest.mark.parametrize("size", [2, 9, 800])
@pytest.mark.parametrize("periodic", [True, False])
def test_hann_agrees_with_scipy(size, periodic):
    ours = spectral.hann(size, periodic=periodic)
    theirs = scipy.signal.get_window("hann", size, fftbins=periodic)
    np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize(
    "samples,size,hop",
    [(100, 16, 8), (101, 16, 5), (16, 16, 7), (50, 10, 10), (50, 4, 9)],
)
def test_frames_agree_with_a_sliding_window(samples, size, hop):
    audio = noise(2, 3, samples)
    ours = spectral.frames(jnp.asarray(audio), size, hop)
    view = np.lib.stride_tricks.sliding_window_view(audio, size, axis=-1)
    np.testing.assert_array_equal(ours, view[:, :, ::hop])


def test_frames_refuse_short_audio():
    with pytest.raises(ValueError, match="9 samples is shorter"):
        spectral.frames(jnp.zeros((1, 9)), 10, 5)


@pytest.mark.parametrize(
    "fft_size,hop,window_size",
    [(512, 256, 512), (1024, 320, 800), (1024, 120, 600), (512, 50, 241)],
)
def test_stft_agrees_with_numpy(fft_size, hop, window_size):
    audio, window = noise(2, 5000), spectral.hann(window_size)
    ours = spectral.stft(jnp.asarray(audio), window, fft_size=fft_size, hop=hop)
    theirs = [reference_stft(row, window, fft_size, hop) for row in audio]
    assert ours.shape == (2, 1 + 5000 // hop, fft_size // 2 + 1)
    np.testing.assert_allclose(ours, np.stack(theirs), atol=2e-4)


def test_stft_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="more than 512 samples"):
        spectral.stft(
            jnp.zeros((1, 512)), spectral.hann(1024), fft_size=1024, hop=256
        )
    with pytest.raises(ValueError, match="does not fit"):
        spectral.stft(
            jnp.zeros((1, 5000)), spectral.hann(1025), fft_size=1024, hop=256
        )


@pytest.mark.parametrize("scale", ["htk", "slaney", "kaldi"])
def test_mel_scale_round_trip_and_anchor(scale):
    hz = np.linspace(0, 16_000, 1001)
    mel = spectral.hz_to_mel(hz, scale)
    assert np.all(np.diff(mel) > 0)
    np.testing.assert_allclose(spectral.mel_to_hz(mel, scale), hz, atol=1e-8)
    # 1 kHz is 1,000 mel (15 in Slaney's units).
    anchor = 15 if scale == "slaney" else 1000
    np.testing.assert_allclose(
        spectral.hz_to_mel(1000.0, scale), anchor, rtol=1e-4
    )


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_mel_bank_triangles(scale):
    bank = spectral.mel_bank(
        40,
        sample_rate=16_000,
        fft_size=4096,
        low=50.0,
        high=7000.0,
        scale=scale,
    )
    corners = spectral.mel_to_hz(
        np.linspace(
            spectral.hz_to_mel(50.0, scale),
            spectral.hz_to_mel(7000.0, scale),
            42,
        ),
        scale,
    )
    hz = np.fft.rfftfreq(4096, 1 / 16_000)
    for band in range(40):
        triangle = np.interp(hz, corners[band : band + 3], [0, 1, 0])
        np.testing.assert_allclose(bank[:, band], triangle, atol=1e-6)


def test_mel_bank_area_norm():
    def bank(area_norm):
        return spectral.mel_bank(
            20,
            sample_rate=16_000,
            fft_size=16_384,
            low=0.0,
            high=8000.0,
            scale="slaney",
            area_norm=area_norm,
        )

    area = bank(True).sum(0) * 16_000 / 16_384
    np.testing.assert_allclose(area, 1, rtol=1e-2)
    assert bank(False).max() == pytest.approx(1, rel=2e-2)


def test_kaldi_bank_has_no_nyquist_bin():
    bank = spectral.mel_bank(
        128,
        sample_rate=32_000,
        fft_size=1024,
        low=0.0,
        high=16_000.0,
        scale="kaldi",
    )
    assert bank.shape == (513, 128)
    assert not bank[-1].any()
    assert not bank[0].any()


def test_dct_agrees_with_scipy():
    bands = noise(7, 128)
    theirs = np.asarray(scipy.fft.dct(bands, type=2, norm="ortho"))[:, :40]
    np.testing.assert_allclose(bands @ spectral.dct(128, 40), theirs, atol=1e-5)
    with pytest.raises(ValueError, match="cosine"):
        spectral.dct(10, 11)


def test_pre_emphasis():
    audio = noise(2, 50)
    theirs = np.asarray(scipy.signal.lfilter([1, -0.97], [1], audio))[:, 1:]
    ours = spectral.pre_emphasis(jnp.asarray(audio))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("at_once", [None, 0, 1, 2, 3, 7, 9])
def test_by_clip_changes_nothing(at_once):
    audio = jnp.asarray(noise(7, 20))

    def function(clips):
        return jnp.cumsum(clips, axis=-1)[:, ::4]

    ours = spectral.by_clip(function, audio, at_once)
    np.testing.assert_allclose(ours, function(audio), rtol=1e-6)


def test_gradients_are_finite_on_silence():
    def loss(audio):
        spectrum = spectral.stft(audio, spectral.hann(64), fft_size=64, hop=32)
        return spectral.decibels(spectral.power(spectrum)).sum()

    gradient = jax.grad(loss)(jnp.zeros((2, 500)))
    np.testing.assert_array_equal(gradient, 0)
