"""The batched DX7 engine: bit for bit what dexed-py renders."""

import dexed
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from datasets.engines import dexed as engine
from datasets.presets import reading
from proxy import spaces
from proxy.synths import dx7, output
from tests.shared import shared

SPACE = spaces.get("dexed")
DURATION = 0.3


def expected(voices, notes, velocities, holds, rate):
    synth = dexed._RawDexedSynth(float(rate), 0)
    samples = round(DURATION * rate)
    sounds = []
    for voice, note, velocity, hold in zip(
        voices, notes, velocities, holds, strict=True
    ):
        synth.load_sysex(engine._silence_switched_off(voice))
        sound = synth.render(
            int(note), int(velocity), float(hold), (samples + 0.5) / rate
        )
        sounds.append(sound[:samples])
    return np.stack(sounds)


def check(voices, rate=32_000, seed=0):
    rng = np.random.default_rng(seed)
    count = len(voices)
    notes, velocities = (
        rng.integers(24, 109, count),
        rng.integers(1, 128, count),
    )
    holds = rng.uniform(0.05, 0.25, count).astype(np.float32)
    ours = dx7.render(
        jnp.asarray(voices),
        note=jnp.asarray(notes),
        velocity=jnp.asarray(velocities),
        hold=jnp.asarray(holds),
        duration=DURATION,
        sample_rate=rate,
    )
    theirs = expected(voices, notes, velocities, holds, rate)
    np.testing.assert_array_equal(np.asarray(ours), theirs)


@pytest.fixture(scope="module")
def bank():
    presets = reading.load(shared("presets/dx7_voices.bin"), SPACE).presets
    rows = np.random.default_rng(1).choice(len(presets), 128, replace=False)
    return engine.to_voices(np.asarray(SPACE.to_plugin(presets[rows])), SPACE)


def test_real_voices(bank):
    check(bank)


def test_every_algorithm_and_feedback(bank):
    voices = np.resize(bank, (128, 156)).copy()
    voices[:, 134] = np.arange(128) % 32
    voices[:, 135] = np.arange(128) // 16
    voices[::5, 155] = np.arange(26) + 33  # some operators are off
    check(voices, seed=2)


def test_the_dc_blocker_is_the_plug_ins():
    sound = np.random.default_rng(0).normal(size=(2, 5_000)).astype(np.float32)
    pole = np.float32(1 - 126 / 32_000)
    wanted = signal.lfilter([1, -1], [1, -pole], sound.astype(np.float64))
    found = output.dc_block(jnp.asarray(sound), 32_000)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
