import json
import os
import pathlib
import signal
import struct

import numpy as np
import pedalboard.io
import pytest
import scipy.io.wavfile

from datasets import child, limits, nsynth, sounds
from launch.runs import plots
from tests.shared import shared

RATE = 32_000


def note(midi=60, seconds=1.5, rate=RATE, harmonics=8):
    time = np.arange(round(seconds * rate)) / rate
    hertz = 440 * 2 ** ((midi - 69) / 12)
    partials = [
        np.sin(2 * np.pi * k * hertz * time) / k
        for k in range(1, harmonics + 1)
        if k * hertz < rate / 2
    ]
    return (0.2 * np.sum(partials, axis=0)).astype(np.float32)


def wav(folder, audio, rate=RATE, name="sound.wav"):
    path = pathlib.Path(folder) / name
    scipy.io.wavfile.write(path, rate, audio)
    return path


def encode(path, audio, rate):
    audio = np.atleast_2d(audio)
    with pedalboard.io.AudioFile(str(path), "w", rate, len(audio)) as file:
        file.write(audio)
    return path


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (16_000, 1)])
def test_every_format_rate_and_channel_count_reads_alike(
    tmp_path, suffix, rate, channels
):
    audio = note(rate=rate)
    path = encode(tmp_path / f"a{suffix}", np.stack([audio] * channels), rate)
    read = sounds.read(path, RATE)
    # An MP3 encoder may add a few milliseconds.
    assert abs(len(read.audio) - 1.5 * RATE) < 0.1 * RATE
    assert sounds.pitch(read.audio, RATE) == 60
    rms = np.sqrt(np.square(read.audio[4_000:40_000]).mean())
    np.testing.assert_allclose(rms, np.sqrt(np.square(audio).mean()), rtol=0.1)


def test_channels_are_averaged(tmp_path):
    left, right = note(60), note(67)
    path = wav(tmp_path, np.stack([left, right], axis=1))
    read = sounds.read(path, RATE)
    np.testing.assert_allclose(read.audio, (left + right) / 2, atol=1e-6)


def test_silence_before_the_sound_is_skipped_and_length_limited(tmp_path):
    silence = np.zeros(17 * RATE, np.float32)
    late = np.concatenate([silence, note(seconds=20), silence])
    read = sounds.read(wav(tmp_path, late), RATE, most=2.0)
    assert len(read.audio) == 2 * RATE
    start = np.argmax(np.abs(read.audio) > 1e-3)
    assert start / RATE < 0.02
    assert "only 2 s are matched" in " ".join(read.remarks)


def test_ten_minutes_are_not_read_whole(tmp_path):
    long = np.tile(note(seconds=1.0, rate=8_000), 600)
    path = wav(tmp_path, long, 8_000)
    read = sounds.read(path, RATE)
    assert len(read.audio) == 5 * RATE
    assert "600.0 s long" in " ".join(read.remarks)


def test_a_click_is_padded(tmp_path):
    click = np.random.default_rng(0).normal(size=320).astype(np.float32) * 0.1
    read = sounds.read(wav(tmp_path, click), RATE)
    assert len(read.audio) == RATE
    np.testing.assert_array_equal(read.audio[:320], click)
    assert "0.01 s short" in " ".join(read.remarks)
    assert sounds.pitch(read.audio, RATE) is None
    assert 0 < sounds.hold(read.audio, RATE) < 0.1


def test_clipping_is_told(tmp_path):
    read = sounds.read(wav(tmp_path, np.clip(20 * note(), -1, 1)), RATE)
    assert "clipped" in " ".join(read.remarks)
    assert sounds.pitch(read.audio, RATE) == 60
    assert not sounds.read(wav(tmp_path, note()), RATE).remarks


def test_what_cannot_be_matched_is_told_in_one_line(tmp_path):
    bad = note()
    bad[5_000] = np.nan
    for content, reason in (
        (np.zeros(RATE, np.float32), "is silent"),
        (bad, "NaN or infinite"),
        (np.zeros(0, np.float32), "holds no sample"),
    ):
        with pytest.raises(ValueError, match=reason):
            sounds.read(wav(tmp_path, content), RATE)
    text = tmp_path / "text.wav"
    text.write_text("This is no sound.\n" * 100)
    with pytest.raises(ValueError, match="not an audio file"):
        sounds.read(text, RATE)
    with pytest.raises(FileNotFoundError, match="no file"):
        sounds.read(tmp_path / "missing.wav", RATE)


def header(path, rate, channels, size):
    """A WAV that is a hole of zeros but for its header."""
    frame = 2 * channels
    second = rate * frame % 2**32
    form = struct.pack("<HHIIHH", 1, channels, rate, second, frame, 16)
    head = b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt "
    head += struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size + len(head))
    return path


@pytest.mark.parametrize("suffix", [".mp3", ".aiff", ".flac", ".wav"])
def test_damaged_files_cost_no_more_than_themselves(tmp_path, suffix):
    """Some of these crash their decoder."""
    fine = wav(tmp_path, note())
    whole = encode(tmp_path / f"a{suffix}", note(seconds=0.3), RATE)
    data = whole.read_bytes()
    rng = np.random.default_rng(0)
    cuts = {0, 1, *range(600, 700, 7), *rng.integers(len(data), size=20)}
    for cut in sorted(cuts):
        whole.write_bytes(data[:cut])
        try:
            assert np.isfinite(sounds.read(whole, RATE).audio).all()
        except ValueError as error:
            assert str(error).startswith(str(whole)) and "<" not in str(error)
    assert sounds.read(fine, RATE).audio.any()


def test_a_decoder_that_dies_is_replaced(tmp_path, monkeypatch):
    path = wav(tmp_path, note())
    whole = sounds.read(path, RATE).audio
    first = sounds._child
    sounds.read(path, RATE)
    assert first is not None and sounds._child is first
    first.kill()
    with pytest.raises(ValueError, match=r"sound\.wav is damaged: its"):
        sounds.read(path, RATE)
    np.testing.assert_array_equal(sounds.read(path, RATE).audio, whole)
    # And one that does not answer in time.
    assert sounds._child is not None
    os.kill(sounds._child._process.pid, signal.SIGSTOP)
    hasty = limits.Budget(seconds=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "usual", lambda: hasty)
        with pytest.raises(ValueError, match=r"busy for more than .*--budget"):
            sounds.read(path, RATE)
    np.testing.assert_array_equal(sounds.read(path, RATE).audio, whole)


def test_ctrl_c_leaves_no_reply_to_the_next_file(tmp_path, monkeypatch):
    paths = [wav(tmp_path, note(midi), name=f"{midi}.wav") for midi in (60, 72)]
    wanted = sounds.read(paths[1], RATE).audio

    def interrupted(self, samples):
        raise KeyboardInterrupt

    before = sounds._child
    with monkeypatch.context() as patch:
        patch.setattr(child.Child, "sound", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sounds.read(paths[0], RATE)
    np.testing.assert_array_equal(sounds.read(paths[1], RATE).audio, wanted)
    assert sounds._child is not before


def test_memory_and_silence_are_limited(tmp_path):
    large = header(tmp_path / "large.wav", 1_000_000, 64, 2_000_000_000)
    with pytest.raises(
        ValueError, match=r"large\.wav takes more than .*budget"
    ):
        sounds.read(large, RATE)
    hour = header(tmp_path / "hour.wav", RATE, 1, 3600 * RATE * 2)
    with pytest.raises(ValueError, match="silent for its first 120 s"):
        sounds.read(hour, RATE)
    odd = header(tmp_path / "odd.wav", 2_000_000, 1, 1000)
    with pytest.raises(ValueError, match=r"says that it has 2,000,000 Hz"):
        sounds.read(odd, RATE)


@pytest.mark.parametrize("midi", [28, 40, 60, 75, 96, 107])
@pytest.mark.parametrize("harmonics", [1, 8])
def test_pitch_of_steady_tones(midi, harmonics):
    assert sounds.pitch(note(midi, harmonics=harmonics), RATE) == midi


def test_noise_has_no_pitch():
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    assert sounds.pitch(0.1 * noise, RATE) is None


def test_chords_are_told_from_notes_and_noise():
    third, fifth = note(64), note(67)
    assert sounds.chord(note(60) + third + fifth, RATE)
    assert sounds.chord(note(60) + third, RATE)
    for one in (note(60), note(60, harmonics=1), note(60) + note(72)):
        assert not sounds.chord(one, RATE)
    # A fundamental that is missing, and partials that are no multiples.
    time = np.arange(RATE) / RATE
    for partials in ((2, 3, 4, 5), (1, 2.76, 5.4, 8.93)):
        waves = [np.sin(2 * np.pi * 220 * p * time) / p for p in partials]
        assert not sounds.chord(np.mean(waves, axis=0), RATE)
    assert not sounds.chord(np.random.default_rng(0).normal(size=RATE), RATE)
    assert not sounds.chord(np.zeros(RATE, np.float32), RATE)


def test_release_is_heard():
    audio = np.concatenate([note(seconds=2.0), note(seconds=1.0)])
    time = np.arange(len(audio)) / RATE
    # 3 dB/s while it is held, 60 dB/s after.
    slow = 10 ** (-3 / 20 * np.minimum(time, 2.0))
    fast = 10 ** (-60 / 20 * np.maximum(time - 2.0, 0))
    released = (audio * slow * fast).astype(np.float32)
    assert abs(sounds.hold(released, RATE) - 2.0) < 0.1
    # A sound that only decays is held as long as it is heard.
    assert sounds.hold((audio * slow).astype(np.float32), RATE) > 2.9


def test_pitch_and_hold_of_sampled_instruments():
    items = sounds.find([str(shared("audio/nsynth-mini"))])
    assert len(items) == 66
    right = held = chords = 0
    for item in items[::3]:
        audio = sounds.read(item.path, RATE).audio
        right += sounds.pitch(audio, RATE) == item.note
        held += abs(sounds.hold(audio, RATE) - nsynth.HOLD) < 0.2
        chords += sounds.chord(audio, RATE)
    # Percussive ones die away before they are released.
    assert right >= 21 and held >= 16 and chords <= 1


def test_finding_files(tmp_path):
    (tmp_path / "sub").mkdir()
    wav(tmp_path, note(), name="b.wav")
    wav(tmp_path / "sub", note(), name="a.WAV")
    (tmp_path / "notes.txt").write_text("no sound")
    found = sounds.find([str(tmp_path)])
    assert [item.name for item in found] == ["b", "sub-a"]
    assert found[0].note is None
    with pytest.raises(ValueError, match="the same folder"):
        sounds.find([str(tmp_path), str(tmp_path / "b.wav")])
    with pytest.raises(FileNotFoundError):
        sounds.find([str(tmp_path / "missing.wav")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no audio file"):
        sounds.find([str(tmp_path / "empty")])


def test_names_lead_nowhere_else_and_can_be_shown(tmp_path):
    (tmp_path / "sub").mkdir()
    names = ["...wav", "sub/...wav", "$x_y_z$.wav", os.fsdecode(b"\xff.wav")]
    for name in names:
        wav(tmp_path, note(), name=name)
    found = sounds.find([str(tmp_path)])
    assert len({item.name for item in found}) == 4
    for item in found:
        assert pathlib.PurePath(item.name).parts == (item.name,)
        assert item.name != ".." and item.name.encode()
        assert sounds.read(item.path, RATE).audio.any()
        clip = {item.name: np.zeros(RATE, np.float32)}
        plots.sounds(clip, RATE, tmp_path / f"{item.name}.png")
    (alone,) = sounds.find([str(tmp_path / "...wav")])
    assert alone.name not in ("..", "")


def test_notes_of_an_nsynth_folder(tmp_path):
    (tmp_path / "audio").mkdir()
    wav(tmp_path / "audio", note(), name="x-061-100.wav")
    example = {
        "pitch": 61,
        "velocity": 100,
        "instrument_family_str": "bass",
        "instrument_source_str": "acoustic",
    }
    table = {"x-061-100": example}
    (tmp_path / "examples.json").write_text(json.dumps(table))
    (item,) = sounds.find([str(tmp_path)])
    assert (item.name, item.note, item.hold) == ("x-061-100", 61, 3.0)
    table["y-062-100"] = example
    (tmp_path / "examples.json").write_text(json.dumps(table))
    with pytest.raises(FileNotFoundError, match="y-062-100"):
        sounds.find([str(tmp_path)])
