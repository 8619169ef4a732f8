"""The JAX engine of the DX7: every sample that of dexed-py, and its stages."""

import dataclasses
import math

import dexed as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datasets import engines
from datasets.engines import dexed
from datasets.presets import reading, sysex
from launch.exactness import cases as exactness
from proxy.audio import transport
from proxy.synths import (
    dx7,
    dx7_control,
    dx7_level,
    dx7_operators,
    dx7_smooth,
    dx7_tables,
    output,
)
from tests import shared

# The others: python -m launch.exactness.
RATES = (16_000, 44_100)
BATCH = 256
# dexed-py's two tables, as the engine fills them.
SINES = dx7_tables.LOG_SINE
EXPONENTIALS = np.floor(
    4096 * (2 ** (np.arange(1024) / 1024) - 1).astype(np.float32) + 0.5
).astype(int)


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Several chunks, and several groups of loops, in a short render."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dx7, "_CHUNK", 64)
        patch.setattr(dx7, "_LANES", (64, 8))
        yield


@pytest.fixture(scope="module")
def cases():
    """512 voices that cover all that a voice can be, in two sample rates."""
    voices = exactness.varied(len(RATES) * BATCH)
    return {
        rate: exactness.draw(
            "varied",
            voices[i * BATCH : (i + 1) * BATCH],
            duration=0.4,
            sample_rate=rate,
            longest=0.3,
        )
        for i, rate in enumerate(RATES)
    }


def _wave(phase, gain):
    """An operator's output by dexed-py's tables."""
    sine = SINES[(phase >> 12) & 4095].astype(np.int64)
    attenuation = (sine & 0x7FFF) + gain
    size = 4096 + EXPONENTIALS[(attenuation & 1023) ^ 1023]
    size = size >> (attenuation >> 10)
    return np.where(sine < 0, -size - 1, size)


# The whole engine -------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_every_sample_is_that_of_dexed_py(cases, rate):
    first, silent = exactness.compare(cases[rate], BATCH)
    wrong = np.flatnonzero(first >= 0)
    assert not len(wrong), f"voices {wrong}, from samples {first[wrong]}"
    assert silent < BATCH // 4


def test_voices_cover_every_case(cases):
    voices = np.concatenate([case.voices for case in cases.values()])
    pairs = {tuple(v) for v in voices[:, [134, 135]]}
    assert pairs == {(a, f) for a in range(32) for f in range(8)}
    lfo = {tuple(v) for v in voices[:, [142, 141]]}
    assert lfo == {(wave, sync) for wave in range(6) for sync in range(2)}
    assert 0.1 < np.mean(voices[:, 155] != 63) < 0.9
    fixed = voices[:, :126].reshape(-1, 6, 21)[..., 17]
    assert 0 < fixed.mean() < 1
    transposed = cases[44_100].note + cases[44_100].voices[:, 144] - 24
    assert transposed.max() > 127


def test_a_voice_does_not_depend_on_its_batch(cases):
    case = cases[44_100]
    sound = exactness.rendered(case, slice(None), BATCH)
    order = np.random.default_rng(0).permutation(BATCH)
    companions = exactness.varied(BATCH, 5)
    companions[::2] = case.voices[order][::2]
    mixed = dataclasses.replace(
        case,
        voices=companions,
        note=case.note[order],
        velocity=case.velocity[order],
        hold=case.hold[order],
    )
    again = exactness.rendered(mixed, slice(None), BATCH)
    np.testing.assert_array_equal(again[::2], sound[order][::2])


def test_a_batch_of_one_and_numbers_for_all(cases):
    case = cases[44_100]
    sound = dx7.render(
        jnp.asarray(case.voices[:1]),
        note=60,
        velocity=100,
        hold=0.05,
        duration=0.1,
        sample_rate=44_100,
    )
    alone = dataclasses.replace(
        case,
        voices=case.voices[:1],
        note=np.array([60]),
        velocity=np.array([100]),
        hold=np.array([0.05], np.float32),
        duration=0.1,
    )
    expected = exactness.played(alone, slice(None))
    np.testing.assert_array_equal(sound, expected)


def test_voices_side_by_side_are_those_one_after_another(cases):
    """What accelerators do with the operators, on the CPU."""
    case, blocks = cases[44_100], 4
    voices = jnp.asarray(case.voices[:16])
    note, velocity = (
        jnp.asarray(case.note[:16]),
        jnp.asarray(case.velocity[:16]),
    )

    @jax.jit
    def both(voices, note, velocity):
        hold = jnp.full(len(voices), 0.01)
        told = dx7_control.note_on(voices, note, velocity, hold, 32_000)
        _, control = dx7_control.control(
            told, dx7_control.start(told), blocks, 32_000
        )
        route = dx7.routing(voices)
        on = jnp.zeros((blocks, len(voices)), bool)
        told = (*control[:4], dx7._sources(control, route, on))
        parts = dx7_operators.Part(*(x.transpose(2, 1, 0) for x in told))
        loops = jnp.zeros((blocks, 1, 64), jnp.int16)
        slot = jnp.zeros(len(voices), jnp.int32)
        silence = jnp.zeros((len(voices), blocks * 64))
        return [
            play(parts, route, loops, slot, silence, jnp.int32(0))
            for play in (dx7._play_heard, dx7._play_all)
        ]

    one, other = both(voices, note, velocity)
    assert np.asarray(one).any()
    np.testing.assert_array_equal(one, other)


# Levels -----------------------------------------------------------------------


def test_the_bound_is_above_the_level(cases):
    case = cases[44_100]
    plain = case.voices.copy()
    operators = plain[:, :126].reshape(-1, 6, 21)
    operators[..., [9, 10, 13, 15]] = 0
    plain[:, 155] = 63
    loud = dataclasses.replace(
        case, voices=plain, hold=np.full(BATCH, 0.2, np.float32)
    )
    bound = np.asarray(
        dx7_level.rms_bound(plain, hold=0.2, duration=case.duration)
    )
    sound = exactness.rendered(loud, slice(None), BATCH)
    level = np.asarray(output.rms(jnp.asarray(sound)))
    # One operator peaks at 2 there, at 1 here. The sum is what is heard when
    # the carriers are in phase.
    assert np.all(level / 2 <= 1.05 * bound)
    assert np.median(level / 2 / bound) > 0.3


def test_no_bound_where_the_note_or_a_switch_matters(cases):
    voices = cases[44_100].voices
    bound = dx7_level.rms_bound(voices, hold=0.2, duration=0.4)
    plain = np.asarray(dx7_level.constant(jnp.asarray(voices)))
    np.testing.assert_array_equal(np.isfinite(bound), plain)
    assert not plain.all()


# Stages -----------------------------------------------------------------------


def test_algorithms_are_those_of_dexed_py():
    for algorithm in range(32):
        matrix = np.array(oracle.get_mod_matrix(algorithm))[::-1, ::-1]
        np.testing.assert_array_equal(dx7_tables.MODULATORS[algorithm], matrix)
        carriers = 5 - np.flatnonzero(dx7_tables.CARRIERS[algorithm])
        assert sorted(carriers) == sorted(oracle.get_carriers(algorithm))
        source, fed = oracle.get_feedback_edge(algorithm)
        assert 5 - dx7_tables.FEEDBACK[algorithm] == source
        assert dx7_tables.LOOP[algorithm] == fed - source + 1


def test_ranges_of_bytes_are_those_of_dexed():
    np.testing.assert_array_equal(dx7_tables.LARGEST, dexed.largest())


def test_polynomials_round_to_every_entry_of_the_tables():
    phase = np.arange(4096, dtype=np.int32) << 12
    logarithm = jax.jit(dx7_operators.log_sine)(phase)
    np.testing.assert_array_equal(
        np.asarray(logarithm) + dx7_operators._LOG_OFFSET, SINES & 0x7FFF
    )
    rng = np.random.default_rng(0)
    phase = rng.integers(-(2**31), 2**31, 2**17).astype(np.int32)
    gain = rng.integers(0, 17_000, 2**17).astype(np.int32)
    expected = _wave(phase, gain)
    for wave in (dx7_operators.wave, dx7_operators.looked_up_wave):
        np.testing.assert_array_equal(jax.jit(wave)(phase, gain), expected)


def test_products_of_64_bits():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2**32, (2, 1000), dtype=np.uint64)
    a[:2], b[:2] = 2**32 - 1, (2**32 - 1, 0)
    high, low = dx7_control.multiply(
        jnp.asarray(a.astype(np.uint32)), jnp.asarray(b.astype(np.uint32))
    )
    np.testing.assert_array_equal(high, (a * b) >> np.uint64(32))
    np.testing.assert_array_equal(low, (a * b) & np.uint64(2**32 - 1))


@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100, 48_000])
def test_seconds_become_samples_as_in_double_precision(rate):
    rng = np.random.default_rng(0)
    hold = rng.uniform(0, 20, 5000).astype(np.float32)
    # Half samples, and what lies next to them.
    hold[:100] = (np.arange(100) + 100.5) / rate
    hold[100:200] = np.nextafter(hold[:100], 0)
    expected = np.floor(hold.astype(np.float64) * rate + 0.5)
    found = dx7_control.held_samples(jnp.asarray(hold), rate)
    np.testing.assert_array_equal(found, expected)


def test_tremolo_takes_what_double_precision_says():
    rng = np.random.default_rng(0)
    modulation = rng.integers(0, 255 << 16, 20_000)
    # Where rounding the exponent decides.
    modulation[:3] = 5336471, 10657554, 12940715
    level = rng.integers(0, 2**28, 20_000)
    loudness = [
        int(math.exp(float(np.float32(m)) / 262144 * 0.07 + 12.2))
        for m in modulation
    ]
    expected = (level * np.array(loudness)) >> 24
    found = dx7_control.attenuation(
        jnp.asarray(level, jnp.int32), jnp.asarray(modulation, jnp.uint32)
    )
    np.testing.assert_array_equal(found, expected)


def test_pitch_becomes_a_phase_increment():
    table = dx7_tables.rates(44_100).frequencies.astype(np.int64)
    pitch = np.random.default_rng(0).integers(-(2**27), 20 << 24, 20_000)
    index, between = (pitch & 0xFFFFFF) >> 14, pitch & 0x3FFF
    slope = (table[index + 1] - table[index]) * between >> 14
    expected = (table[index] + slope) >> (20 - (pitch >> 24))
    found = dx7_control.increments(jnp.asarray(pitch, jnp.int32), 44_100)
    np.testing.assert_array_equal(found, expected)


# The kernel of accelerators ---------------------------------------------------


def _loops(length, blocks=3, batch=40):
    rng = np.random.default_rng(length)

    def draw(most, *shape):
        return jnp.asarray(rng.integers(0, most, shape), jnp.int32)

    told = blocks, length, batch
    loop = dx7_operators.Loop(
        phase=draw(2**24, *told),
        increment=draw(500_000, *told),
        gain=draw(4000, *told),
        ramp=draw(9, *told),
        on=jnp.asarray(rng.random((blocks, batch)) < 0.7),
        shift=draw(8, batch) + 2,
        length=draw(2, batch) + 2 if length > 1 else jnp.ones(batch, jnp.int32),
    )
    return loop, (draw(8000, batch), draw(8000, batch))


@pytest.mark.parametrize("length", [1, 3])
def test_the_kernel_has_the_bits_of_the_scan(length):
    loop, memory = _loops(length)
    after, sound = jax.jit(dx7_operators.feedback)(loop, memory)
    kernel_after, kernel_sound = dx7_operators.feedback_kernel(
        loop, memory, interpret=True
    )
    np.testing.assert_array_equal(kernel_after, after)
    np.testing.assert_array_equal(kernel_sound, sound)


def test_feedback_is_that_of_one_sample_after_another():
    loop, memory = _loops(1, blocks=2, batch=3)
    _, sound = jax.jit(dx7_operators.feedback)(loop, memory)
    for voice in range(3):
        older, last = (int(m[voice]) for m in memory)
        for block in range(2):
            before = older, last
            told = [int(x[block, 0, voice]) for x in loop[:4]]
            phase, increment, gain, ramp = told
            for n in range(64):
                fed = ((older + last) << 13) >> int(loop.shift[voice])
                now = phase + n * increment + fed
                heard = int(_wave(np.array(now), gain + (n + 1) * ramp))
                older, last = last, heard
                assert int(sound[block, voice, n]) == heard
            if not loop.on[block, voice]:
                older, last = before


def test_the_engine_lowers_for_nvidia_cards(cases):
    """As far as one gets without a card."""
    triton = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")

    def render(voices):
        return dx7.render(
            voices,
            note=60,
            velocity=100,
            hold=0.01,
            duration=0.02,
            sample_rate=32_000,
        )

    exported = jax.export.export(
        jax.jit(render), platforms=["cuda"], disabled_checks=[triton]
    )(jnp.asarray(cases[44_100].voices))
    assert "triton" in exported.mlir_module()


# After the engine -------------------------------------------------------------


def test_the_output_stage_is_that_of_the_renderer(cases):
    settings = engines.RenderSettings(
        sample_rate=44_100, duration=0.4, hold=0.2, note_on=0.0
    )
    renderer = dexed.DexedRenderer(settings)
    voices = cases[44_100].voices
    sound = dx7.render(
        voices,
        note=np.full(BATCH, settings.note),
        velocity=np.full(BATCH, settings.velocity),
        hold=np.full(BATCH, settings.hold, np.float32),
        duration=settings.duration,
        sample_rate=settings.sample_rate,
    )
    filtered = output.dc_block(sound * dx7.GAIN, settings.sample_rate)
    length = round(settings.fade_out * settings.sample_rate)
    ours = output.fade_out(filtered, length)
    theirs = np.stack([renderer.render_voice(voice) for voice in voices])
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    levels = np.sqrt(np.mean(np.square(theirs, dtype=np.float64), 1))
    np.testing.assert_allclose(output.rms(ours), levels, atol=1e-6)


def test_the_filter_of_odd_lengths_and_of_any_batch():
    signal = pytest.importorskip("scipy.signal")
    audio = np.random.default_rng(0).normal(size=(2, 3, 1001))
    pole = float(np.float32(1 - 126 / 44_100))
    expected = signal.lfilter([1, -1], [1, -pole], audio)
    found = output.dc_block(jnp.asarray(audio, jnp.float32), 44_100)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_level_that_is_not_finite_is_told():
    audio = np.zeros((2, 100), np.float32)
    audio[1, 7] = np.nan
    level = np.asarray(output.rms(jnp.asarray(audio)))
    assert level[0] == 0
    assert np.isnan(level[1])


def test_no_fade_leaves_the_sound():
    audio = jnp.ones(10)
    np.testing.assert_array_equal(output.fade_out(audio, 0), audio)


# Bad input --------------------------------------------------------------------

GOOD = {
    "note": 60,
    "velocity": 100,
    "hold": 2.0,
    "duration": 5.0,
    "sample_rate": 32_000,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"note": 128}, "note is 128, not 0 to 127"),
        ({"note": np.array([60, -1])}, "note is -1"),
        ({"note": 60.5}, "note is 60.5"),
        ({"velocity": 0}, "velocity is 0, not 1 to 127"),
        ({"hold": math.nan}, "hold is nan"),
        ({"hold": 0.0}, "hold is 0.0, not above 0"),
        ({"hold": np.ones(3)}, "hold of shape"),
        ({"duration": 0.0}, "duration is 0.0"),
        ({"duration": math.nan}, "duration is nan"),
        ({"sample_rate": 8000}, "sample_rate is 8000"),
    ],
)
def test_bad_settings_are_named(changes, message):
    voices = exactness.varied(2)
    dx7.check(voices, **GOOD)
    with pytest.raises(ValueError, match=message):
        dx7.check(voices, **{**GOOD, **changes})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v[:0], "batch of 0"),
        (lambda v: v[:, :155], r"not \[2, 155\]"),
        (lambda v: v[0], r"not \[156\]"),
        (lambda v: v.astype(int), "uint8, not int64"),
    ],
)
def test_bad_arrays_of_voices_are_told(spoil, message):
    with pytest.raises(ValueError, match=message):
        dx7.check(spoil(exactness.varied(2)), **GOOD)


def test_a_byte_out_of_its_range_is_named():
    voices = exactness.varied(2)
    voices[1, 134] = 32
    with pytest.raises(ValueError, match="byte 134 of voice 1 is 32"):
        dx7.check(voices, **GOOD)


# Its gradient -----------------------------------------------------------------


def test_the_smooth_twin_sounds_like_the_engine(cases):
    case = cases[44_100]
    count = 64
    given = {
        "note": case.note[:count],
        "velocity": case.velocity[:count],
        "hold": case.hold[:count],
        "duration": 0.2,
        "sample_rate": 44_100,
    }
    voices = jnp.asarray(case.voices[:count])
    true = dx7.render(voices, **given)
    twin = dx7_smooth.render(voices, jnp.zeros(voices.shape), **given)
    level, error = output.rms(true), output.rms(twin - true)
    heard = np.asarray(level > 0.01)
    assert heard.sum() > 16
    assert np.quantile((error / level)[heard], 0.9) < 0.02


def test_the_gradient_points_where_the_engine_goes():
    packed = np.fromfile(shared.shared("presets/dx7_voices.bin"), np.uint8)
    parsed, _ = sysex.parse(packed[: 8 * 128].tobytes())
    voices, _ = reading.repair(parsed)
    given = {
        "note": 60,
        "velocity": 100,
        "hold": 0.2,
        "duration": 0.3,
        "sample_rate": 32_000,
    }
    levels = 21 * np.arange(6) + 16

    def distances(sounds, targets):
        return jnp.abs(transport.transport640(sounds) - targets).mean(-1)

    true = jax.jit(lambda voices: dx7.render(voices, **given))
    targets = jnp.roll(transport.transport640(true(voices)), 1, 0)

    def loss(change):
        sounds = dx7_smooth.render(jnp.asarray(voices), change, **given)
        return distances(sounds, targets).sum()

    found = np.asarray(jax.grad(loss)(jnp.zeros(voices.shape)))
    differences = np.zeros((len(voices), 6))
    for k, column in enumerate(levels):
        low, high = voices.astype(int), voices.astype(int)
        low[:, column] = np.maximum(low[:, column] - 3, 0)
        high[:, column] = np.minimum(high[:, column] + 3, 99)
        ends = [
            distances(true(jnp.asarray(v, jnp.uint8)), targets)
            for v in (low, high)
        ]
        width = high[:, column] - low[:, column]
        differences[:, k] = (ends[1] - ends[0]) / width
    found = found[:, levels]
    cosines = (found * differences).sum(1) / (
        np.linalg.norm(found, axis=1) * np.linalg.norm(differences, axis=1)
    )
    assert np.median(cosines) > 0.8 and cosines.mean() > 0.6, cosines
