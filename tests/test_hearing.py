"""Sounds at another note, and held for another time."""

import jax
import numpy as np
import pytest

from datasets import engines
from matching.hearing import shorten, transpose
from proxy import audio, spaces

RATE = 32_000


@pytest.mark.parametrize("semitones", [-24, -12, -5, 0.5, 7, 12, 24])
def test_a_tone_moves_and_keeps_its_level_and_length(semitones):
    time = np.arange(RATE * 2 + 1) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    # It ends early: so must what comes of it.
    tone[RATE:] = 0
    found = transpose(tone, semitones)
    assert found.dtype == np.float32 and len(found) == len(tone)
    middle = found[RATE // 4 : 3 * RATE // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 8 * RATE))
    frequency = spectrum.argmax() / 8
    assert frequency == pytest.approx(440 * 2 ** (semitones / 12), rel=2e-3)
    assert np.square(middle).mean() == pytest.approx(0.125, rel=0.01)
    assert np.abs(found[RATE * 9 // 8 :]).max() < 0.01


def test_a_note_is_released_earlier_and_sounds_on_as_it_did():
    time = np.arange(4 * RATE) / RATE
    tone = np.sin(2 * np.pi * 100 * time) * np.where(
        time < 3, 1, np.exp(-5 * (time - 3))
    )
    found = shorten(tone.astype(np.float32), RATE, 3.0, 2.0)
    assert found.dtype == np.float32 and len(found) == len(tone)
    np.testing.assert_allclose(found[: 2 * RATE - 640], tone[: 2 * RATE - 640])
    np.testing.assert_allclose(found[2 * RATE : 3 * RATE], tone[3 * RATE :])
    assert not found[3 * RATE :].any()
    # The period divides what was cut: nothing is heard of the seam.
    seam = slice(2 * RATE - 640, 2 * RATE)
    np.testing.assert_allclose(found[seam], tone[seam], atol=1e-4)
    for hold, wanted in ((2.0, 2.0), (1.0, 2.0), (9.0, 5.0)):
        kept = shorten(tone.astype(np.float32), RATE, hold, wanted)
        np.testing.assert_array_equal(kept, tone.astype(np.float32))


def test_what_would_lie_beyond_the_spectrum_is_left_out():
    time = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 12_000 * time).astype(np.float32)
    assert np.abs(transpose(tone, 12)[2048:-2048]).max() < 0.01


def test_silence_short_sounds_and_no_move():
    sound = np.random.default_rng(0).normal(size=300).astype(np.float32)
    np.testing.assert_array_equal(transpose(sound, 0), sound)
    assert np.isfinite(transpose(sound, 3)).all()
    assert not transpose(0 * sound, -7).any()


def test_a_moved_voice_is_near_to_what_is_played_there():
    space = spaces.get("dexed")
    settings = engines.RenderSettings(duration=2.0, hold=1.0)
    presets = np.asarray(space.sample(jax.random.key(0), (24,)))
    engine = engines.get("dexed", settings)
    values = np.asarray(space.to_plugin(presets), np.float32)
    high, middle = (
        engine.render_batch(values, [note] * 24)[0] for note in (67, 60)
    )
    embed = jax.jit(lambda x: audio.get("transport640").embed({}, x))
    moved = np.stack([transpose(sound, -7) for sound in high])
    goal = embed(middle)
    before, after = (
        np.abs(np.asarray(embed(x) - goal)).mean() for x in (high, moved)
    )
    assert after < before / 2
