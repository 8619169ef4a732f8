"""Banks and sounds that were damaged at random: right, or one clear error."""

import io
import json
import pathlib
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pedalboard.io
import pytest

from datasets import limits, nsynth, sounds
from datasets.presets import reading, sysex, writing
from proxy import spaces

SPACE = spaces.get("dexed")
SMALL = limits.Budget(bytes=2**20, voices=2_000, seconds=5.0)
SETTINGS = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
RATE = 16_000


@st.composite
def damages(draw):
    """A function that damages bytes: flips, cuts, copies, other bytes."""
    kind = draw(st.sampled_from(["flip", "cut", "repeat", "drop", "write"]))
    places = draw(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    length = draw(st.integers(1, 64))
    other = draw(st.binary(min_size=1, max_size=8))

    def damage(data):
        data = bytearray(data)
        for place in places:
            at = int(place * max(len(data) - 1, 0))
            part = data[at : at + length]
            if kind == "flip" and data:
                data[at] ^= 1 << length % 8
            elif kind == "cut":
                return bytes(data[:at])
            elif kind == "repeat":
                data[at:at] = part
            elif kind == "drop":
                del data[at : at + length]
            else:
                data[at : at + len(other)] = other
        return bytes(data)

    return damage


def _archive(files, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _banks():
    uniform = np.random.default_rng(0).random((32, SPACE.num_used))
    presets = SPACE.from_uniform(uniform.astype(np.float32))
    names = [f"VOICE {i}" for i in range(32)]
    bank = writing.to_syx(presets, names, SPACE)
    voice = writing.to_syx(presets[:1], names[:1], SPACE)
    text = writing.to_json(presets[:2], names[:2], SPACE).encode()
    talnm = [p.name for p in SPACE.parameters]
    table = {
        "parameter_names": talnm,
        "presets": {"x": [0.5] * len(talnm), "y": [0.25] * len(talnm)},
    }
    inner = _archive({"one.syx": voice, "two.json": text})
    return {
        "bank.syx": bank,
        "voice.syx": voice + voice,
        "raw.bin": sysex.pack(sysex.parse(bank)[0]).tobytes(),
        "list.json": text,
        "table.json": json.dumps(table).encode(),
        "deep.zip": _archive({"a/bank.syx": bank, "b.zip": inner}),
        "stored.zip": _archive({"v.syx": voice}, zipfile.ZIP_STORED),
    }


BANKS = _banks()


def check(bank):
    """What is read is of the space, whatever the file was."""
    np.testing.assert_array_equal(SPACE.snap(bank.presets), bank.presets)
    assert len(bank) == len(bank.names) == len(bank.sources) > 0
    assert len(str(bank.report)) < 8_000


def error_of(error, path):
    """One line that names the file, and no endless one."""
    text = str(error)
    assert str(path) in text and len(text) < 2_000


@pytest.mark.parametrize("name", BANKS)
def test_damaged_banks_are_read_or_refused(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("banks")
    path = folder / name
    check(_read_whole(path, BANKS[name]))

    @SETTINGS
    @hypothesis.given(damage=damages())
    def attempt(damage):
        data = damage(BANKS[name])
        path.write_bytes(data)
        try:
            bank = reading.load(path, SPACE, budget=SMALL)
        except ValueError as error:
            error_of(error, path)
        else:
            check(bank)
        # In a folder it does not keep the others from being read.
        (folder / "fine.syx").write_bytes(BANKS["voice.syx"])
        check(reading.load(folder, SPACE, budget=SMALL))

    attempt()


def _read_whole(path, data):
    path.write_bytes(data)
    return reading.load(path, SPACE, budget=SMALL)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["name", "parameters", "lfo_speed", "x" * 500, ""]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("name", "parameters", "values", "presets", "lfo_speed"),
                    *("parameter_names", "algorithm", "pitch", "velocity"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@SETTINGS
@hypothesis.given(document=JSON, wrapped=st.integers(0, 3))
def test_any_json_is_read_or_refused(tmp_path_factory, document, wrapped):
    """As presets, and as the table of a folder of notes."""
    document = (
        document,
        [{"name": document, "parameters": document}],
        {"parameter_names": document, "presets": document},
        {"note": document, "other": {"pitch": document, "velocity": 1}},
    )[wrapped]
    folder = tmp_path_factory.mktemp("json")
    text = json.dumps(document)
    (folder / "a.json").write_text(text)
    try:
        check(reading.load(folder / "a.json", SPACE, budget=SMALL))
    except ValueError as error:
        error_of(error, folder / "a.json")
    (folder / "examples.json").write_text(text)
    try:
        nsynth.find(folder)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error) and len(str(error)) < 3_000


def _encoded(suffix):
    time = np.arange(RATE // 4) / RATE
    wave = 0.3 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    buffer = io.BytesIO()
    buffer.name = f"a{suffix}"
    with pedalboard.io.AudioFile(buffer, "w", RATE, 1) as file:
        file.write(wave[None])
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".wav", ".aiff", ".flac", ".mp3", ".ogg"])
def test_damaged_sounds_are_read_or_refused(
    tmp_path_factory, suffix, monkeypatch
):
    """Some of these crash their decoder, and some WAVs keep it busy."""
    folder = tmp_path_factory.mktemp("sounds")
    path, data = folder / f"a{suffix}", _encoded(suffix)
    path.write_bytes(data)
    assert len(sounds.read(path, RATE).audio) == RATE
    hasty = limits.Budget(seconds=0.4)
    monkeypatch.setattr(limits, "usual", lambda: hasty)
    note = nsynth.Note("a", pathlib.Path(path), 60, 100, "bass", "acoustic")

    @SETTINGS
    @hypothesis.given(damage=damages())
    def attempt(damage):
        path.write_bytes(damage(data))
        try:
            sound = sounds.read(path, RATE)
        except ValueError as error:
            error_of(error, path)
        else:
            assert np.isfinite(sound.audio).all()
            assert RATE <= len(sound.audio) <= 5 * RATE
        if suffix == ".wav":
            try:
                clips = nsynth.load([note], RATE, RATE)
            except ValueError as error:
                error_of(error, path)
            else:
                assert np.isfinite(clips).all() and clips.shape == (1, RATE)

    attempt()
