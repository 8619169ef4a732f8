"""The Dexed engine: its parameters, its sound, its repeatability."""

import dataclasses
import pickle
import threading

import dexed as bare
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from datasets import engines
from datasets.engines import dexed
from tests.shared import shared

SETTINGS = engines.RenderSettings()


@pytest.fixture(scope="module")
def renderer():
    return engines.get("dexed")


@pytest.fixture(scope="module")
def values(renderer):
    """Plug-in values of random presets."""
    return _random(renderer.space, 0, 24)


def _random(space, seed, count):
    uniform = np.random.default_rng(seed).random((count, space.num_used))
    return space.to_plugin(space.from_uniform(uniform.astype(np.float32)))


def _defaults(space, **changes):
    values = np.array([p.default for p in space.parameters], np.float32)
    columns = {p.name: i for i, p in enumerate(space.parameters)}
    for name, value in changes.items():
        values[columns[name.replace("__", ".")]] = value
    return values


def _one_sine(space, operator=1, **changes):
    """Algorithm 32, every operator a carrier, all but one at level zero."""
    levels = {f"op{n}_output_level": float(n == operator) for n in range(1, 7)}
    return _defaults(space, **{"algorithm": 1.0, **levels, **changes})


def _rms(audio):
    return np.sqrt(np.mean(np.square(audio, dtype=np.float64)))


def _pitch(audio, rate):
    """Frequency of the strongest partial while the note is held, in Hz."""
    held = audio[rate // 2 : rate // 2 + rate]
    spectrum = np.abs(np.fft.rfft(held * np.hanning(len(held))))
    return np.argmax(spectrum) * rate / len(held)


# Parameters ------------------------------------------------------------------


def test_every_byte_of_a_voice_has_one_parameter(renderer):
    offsets = sorted(byte for byte, _ in dexed.PARAMETERS.values())
    assert offsets == list(range(145))
    names = {p.name for p in renderer.space.parameters}
    assert names - set(dexed.PARAMETERS) - set(dexed.SWITCHES) == {
        "cutoff",
        "resonance",
        "output",
        "master_tune_adj",
    }


def test_bytes_are_those_of_the_engines_own_reader(renderer, values):
    """dexed-py names the bytes; so the names must be those of the space."""
    columns = {p.name: i for i, p in enumerate(renderer.space.parameters)}

    def integer(row, name, most):
        return int(np.rint(row[columns[name]] * most))

    for row in values[:8]:
        voice = dexed.to_voices(row, renderer.space)
        patch = bare.Patch.from_sysex(voice.tobytes())
        assert patch.algorithm == integer(row, "algorithm", 31)
        assert patch.feedback == integer(row, "feedback", 7)
        assert patch.lfo.speed == integer(row, "lfo_speed", 99)
        assert patch.lfo._wave == integer(row, "lfo_wave", 5)
        assert patch.pitch_mod_sensitivity == integer(row, "p_mode_sens.", 7)
        assert patch.pitch_envelope.levels[2] == integer(
            row, "pitch_eg_level_3", 99
        )
        for n, operator in enumerate(patch.op, start=1):
            for field, name, most in (
                ("output_level", "output_level", 99),
                ("frequency_coarse", "f_coarse", 31),
                ("frequency_fine", "f_fine", 99),
                ("frequency_mode", "mode", 1),
                ("detune", "osc_detune", 14),
                ("amp_mod_sensitivity", "a_mod_sens.", 3),
                ("velocity_sensitivity", "key_velocity", 7),
                ("breakpoint", "break_point", 99),
            ):
                assert getattr(operator, field) == integer(
                    row, f"op{n}_{name}", most
                )
            assert operator.envelope.rates == [
                integer(row, f"op{n}_eg_rate_{i}", 99) for i in range(1, 5)
            ]
            assert operator.envelope.levels == [
                integer(row, f"op{n}_eg_level_{i}", 99) for i in range(1, 5)
            ]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_voices_round_trip(seed):
    space = engines.get("dexed").space
    rng = np.random.default_rng(seed)
    voices = rng.integers(0, dexed.largest() + 1, (5, 156)).astype(np.uint8)
    values = dexed.from_voices(voices, space)
    again = dexed.to_voices(values, space)
    again[:, dexed.NAME_BYTES] = voices[:, dexed.NAME_BYTES]
    np.testing.assert_array_equal(again, voices)
    assert values.min() >= 0 and values.max() <= 1


def test_every_grid_value_is_one_integer(renderer):
    """Grids are rounded to three decimals; no two may share an integer."""
    for parameter in renderer.space.used:
        if parameter.values is not None:
            _, most = dexed.PARAMETERS[parameter.name]
            integers = np.rint(np.array(parameter.values) * most)
            assert len(set(integers)) == len(parameter.values)


def test_values_out_of_range_are_named(renderer):
    space = renderer.space
    for bad in (-0.1, 1.5, np.nan):
        with pytest.raises(engines.RenderError, match="'lfo_speed' is"):
            renderer.render(_defaults(space, lfo_speed=bad))
    with pytest.raises(engines.RenderError, match="100 plug-in values"):
        renderer.render(np.zeros(100, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [("cutoff", 0.3), ("output", 0.5), ("master_tune_adj", 0.0)],
)
def test_what_only_the_plugin_has_must_be_default(renderer, name, value):
    with pytest.raises(engines.RenderError, match=f"'{name}' is {value:g}"):
        renderer.render(_defaults(renderer.space, **{name: value}))


def test_voices_out_of_range_are_refused(renderer):
    voice = dexed.to_voices(_defaults(renderer.space), renderer.space)
    voice[134] = 32
    with pytest.raises(engines.RenderError, match=r"byte 134 .* is 32"):
        renderer.render_voice(voice)
    with pytest.raises(engines.RenderError, match="MIDI note 128"):
        renderer.render(_defaults(renderer.space), note=128)


# Sound -----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [44_100, 32_000, 48_000, 16_000])
def test_clips_have_the_length_and_the_pitch(rate):
    settings = engines.RenderSettings(sample_rate=rate, duration=3.0)
    renderer = engines.get("dexed", settings)
    values = _one_sine(renderer.space)
    audio = renderer.render(values)
    assert audio.shape == (3 * rate,) and audio.dtype == np.float32
    # The first hundredth of a second comes before the note.
    start = rate // 100
    assert not audio[:start].any() and audio[start : start + 200].any()
    assert _pitch(audio, rate) == pytest.approx(261.6, abs=1.5)
    assert _pitch(renderer.render(values, 69), rate) == pytest.approx(
        440, abs=1.5
    )


def test_level_is_the_plugins(renderer):
    """One operator at full level peaks at 1/8."""
    audio = renderer.render(_one_sine(renderer.space))
    held = audio[22_050:66_150]
    assert np.abs(held).max() == pytest.approx(1 / 8, rel=5e-3)


def test_the_clip_is_the_filtered_engine_output(renderer):
    """Gain and DC blocker, sample by sample as the recursion is written."""
    values = _defaults(
        renderer.space, feedback=1.0, algorithm=0.129, op2_f_coarse=0.097
    )
    short = engines.RenderSettings(duration=0.25, hold=0.1)
    ours = engines.get("dexed", short).render(values)
    synth = bare.DexedSynth(44_100)
    voice = dexed.to_voices(values, renderer.space)
    synth.load_patch(bare.Patch.from_sysex(voice.tobytes()))
    sound = synth.render(60, 100, 0.1, 0.25)
    expected = np.zeros(len(ours))
    before = state = 0.0
    for n in range(len(ours) - 441):
        x = float(sound[n]) / 8
        state = x - before + (1 - 126 / 44_100) * state
        before = x
        expected[441 + n] = state
    expected[-4410:] *= np.linspace(1, 0, 4410)
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    assert np.abs(expected).max() > 0.1


def test_the_clip_fades_out_and_has_no_offset(renderer):
    # Note held to the end, so that the fade is what ends the sound.
    settings = engines.RenderSettings(hold=10.0, duration=2.0)
    audio = engines.get("dexed", settings).render(_one_sine(renderer.space))
    length = 4410
    before = _rms(audio[-2 * length : -length])
    assert audio[-1] == 0
    assert _rms(audio[-length:]) == pytest.approx(before / 3**0.5, rel=0.02)
    assert abs(audio.mean()) < 1e-4


def test_the_note_is_held_for_two_seconds(renderer):
    audio = renderer.render(_one_sine(renderer.space))
    assert _rms(audio[int(1.9 * 44_100) : int(2.0 * 44_100)]) > 0.08
    # Release rate 99 ends the sound at once, level 4 is zero.
    assert _rms(audio[int(2.1 * 44_100) :]) < 1e-4


@pytest.mark.parametrize("operator", range(1, 7))
def test_switches_mute_their_operator(renderer, operator):
    space = renderer.space
    on = _one_sine(space, operator)
    off = _one_sine(space, operator, **{f"op{operator}_switch": 0.0})
    other = _one_sine(space, operator, **{f"op{operator % 6 + 1}_switch": 0.0})
    assert _rms(renderer.render(on)) > 0.04
    assert _rms(renderer.render(off)) < 1e-3 * _rms(renderer.render(on))
    np.testing.assert_allclose(
        renderer.render(other), renderer.render(on), atol=1e-3
    )


def test_operators_are_not_reversed(renderer):
    """In algorithm 1 operators 1 and 3 are heard, 2 and 4 to 6 are not."""
    for operator in range(1, 7):
        values = _one_sine(renderer.space, operator)
        values[
            [p.name for p in renderer.space.parameters].index("algorithm")
        ] = 0
        heard = _rms(renderer.render(values)) > 0.01
        assert heard == (operator in (1, 3))


def test_parameters_are_heard(renderer):
    space = renderer.space
    base = _one_sine(space)
    reference = renderer.render(base)
    for name, value in (
        ("op1_f_coarse", 0.065),
        ("op1_f_fine", 0.5),
        ("op1_mode", 1.0),
        ("op1_osc_detune", 1.0),
        ("op1_eg_rate_1", 0.4),
        ("op1_eg_level_3", 0.6),
        ("op1_rate_scaling", 1.0),
        ("op1_key_velocity", 1.0),
        ("pitch_eg_level_3", 0.7),
        ("middle_c", 0.25),
    ):
        changed = _one_sine(space, 1, **{name: value})
        if name == "op1_rate_scaling":
            # Only seen on a rate that is not at its fastest.
            slow = _one_sine(space, 1, op1_eg_rate_1=0.4)
            changed = _one_sine(
                space, 1, op1_eg_rate_1=0.4, op1_rate_scaling=1.0
            )
            difference = renderer.render(changed) - renderer.render(slow)
        else:
            difference = renderer.render(changed) - reference
        assert _rms(difference) > 1e-3, name
    # An octave up.
    octave = renderer.render(_one_sine(space, 1, op1_f_coarse=0.065))
    assert _pitch(octave, 44_100) == pytest.approx(523.2, abs=2)


# Repeatability ---------------------------------------------------------------


def test_renders_repeat_bit_by_bit_in_any_order(renderer, values):
    first = [renderer.render(row) for row in values]
    fresh = engines.get("dexed")
    for row, audio in reversed(list(zip(values, first, strict=True))):
        np.testing.assert_array_equal(fresh.render(row), audio)
    assert pickle.loads(pickle.dumps(renderer)).settings == renderer.settings
    copied = pickle.loads(pickle.dumps(renderer)).render(values[0])
    np.testing.assert_array_equal(copied, first[0])


def test_clips_do_not_share_memory(renderer, values):
    first = renderer.render(values[0])
    kept = first.copy()
    renderer.render(values[1])
    np.testing.assert_array_equal(first, kept)


def test_sample_rates_may_take_turns(renderer, values):
    before = renderer.render(values[0])
    other = engines.get("dexed", engines.RenderSettings(sample_rate=32_000))
    assert len(other.render(values[0])) == 160_000
    np.testing.assert_array_equal(renderer.render(values[0]), before)


@pytest.mark.parametrize("workers", [1, 3])
def test_many_renders_keep_their_order(renderer, values, workers):
    bad = values[5].copy()
    bad[0] = 0.2
    stream = [*values[:5], bad, *values[5:10]]
    sounds = list(engines.render_many(renderer, stream, workers=workers))
    assert len(sounds) == 11
    assert isinstance(sounds[5], engines.RenderError)
    assert "cutoff" in str(sounds[5])
    for i, row in enumerate(stream):
        if i != 5:
            np.testing.assert_array_equal(sounds[i], renderer.render(row))


def test_many_renders_take_their_notes(renderer, values):
    (low, high) = engines.render_many(
        renderer, [values[0], values[0]], notes=[None, 72]
    )
    np.testing.assert_array_equal(low, renderer.render(values[0]))
    np.testing.assert_array_equal(high, renderer.render(values[0], 72))


def test_many_renders_run_only_a_little_ahead(renderer, values):
    """Endless input, bounded memory, and an early end."""
    drawn = []

    def endless():
        while True:
            drawn.append(threading.get_ident())
            yield values[len(drawn) % len(values)]

    sounds = engines.render_many(renderer, endless(), workers=2)
    for _ in range(3):
        next(sounds)
    sounds.close()
    assert len(drawn) <= 3 + 8


def test_many_renders_need_a_worker(renderer, values):
    with pytest.raises(ValueError, match="workers=0"):
        next(engines.render_many(renderer, values, workers=0))


# Level -----------------------------------------------------------------------


def test_levels():
    def tone(rms, frequency=100):
        t = np.arange(44_100) / 44_100
        wave = np.sin(2 * np.pi * frequency * t) * rms * 2**0.5
        return wave.astype(np.float32)

    assert engines.check_level(tone(0.1), SETTINGS) is None
    assert engines.check_level(tone(0.0099), SETTINGS) == "silent"
    assert engines.check_level(tone(0.0101), SETTINGS) is None
    assert engines.check_level(tone(0.99), SETTINGS) is None
    assert engines.check_level(tone(1.01), SETTINGS) == "too loud"
    broken = tone(0.1)
    for value in (np.nan, np.inf):
        broken[100] = value
        assert engines.check_level(broken, SETTINGS) == "nan"


def test_presets_called_silent_are_silent(renderer):
    """None is wrongly called silent, and most silent ones are found."""
    values = _random(renderer.space, 1, 300)
    called = renderer.surely_silent(values)
    sounds = engines.render_many(renderer, values, workers=2)
    silent = np.array(
        [
            isinstance(sound, np.ndarray)
            and engines.check_level(sound, SETTINGS) == "silent"
            for sound in sounds
        ]
    )
    assert not (called & ~silent).any()
    assert called.sum() > 0.85 * silent.sum()
    # And the rest of the test is not empty.
    assert (~silent).sum() > 10


def test_silence_is_not_told_where_the_note_scales_levels(renderer):
    space = renderer.space
    quiet = _one_sine(space, 1, op1_output_level=0.3)
    scaled = _one_sine(space, 1, op1_output_level=0.3, op1_r_scale_depth=1.0)
    off = _one_sine(space, 1, op1_output_level=0.3, op2_switch=0.0)
    told = renderer.surely_silent(np.stack([quiet, scaled, off]))
    assert told.tolist() == [True, False, False]


def test_batches_on_jax_sound_like_renders_one_by_one(values):
    """Whatever the batch, to the bit; within 1e-6 of the other engine."""
    settings = engines.RenderSettings(
        hold=0.2, duration=0.3, fade_out=0.05, min_rms=1e-3
    )
    batched = engines.get("dexed", settings, engine="jax")
    batched.batch = 8
    other = engines.get("dexed", settings)
    values, notes = values[:20].copy(), [None, 48, *[72] * 18]
    values[3, 0], notes[4] = 2.0, 128
    clips, reasons = batched.render_batch(values, notes, workers=2)
    wanted, why = other.render_batch(values, notes)
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(clips, wanted, rtol=0, atol=1e-6)
    assert reasons == why
    assert [i for i, reason in enumerate(reasons) if reason] == [3, 4]
    for row in (0, 1, 19):
        alone = batched.render(values[row], notes[row])
        np.testing.assert_array_equal(alone, clips[row])
    with pytest.raises(engines.RenderError, match=r"outside \[0, 1\]"):
        batched.render(values[3])
    # What passes the gate is kept; the rest is left alone.
    kept = np.full_like(clips, 7)
    fit = batched.render_into(list(kept), values, notes)
    gated = other.render_into(list(np.empty_like(clips)), values, notes)
    assert fit == gated and {None, "silent"} <= set(fit)
    for row, reason in enumerate(fit):
        same = clips[row] if reason is None else np.full_like(clips[row], 7)
        np.testing.assert_array_equal(kept[row], same)


def test_an_engine_is_chosen_by_name():
    low = engines.RenderSettings(sample_rate=8_000)
    assert engines.get("dexed", engine="auto").batch
    assert not engines.get("dexed", low, engine="auto").batch
    with pytest.raises(ValueError, match="sample_rate is 8000"):
        engines.get("dexed", low, engine="jax")
    with pytest.raises(ValueError, match=r"config\.engine.*'jacks'.*jax"):
        engines.get("dexed", engine="jacks")


def test_engines_that_cannot_tell_silence_say_no(renderer, values):
    class Mute(engines.Renderer):
        space, settings = renderer.space, renderer.settings

    assert not Mute().surely_silent(values).any()


def test_batches_are_renders_one_by_one(renderer, values):
    values, notes = values[:5].copy(), [None, 48, 72, None, None]
    values[3, 0] = 2.0
    for workers in (1, 3):
        clips, reasons = renderer.render_batch(values, notes, workers=workers)
        for row, note in enumerate(notes):
            if row != 3:
                wanted = renderer.render(values[row], note)
                np.testing.assert_array_equal(clips[row], wanted)
        assert [r is None for r in reasons] == [True, True, True, False, True]
        assert "outside [0, 1]" in reasons[3] and not clips[3].any()
    clips, reasons = renderer.render_batch(values[:0])
    assert clips.shape == (0, SETTINGS.samples) and reasons == []


def test_an_engine_plays_at_other_settings(renderer, values):
    settings = dataclasses.replace(SETTINGS, hold=0.1, duration=0.5)
    again = renderer.at(settings).render(values[0])
    wanted = dexed.DexedRenderer(settings).render(values[0])
    np.testing.assert_array_equal(again, wanted)


# Settings --------------------------------------------------------------------


def test_settings_round_trip():
    other = engines.RenderSettings(note=64, sample_rate=32_000)
    assert engines.RenderSettings.from_dict(other.to_dict()) == other
    with pytest.raises(ValueError, match="unknown render setting 'tempo'"):
        engines.RenderSettings.from_dict({"tempo": 120})


@pytest.mark.parametrize(
    "wrong",
    [
        {"note": 128},
        {"velocity": 0},
        {"hold": 0.0},
        {"duration": 0.0},
        {"sample_rate": 0},
        {"fade_out": 6.0},
        {"note_on": -1.0},
        {"max_rms": 0.001},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        engines.RenderSettings(**wrong)


def test_unknown_engines_are_named():
    with pytest.raises(ValueError, match="did you mean 'dexed'"):
        engines.get("dexd")


# Real voices -----------------------------------------------------------------


def test_real_voices_sound(renderer):
    """The engine plays hand-crafted voices at a usual level."""
    data = np.fromfile(shared("presets/dx7_voices.bin"), np.uint8)
    packed = data.reshape(-1, 128)[::700]
    voices = [
        np.frombuffer(bare.Patch.from_packed(v.tobytes()).to_sysex(), np.uint8)
        for v in packed
    ]
    levels = [_rms(renderer.render_voice(voice)) for voice in voices]
    assert 0.02 < np.median(levels) < 0.08
    assert np.mean(np.array(levels) > 0.01) > 0.85
