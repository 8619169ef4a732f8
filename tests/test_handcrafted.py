"""Hand-crafted presets: formats, repairs, filters, splits, and the way back."""

import dataclasses
import json
import zipfile

import dexed as bare
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from datasets import engines
from datasets.engines import dexed
from datasets.presets import bank as handcrafted
from datasets.presets import reading, sysex, writing
from proxy import spaces, splits
from tests.shared import shared

SPACE = spaces.get("dexed")
PROPERTY = hypothesis.settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def renderer():
    return engines.get("dexed")


def _voices(seed, count):
    """Random VCED voices with every byte in its range, and plain names."""
    rng = np.random.default_rng(seed)
    voices = rng.integers(0, dexed.largest() + 1, (count, 156))
    voices[:, dexed.SWITCHES_BYTE] = sysex.ALL_OPERATORS_ON
    voices = voices.astype(np.uint8)
    return sysex.write_names(voices, [f"VOICE {i}" for i in range(count)])


def _presets(seed, count):
    uniform = np.random.default_rng(seed).random((count, SPACE.num_used))
    return SPACE.from_uniform(uniform.astype(np.float32))


def _used(voices):
    """The presets of VCED voices, by way of plug-in values."""
    return SPACE.from_plugin(dexed.from_voices(voices, SPACE))


# Bytes -----------------------------------------------------------------------


@PROPERTY
@hypothesis.given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40))
def test_packing_round_trips(seed, count):
    voices = _voices(seed, count)
    packed = sysex.pack(voices)
    assert packed.shape == (count, 128) and packed.max() < 128
    np.testing.assert_array_equal(sysex.unpack(packed), voices)


@PROPERTY
@hypothesis.given(packed=st.binary(min_size=128, max_size=128))
def test_unpacking_agrees_with_dexed_py(packed):
    ours = sysex.unpack(np.frombuffer(packed, np.uint8)[None])
    ours, _ = reading.repair(ours)
    clean = bytes(byte & 0x7F for byte in packed)
    theirs = bare.Patch.from_packed(clean).to_sysex()
    theirs = np.frombuffer(theirs, np.uint8).copy()
    # dexed-py rescales corrupt pitch envelopes where we clip them.
    corrupt = np.frombuffer(clean, np.uint8)[102:110] > 99
    theirs[126:134][corrupt] = 99
    np.testing.assert_array_equal(ours[0], theirs)


@PROPERTY
@hypothesis.given(data=st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data):
    for prefix in (b"", b"\xf0\x43\x00\x09", b"\xf0\x43\x00\x00\x01\x1b"):
        try:
            voices, _ = sysex.parse(prefix + data)
        except ValueError as error:
            assert str(error)
        else:
            voices, _ = reading.repair(voices)
            values = dexed.from_voices(voices, SPACE)
            assert 0 <= values.min() <= values.max() <= 1


@pytest.mark.parametrize("channel", [0, 5])
def test_all_formats_give_the_same_voices(channel):
    voices = _voices(0, 32)
    bank = bytearray(sysex.bank_message(voices))
    one = bytearray(sysex.voice_message(voices[3]))
    assert (len(bank), len(one)) == (4104, 163)
    bank[2] = one[2] = channel
    payload = sysex.pack(voices).tobytes()
    for data, expected in (
        (bytes(bank), voices),
        (payload, voices),
        (payload[: 5 * 128], voices[:5]),
        (bytes(one), voices[3:4]),
        (voices[3].tobytes(), voices[3:4]),
        (voices[3, :155].tobytes(), voices[3:4]),
        (bytes(bank + one), np.concatenate([voices, voices[3:4]])),
        (b"\x00\x00" + bytes(one), voices[3:4]),
    ):
        found, problems = sysex.parse(data)
        np.testing.assert_array_equal(found, expected)
        assert problems == []


def test_other_messages_are_passed_over():
    voices = _voices(1, 32)
    other = bytes.fromhex("f0 7e 00 06 01 f7")
    found, problems = sysex.parse(other + sysex.bank_message(voices))
    np.testing.assert_array_equal(found, voices)
    assert problems == ["a message that is not Yamaha's"]


def test_bank_files_of_dexed_py_agree(tmp_path):
    voices = _voices(2, 32)
    patches = [bare.Patch.from_sysex(v.tobytes()) for v in voices]
    bare.Patch.save_to_bank(str(tmp_path / "bank.syx"), patches)
    data = (tmp_path / "bank.syx").read_bytes()
    assert data == sysex.bank_message(voices)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no DX7 voices"),
        (b"\x01" * 200, "200 bytes are no DX7 voices"),
        (b"\xf0\x43\x00\x09\x20\x00" + bytes(100), "bank message of 106"),
        (bytes.fromhex("f0 43 10 00 00 f7"), "no DX7 voice or bank"),
        (bytes.fromhex("f0 41 10 00 00 f7"), "not Yamaha's"),
    ],
)
def test_what_is_no_voice_is_refused(tmp_path, data, message):
    file = tmp_path / "odd.syx"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        reading.load(file, SPACE)
    assert str(file) in str(error.value)


def test_random_bytes_of_the_right_size_are_refused(tmp_path):
    file = tmp_path / "photo.bin"
    file.write_bytes(np.random.default_rng(0).bytes(128 * 100))
    with pytest.raises(ValueError, match="these are no DX7 voices"):
        reading.load(file, SPACE)


def test_a_wrong_checksum_warns_and_names_the_file(tmp_path):
    data = bytearray(sysex.bank_message(_voices(3, 32)))
    data[-2] ^= 1
    file = tmp_path / "stale.syx"
    file.write_bytes(data)
    bank = reading.load(file, SPACE)
    assert len(bank) == 32
    (warning,) = bank.report.warnings
    assert "stale.syx: checksum is" in warning
    assert warning in str(bank.report)


# Files and folders -----------------------------------------------------------


def test_folders_and_archives_are_searched(tmp_path):
    voices = _voices(4, 96)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "one.SYX").write_bytes(sysex.bank_message(voices[:32]))
    (tmp_path / "two.bin").write_bytes(sysex.pack(voices[32:64]).tobytes())
    with zipfile.ZipFile(tmp_path / "three.zip", "w") as archive:
        archive.writestr("x/bank.syx", sysex.bank_message(voices[64:]))
        archive.writestr("readme.txt", "no voices")
        archive.writestr("broken.syx", b"\xf0\x43")
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04 no archive")
    bank = reading.load(tmp_path, SPACE)
    assert bank.report.files == 3 and bank.report.found == 96
    assert len(bank.report.skipped) == 2
    assert "broken.syx" in str(bank.report.skipped)
    assert "damaged.zip: not a readable zip" in str(bank.report.skipped)
    assert bank.sources[0].endswith("one.SYX#1")
    assert any(
        source.endswith("three.zip/x/bank.syx#32") for source in bank.sources
    )
    assert bank.names[:2] == ("VOICE 0", "VOICE 1")
    again = reading.load([tmp_path / "a", tmp_path / "two.bin"], SPACE)
    assert again.report.found == 64


def test_missing_and_empty_paths_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"launch\.presets fetch"):
        reading.load(tmp_path / "nothing", SPACE)
    with pytest.raises(ValueError, match="no dexed preset in"):
        reading.load(tmp_path, SPACE)


# Into the space --------------------------------------------------------------


@PROPERTY
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_presets_are_of_the_space(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    file = tmp_path_factory.mktemp("bank") / "voices.bin"
    voices = _voices(seed, 10)
    # A few bytes of garbage.
    voices[rng.integers(0, 3), rng.integers(0, 145, 5)] |= 127
    file.write_bytes(sysex.pack(voices & 127).tobytes())
    bank = reading.load(file, SPACE)
    assert bank.presets.dtype == np.float32
    np.testing.assert_array_equal(SPACE.snap(bank.presets), bank.presets)
    assert len(bank) + bank.report.duplicates == bank.report.found == 10
    for parameter, column in zip(SPACE.used, bank.presets.T, strict=True):
        if parameter.interval:
            low, high = np.array(parameter.interval, np.float32)
            assert low <= column.min() <= column.max() <= high


def test_each_kind_of_change_is_made_and_counted(tmp_path):
    voices = _voices(5, 4)
    plain = dexed.to_voices(
        np.array([p.default for p in SPACE.parameters], np.float32), SPACE
    )
    voices[:] = plain
    where = {name: byte for name, (byte, _) in dexed.PARAMETERS.items()}
    voices[0, where["lfo_wave"]] = 5  # sample and hold: excluded
    voices[1, where["lfo_delay"]] = 99  # interval ends at 1/2
    voices[2, where["middle_c"]] = 12  # excluded parameter
    voices[3, where["op1_output_level"]] = 120  # no DX7 value
    file = tmp_path / "four.bin"
    file.write_bytes(sysex.pack(voices).tobytes())
    bank = reading.load(file, SPACE)
    report = bank.report
    assert report.replaced == {"lfo_wave": 1}
    assert report.clipped == {"lfo_delay": 1}
    assert report.defaulted == {"middle_c": 1}
    assert report.repaired == 1
    # Transposed and clipped, the last two are the plain voice.
    assert report.duplicates == 1 and report.kept == 3
    preset = dict(zip(SPACE.names, bank.presets[0], strict=True))
    assert preset["lfo_wave"] == 4  # sine, the nearest
    preset = dict(zip(SPACE.names, bank.presets[1], strict=True))
    assert preset["lfo_delay"] == 0.5
    table = dict(report.rows())
    assert table["voices found"] == 4 and table["presets kept"] == 3
    assert "excluded category replaced: lfo_wave" in str(report)


def test_duplicates_are_dropped_across_files(tmp_path):
    voices = _voices(6, 32)
    for name in ("a.syx", "b.syx"):
        (tmp_path / name).write_bytes(sysex.bank_message(voices))
    bank = reading.load(tmp_path, SPACE)
    assert len(bank) == 32 and bank.report.duplicates == 32
    assert all("a.syx" in source for source in bank.sources)


def test_the_gate_drops_what_cannot_be_heard(tmp_path, renderer):
    plain = np.array([p.default for p in SPACE.parameters], np.float32)
    voices = np.tile(dexed.to_voices(plain, SPACE), (4, 1))
    level = dexed.PARAMETERS["op1_output_level"][0]
    coarse = dexed.PARAMETERS["op1_f_coarse"][0]
    # Algorithm 1: operators 1 and 3 are heard.
    voices[:, dexed.PARAMETERS["op3_output_level"][0]] = 0
    voices[0, level] = 0
    voices[:, coarse] = [1, 1, 2, 3]
    file = tmp_path / "four.bin"
    file.write_bytes(sysex.pack(voices).tobytes())
    bank = reading.load(file, SPACE)
    for workers in (1, 2):
        kept = handcrafted.gate(bank, renderer, workers=workers)
        assert len(kept) == 3 and kept.report.kept == 3
        assert kept.report.dropped == {"silent": 1}
        assert kept.sources == bank.sources[1:]
        np.testing.assert_array_equal(kept.presets, bank.presets[1:])
        assert dict(kept.report.rows())["dropped: silent"] == 1
    settings = engines.RenderSettings(max_rms=0.011)
    strict = handcrafted.gate(bank, engines.get("dexed", settings))
    assert strict.report.dropped == {"silent": 1, "too loud": 3}


def test_the_gate_refuses_another_synthesizer(renderer):
    talnm = spaces.get("talnm")
    bank = handcrafted.Bank(
        talnm,
        np.zeros((1, talnm.num_used), np.float32),
        ("x",),
        ("x",),
        handcrafted.Report(),
    )
    with pytest.raises(ValueError, match="the presets are of talnm"):
        handcrafted.gate(bank, renderer)


# The way back ----------------------------------------------------------------


@PROPERTY
@hypothesis.given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40))
def test_syx_sounds_like_the_presets(tmp_path_factory, seed, count):
    """Written and read again, a preset has the same DX7 voice."""
    file = tmp_path_factory.mktemp("out") / "out.syx"
    presets = _presets(seed, count)
    names = [f"P {i}" for i in range(count)]
    files = writing.save(file, presets, names, SPACE)
    assert len(files) == -(-count // 32)
    assert {f.stat().st_size for f in files} <= {163, 4104}
    found = [sysex.parse(f.read_bytes())[0] for f in files]
    expected = writing.to_voices(presets, names, SPACE)
    np.testing.assert_array_equal(np.concatenate(found)[:count], expected)


def test_hand_crafted_presets_survive_the_round_trip(tmp_path):
    """Voices already in the space come back exactly, name and all."""
    start = _presets(1, 20)
    names = [f"NAME {i}" for i in range(20)]
    # Once through the DX7's integers, once more clipped to the intervals.
    presets = _used(writing.to_voices(start, names, SPACE))
    writing.save(tmp_path / "a.syx", presets, names, SPACE)
    bank = reading.load(tmp_path / "a.syx", SPACE)
    np.testing.assert_array_equal(bank.presets[:20], presets)
    assert bank.names[:20] == tuple(names)
    # The bank is filled up with one plain voice.
    assert len(bank) == 21 and bank.names[20] == "INIT VOICE"


def test_exported_banks_load_in_dexed_py(tmp_path, renderer):
    presets = _presets(2, 5)
    writing.save(tmp_path / "a.syx", presets, list("abcde"), SPACE)
    # A checksum that does not match would be a warning, so an error here.
    patches = bare.Patch.load_bank(str(tmp_path / "a.syx"))
    assert [p.name for p in patches[:5]] == [c.ljust(10) for c in "abcde"]
    synth = bare.DexedSynth(44_100)
    values = SPACE.to_plugin(presets)
    for patch, row in zip(patches, values, strict=False):
        synth.load_patch(patch)
        theirs = synth.render(60, 100, 2.0, 4.99)
        ours = renderer.render_voice(dexed.to_voices(row, SPACE))
        # The same sound but for gain and DC blocker.
        x = theirs[:10_000] / 8
        y = ours[441 : 441 + 10_000]
        np.testing.assert_allclose(np.diff(y), np.diff(x), atol=4e-4)


def test_names_are_ten_characters_of_ascii():
    voices = sysex.write_names(_voices(7, 3), ["Flöte", "x" * 20, ""])
    assert sysex.read_names(voices) == ["Fl?te", "x" * 10, ""]
    assert sysex.bank_message(np.repeat(voices, 11, 0)[:32])


@pytest.mark.parametrize("name", spaces.names())
def test_json_round_trips_exactly(tmp_path, name):
    space = spaces.get(name)
    rng = np.random.default_rng(3)
    uniform = rng.random((20, space.num_used)).astype(np.float32)
    presets = space.from_uniform(uniform)
    names = [f"näme {i}" for i in range(20)]
    writing.save(tmp_path / "a.json", presets, names, space)
    bank = reading.load(tmp_path / "a.json", space)
    np.testing.assert_array_equal(bank.presets, presets)
    assert bank.names == tuple(names)
    assert bank.report.clipped == bank.report.defaulted == {}


def test_json_may_leave_parameters_out(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"name": "x", "values": {"lfo_speed": 0.25}}]))
    bank = reading.load(file, SPACE)
    preset = dict(zip(SPACE.names, bank.presets[0], strict=True))
    assert preset["lfo_speed"] == 0.25
    assert preset["op1_eg_level_1"] == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[", "not JSON"),
        ("{}", "expected a list"),
        ("[]", "expected a list"),
        ("[3]", "preset 1 has no"),
        ('[{"name": "x"}]', "preset 1 has no"),
        ('[{"name": "x", "values": {"lfo_sped": 0}}]', "mean 'lfo_speed'"),
        ('[{"name": "x", "values": {"lfo_speed": 2}}]', "lfo_speed is 2"),
        ('[{"name": "x", "values": {"lfo_speed": NaN}}]', "lfo_speed is nan"),
        ('[{"name": "x", "values": {"lfo_speed": "1"}}]', "not a number"),
        ('{"parameter_names": [], "presets": {"x": []}}', "without a column"),
    ],
)
def test_json_that_is_wrong_is_named(tmp_path, document, message):
    file = tmp_path / "a.json"
    file.write_text(document)
    with pytest.raises(ValueError, match=message) as error:
        reading.load(file, SPACE)
    assert str(file) in str(error.value)


def test_wrong_outputs_are_named(tmp_path):
    presets = _presets(4, 2)
    with pytest.raises(ValueError, match=r"written as \.syx or \.json"):
        writing.save(tmp_path / "a.fxp", presets, ["a", "b"], SPACE)
    with pytest.raises(ValueError, match="no presets to write"):
        writing.save(tmp_path / "a.syx", presets[:0], [], SPACE)
    with pytest.raises(ValueError, match="1 to 32 presets, not 33"):
        writing.to_syx(_presets(5, 33), [""] * 33, SPACE)
    talnm = spaces.get("talnm")
    with pytest.raises(ValueError, match="preset of talnm cannot"):
        writing.to_syx(np.zeros((1, talnm.num_used), np.float32), [""], talnm)


# Real files ------------------------------------------------------------------


def test_a_large_collection():
    bank = reading.load(shared("presets/dx7_voices.bin"), SPACE)
    report = bank.report
    assert report.found == 20_920 and report.files == 1
    assert report.kept == len(bank) == len(bank.names)
    # The collection has no two voices alike, but presets leave out what the
    # space holds at its defaults.
    assert 500 < report.duplicates < 2000
    assert 0 < report.replaced["lfo_wave"] < 1000
    np.testing.assert_array_equal(SPACE.snap(bank.presets), bank.presets)
    parts = splits.split(bank.presets)
    sizes = np.array([len(rows) for rows in parts.values()]) / len(bank)
    np.testing.assert_allclose(sizes, list(splits.SHARES.values()), atol=0.01)


@pytest.mark.parametrize("name", ["Dexed_01", "SynprezFM_01", "SynprezFM_02"])
def test_published_banks_are_heard(renderer, name):
    file = shared(f"presets/{name}.syx")
    bank = reading.load(file, SPACE)
    assert bank.report.found == 32 and not bank.report.warnings
    heard = handcrafted.gate(bank, renderer, workers=2)
    assert len(heard) >= 28
    patches = bare.Patch.load_bank(str(file))
    names = [patch.name.strip() for patch in patches]
    assert set(bank.names) <= set(names)


def test_a_large_collection_is_mostly_heard(renderer):
    bank = reading.load(shared("presets/dx7_voices.bin"), SPACE)
    sample = bank.take(range(0, len(bank), 100))
    heard = handcrafted.gate(sample, renderer, workers=2)
    assert 0.88 < len(heard) / len(sample) < 0.99
    assert set(heard.report.dropped) <= {"silent", "too loud"}


def test_presets_of_another_synthesizer():
    talnm = spaces.get("talnm")
    bank = reading.load(shared("presets/talnm_factory.json"), talnm)
    document = json.loads(shared("presets/talnm_factory.json").read_text())
    assert bank.report.found == 255
    assert set(bank.names) <= set(document["presets"])
    cutoff = document["presets"][bank.names[5]][3]
    column = talnm.index("filter_cutoff")
    assert bank.presets[5, column] == pytest.approx(cutoff)
    with pytest.raises(ValueError, match="only JSON presets"):
        reading.load(shared("presets/Dexed_01.syx"), talnm)


def test_reports_are_values():
    report = handcrafted.Report(found=3, warnings=("w",) * 20)
    assert dataclasses.replace(report) == report
    assert "and 10 more" in str(report)
