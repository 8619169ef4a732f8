"""Folders in NSynth's format: filters, resampling, mistakes."""

import json

import numpy as np
import pytest
from scipy.io import wavfile

from datasets import nsynth
from launch import cli
from tests.shared import shared


def write(folder, *, rate=16_000, seconds=4.0):
    """A folder of three notes; each holds a sine of its pitch."""
    (folder / "audio").mkdir(parents=True)
    examples = {}
    for family, source, pitch in (
        ("bass", "electronic", 40),
        ("flute", "acoustic", 72),
        ("bass", "acoustic", 45),
    ):
        name = f"{family}_{source}_000-{pitch:03}-100"
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        time = np.arange(round(seconds * rate)) / rate
        sine = 0.5 * np.sin(2 * np.pi * hertz * time)
        data = np.round(sine * 32767).astype(np.int16)
        wavfile.write(folder / "audio" / f"{name}.wav", rate, data)
        examples[name] = {
            "pitch": pitch,
            "velocity": 100,
            "instrument_family_str": family,
            "instrument_source_str": source,
        }
    (folder / "examples.json").write_text(json.dumps(examples))
    return folder


def test_notes_and_filters(tmp_path):
    folder = write(tmp_path / "notes")
    notes = nsynth.find(folder)
    assert [n.pitch for n in notes] == [45, 40, 72]  # in order of names
    assert [n.family for n in notes] == ["bass", "bass", "flute"]

    def pitches(**chosen):
        return [n.pitch for n in nsynth.find(folder, **chosen)]

    assert pitches(families=["flute"]) == [72]
    assert pitches(sources=["acoustic"]) == [45, 72]
    assert pitches(pitches=range(40, 46)) == [45, 40]
    assert pitches(families=["bass"], pitches=[45, 72]) == [45]


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
def test_clips_keep_their_pitch_level_and_start(tmp_path, rate):
    notes = nsynth.find(write(tmp_path / "notes", rate=rate))
    clips = nsynth.load(notes, 32_000, 160_000)
    assert clips.shape == (3, 160_000) and clips.dtype == np.float32
    for note, clip in zip(notes, clips, strict=True):
        assert not clip[4 * 32_000 :].any()
        middle = clip[16_000:112_000]
        time = np.arange(16_000, 112_000) / 32_000
        hertz = 440 * 2 ** ((note.pitch - 69) / 12)
        expected = 0.5 * np.sin(2 * np.pi * hertz * time)
        np.testing.assert_allclose(middle, expected, atol=2e-3)


def test_long_notes_are_cut_and_channels_averaged(tmp_path):
    folder = write(tmp_path / "notes")
    notes = nsynth.find(folder, families=["flute"])
    ramp = np.linspace(-0.5, 0.5, 8_000, dtype=np.float32)
    wavfile.write(notes[0].path, 8_000, np.stack([ramp, 0 * ramp], 1))
    clip = nsynth.load(notes, 8_000, 4_000)
    np.testing.assert_allclose(clip[0], ramp[:4_000] / 2, atol=1e-6)


def test_pitches_are_read_from_text():
    assert cli.ranges("pitches", "48, 60-62") == [48, 60, 61, 62]
    with pytest.raises(ValueError, match=r"--pitches=.*'c4' is neither a num"):
        cli.ranges("pitches", "48,c4")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"examples\.json is missing"):
        nsynth.find(tmp_path)
    folder = write(tmp_path / "notes")
    with pytest.raises(ValueError, match="'flut', did you mean 'flute'"):
        nsynth.find(folder, families=["flut"])
    with pytest.raises(ValueError, match="acoustic, electronic"):
        nsynth.find(folder, sources=["wooden"])
    with pytest.raises(ValueError, match="none of its 3 notes"):
        nsynth.find(folder, pitches=range(10))
    notes = nsynth.find(folder)
    notes[0].path.write_text("no audio")
    with pytest.raises(ValueError, match="not a WAV file"):
        nsynth.load(notes, 32_000, 160_000)
    bad = np.full(100, np.nan, np.float32)
    wavfile.write(notes[0].path, 16_000, bad)
    with pytest.raises(ValueError, match="NaN"):
        nsynth.load(notes, 32_000, 160_000)
    notes[0].path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        nsynth.find(folder)
    table = folder / "examples.json"
    table.write_text('{"a": {"pitch": 60}}')
    with pytest.raises(ValueError, match="has no 'velocity'"):
        nsynth.find(folder)
    table.write_text("[1, 2]")
    with pytest.raises(ValueError, match="not NSynth's table"):
        nsynth.find(folder)


def test_keys_lead_nowhere_else(tmp_path):
    """Neither to be read from, nor to be written to."""
    folder = write(tmp_path / "notes")
    examples = json.loads((folder / "examples.json").read_text())
    examples["../evil"] = next(iter(examples.values()))
    (folder / "examples.json").write_text(json.dumps(examples))
    wavfile.write(folder / "evil.wav", 16_000, np.ones(9, np.int16))
    with pytest.raises(FileNotFoundError, match=r"evil-.*is missing"):
        nsynth.find(folder)


def test_the_notes_beside_the_project():
    notes = nsynth.find(shared("audio/nsynth-mini"))
    assert len(notes) == 66 and {n.source for n in notes} == {
        "acoustic",
        "electronic",
        "synthetic",
    }
    clips = nsynth.load(notes[:4], 32_000, 160_000)
    assert np.abs(clips).max(1).min() > 0.01
