"""Files that cost more than they look: refused in time, others go on."""

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from datasets import limits
from datasets.presets import reading, sysex
from proxy import spaces

SPACE = spaces.get("dexed")
ROOT = pathlib.Path(__file__).parents[1]
SMALL = limits.Budget(bytes=100_000, depth=2, voices=64)


def voice(level):
    """A VCED voice, quiet but for one byte."""
    found = np.zeros((1, 156), np.uint8)
    found[0, 16] = level
    return sysex.write_names(found, [f"V {level}"])


def pack(entries, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


ONE = sysex.voice_message(voice(1)[0])
OTHER = sysex.voice_message(voice(2)[0])


def read(folder, data, budget=SMALL):
    (folder / "bank.zip").write_bytes(data)
    return reading.load(folder / "bank.zip", SPACE, budget=budget)


def test_what_archives_unpack_to_is_counted_through_all_of_them(tmp_path):
    inner = pack({"a.bin": bytes(312 * 128)})
    large = dataclasses.replace(SMALL, voices=10_000)
    assert read(tmp_path, inner, large).report.found == 312
    assert len(inner) < 500
    nested = pack({f"{i}.zip": inner for i in range(3)})
    with pytest.raises(ValueError, match=r"bank\.zip: takes more than 100,000"):
        read(tmp_path, nested, large)


def test_archives_inside_archives_are_counted(tmp_path):
    twice = pack({"b.zip": pack({"a.syx": ONE})})
    assert read(tmp_path, twice).names == ("V 1",)
    with pytest.raises(ValueError, match="2 archives inside each other"):
        read(tmp_path, pack({"c.zip": twice}))
    # Damaged ones beside each other are not inside each other.
    many = {f"{i}.zip": b"PK\x03\x04" for i in range(4)}
    last = pack({**many, "x.zip": pack({"a.syx": ONE})})
    bank = read(tmp_path, last)
    assert bank.names == ("V 1",) and len(bank.report.skipped) == 4


def test_an_entry_larger_than_it_declares_is_not_unpacked(tmp_path):
    data = bytearray(pack({"a.syx": bytes(90_000), "b.syx": ONE}))
    for size in (
        data.index(b"PK\x03\x04") + 22,
        data.index(b"PK\x01\x02") + 24,
    ):
        data[size : size + 4] = (9).to_bytes(4, "little")
    bank = read(tmp_path, bytes(data))
    assert bank.names == ("V 1",)
    assert "a.syx: cannot be unpacked" in bank.report.skipped[0]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_compression_is_not_unpacked(tmp_path, method):
    with pytest.raises(ValueError, match="compressed otherwise"):
        read(tmp_path, pack({"a.syx": ONE}, method))


def test_damaged_entries_are_told_and_the_others_read(tmp_path):
    data = bytearray(pack({"a.syx": ONE, "b.syx": OTHER}))
    data[data.index(b"a.syx") + 20] ^= 0x55
    bank = read(tmp_path, bytes(data))
    assert bank.names == ("V 2",)
    assert "a.syx: cannot be unpacked" in bank.report.skipped[0]


def test_a_file_that_costs_too_much_does_not_end_a_folder(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(200_000))
    (tmp_path / "b.json").write_text("[" * 200_000)
    (tmp_path / "c.json").write_text(json.dumps([{"values": {}}] * 65))
    (tmp_path / "d.bin").write_bytes(bytes(128 * 65))
    (tmp_path / "e.syx").write_bytes(ONE)
    # A folder whose name ends like a file's, and a link to nothing.
    (tmp_path / "f.syx").mkdir()
    (tmp_path / "g.syx").symlink_to(tmp_path / "nothing")
    bank = reading.load(tmp_path, SPACE, budget=SMALL)
    assert bank.names == ("V 1",)
    shown = [
        line.split(": ")[1].split(" to")[0] for line in bank.report.skipped
    ]
    assert shown == [
        *("takes more than 100,000 bytes",) * 2,
        *("takes more than 64 voices",) * 2,
    ]


def test_deep_json_is_told(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"deep\.json: not JSON: nested too"):
        reading.load(tmp_path / "deep.json", SPACE)
    with pytest.raises(ValueError, match=r"deep\.json: not JSON: nested too"):
        limits.read_json(tmp_path / "deep.json")
    with pytest.raises(ValueError, match="more than 9 voices"):
        limits.parse_json(b"[" + b"[]," * 2000 + b"0]", limits.Budget(voices=9))


def test_time_is_counted():
    meter = limits.Meter(limits.Budget(seconds=0.0))
    with pytest.raises(
        limits.OverBudgetError, match=r"0\.0 seconds .*--budget"
    ):
        meter.spend(bytes=1)


def test_errors_stay_short(tmp_path):
    """Whatever is quoted in them."""
    long = "x" * 1_000_000
    for document in (
        [{"name": long, "values": {long: 0}}],
        [{"name": long, "values": {"lfo_speed": long}}],
        [{"name": long, "values": {"lfo_speed": 2}}],
        {"parameter_names": [long], "presets": {long: long}},
    ):
        (tmp_path / "a.json").write_text(json.dumps(document))
        with pytest.raises(ValueError, match=r"a\.json") as error:
            reading.load(tmp_path / "a.json", SPACE)
        assert len(str(error.value)) < 5000
    strange = b"".join(
        b"\xf0\x43\x00\x09" + bytes(n % 99) + b"\xf7" for n in range(9000)
    )
    (tmp_path / "b.syx").write_bytes(strange + OTHER)
    bank = reading.load(tmp_path / "b.syx", SPACE)
    assert bank.names == ("V 2",) and len(str(bank.report)) < 5000
    assert "times)" in str(bank.report) and "and 94 others" in str(bank.report)
    # As many messages as bytes, none of them ended.
    (tmp_path / "c.syx").write_bytes(b"\xf0" * 200_000)
    with pytest.raises(ValueError, match="200000 times"):
        reading.load(tmp_path / "c.syx", SPACE)
    assert len(limits.shorten("a" * 500, 200)) <= 200


def test_a_factor_raises_all_limits():
    wider = limits.Budget().times(2)
    assert wider == limits.Budget(2**29, 6, 2**19, 60.0)
    for factor in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="--budget"):
            limits.Budget().times(factor)


def test_every_command_takes_the_factor(tmp_path):
    file = tmp_path / "deep.zip"
    data = ONE
    for _ in range(4):
        data = pack({"a.zip" if data is not ONE else "a.syx": data})
    file.write_bytes(data)

    def inspect(*words):
        return subprocess.run(
            [sys.executable, "-m", "launch.presets", "inspect", file, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    refused = inspect()
    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith("error: ") and "--budget=4" in line
    assert "presets kept" in inspect("--budget=2").stdout


def test_what_a_damaged_archive_says_is_short():
    """A header's name may be as long as the file, and is quoted."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", bytes(60_000))
    data = bytearray(buffer.getvalue())
    data[26:28] = (50_000).to_bytes(2, "little")  # of the name, in bytes
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (entry,) = archive.infolist()
        with pytest.raises(ValueError, match="cannot be unpacked") as error:
            limits.unzip(archive, entry, 2**20)
    assert len(str(error.value)) < 300
