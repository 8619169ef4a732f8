"""Shards: the format, what is checked on load, and what disk faults do."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datasets import engines, files, shards
from datasets.spec import DataSpec, differences

SPEC = DataSpec(
    name="tiny",
    synth="dexed",
    synth_version="1",
    space="abc",
    parameters=5,
    audio_model="mel128",
    audio_weights="",
    embedding=3,
    settings=engines.RenderSettings(duration=0.2, sample_rate=8000),
    seed=1,
    splits=(("train", 7), ("test", 2)),
    shard_size=4,
    embed_batch=2,
    keep_audio=True,
    source="handcrafted",
    presets="def",
)


def record(spec, split, row):
    rng = np.random.default_rng([row, len(split)])
    values, scale = shards.quantise(rng.normal(0, 0.1, spec.samples))
    return {
        "index": row,
        "preset": rng.random(spec.parameters, np.float32),
        "embedding": rng.random(spec.embedding, np.float32),
        "name": f"Flöte {row}",
        "audio": values,
        "audio_scale": scale,
    }


def write(directory, spec, split, shard):
    filename = spec.filename(split, shard)
    with (
        files.claim(directory, filename) as granted,
        shards.Writer(directory, spec, split, shard) as writer,
    ):
        assert granted
        for row in spec.shard_rows(split, shard):
            writer.write(record(spec, split, row))
        writer.finish()
    return directory / filename


def write_all(directory, spec):
    shards.open_directory(directory, spec)
    for split, shard in shards.missing(directory, spec):
        write(directory, spec, split, shard)
    assert shards.write_metadata(directory, spec)


@pytest.fixture
def dataset(tmp_path):
    write_all(tmp_path, SPEC)
    return tmp_path


def test_names_follow_tfds():
    assert SPEC.filename("train", 1) == "tiny-train.array_record-00001-of-00002"
    assert list(SPEC.shard_rows("train", 1)) == [4, 5, 6]
    assert [SPEC.num_shards(s) for s, _ in SPEC.splits] == [2, 1]


def test_tfds_opens_it_without_tensorflow(dataset):
    code = f"""
import sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(dataset)!r})
source = builder.as_data_source("train")
print(len(source), len(builder.as_data_source("test")))
row = source[5]
print(row["index"], row["name"].decode(), row["audio"].dtype)
print(row["preset"].tolist(), row["embedding"].shape)
print(builder.info.metadata["spec"]["settings"]["note"])
print("tensorflow" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    sizes, row, arrays, note, tensorflow = result.stdout.splitlines()
    assert sizes == "7 2"
    assert row == "5 Flöte 5 int16"
    assert arrays == f"{record(SPEC, 'train', 5)['preset'].tolist()} (3,)"
    assert note == "60"
    assert tensorflow == "False"


def test_reads_back_what_was_written(dataset):
    columns = shards.read(dataset, SPEC, "train", 1)
    for i, row in enumerate(SPEC.shard_rows("train", 1)):
        wanted = record(SPEC, "train", row)
        for key, value in wanted.items():
            np.testing.assert_array_equal(
                columns[key][i],
                np.float32(value) if key == "audio_scale" else value,
            )


def test_same_records_same_bytes(dataset, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_all(other, SPEC)
    files = {p.name: p.read_bytes() for p in other.iterdir() if p.is_file()}
    assert len(files) == 3 + 3 + 3  # shards, their checks, metadata
    for name, content in files.items():
        assert (dataset / name).read_bytes() == content, name


def test_shard_is_remembered_until_it_changes(dataset):
    assert shards.verify(dataset, SPEC, "train") == 2
    assert shards.verify(dataset, SPEC, "train") == 0
    assert shards.verify(dataset, SPEC, "train", again=True) == 2
    path = dataset / SPEC.filename("train", 0)
    path.write_bytes(path.read_bytes())
    assert shards.verify(dataset, SPEC, "train") == 1


def check_error(dataset, path, *words):
    with pytest.raises(files.ShardError) as error:
        shards.verify(dataset, SPEC, "train")
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    for word in (*words, "launch.precompute"):
        assert word in message
    assert "\n" not in message


def test_truncated_shard(dataset):
    assert shards.verify(dataset, SPEC, "train") == 2
    path = dataset / SPEC.filename("train", 1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    check_error(dataset, path, str(len(content)), str(len(content) // 2))


@pytest.mark.parametrize("where", [0, 0.3, 0.999])
def test_flipped_byte(dataset, where):
    assert shards.verify(dataset, SPEC, "train") == 2
    path = dataset / SPEC.filename("train", 1)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    check_error(dataset, path, "sha256")


def test_shard_of_another_config(dataset, tmp_path_factory):
    settings = dataclasses.replace(SPEC.settings, note=48)
    other_spec = dataclasses.replace(SPEC, settings=settings, seed=9)
    other = tmp_path_factory.mktemp("other")
    write_all(other, other_spec)
    path = dataset / SPEC.filename("train", 0)
    for file in (path, shards.check_path(path)):
        file.write_bytes((other / file.name).read_bytes())
    check_error(
        dataset,
        path,
        "settings.note: wanted 60, found 48",
        "seed: wanted 1, found 9",
    )


def test_swapped_shards(tmp_path):
    """Two whole shards under each other's names."""
    spec = dataclasses.replace(SPEC, splits=(("train", 8),))
    paths = [write(tmp_path, spec, "train", shard) for shard in range(2)]
    for name in (lambda path: path, shards.check_path):
        first, second = (name(path).read_bytes() for path in paths)
        name(paths[0]).write_bytes(second)
        name(paths[1]).write_bytes(first)
    with pytest.raises(files.ShardError, match="another name") as error:
        shards.verify(tmp_path, spec, "train")
    assert str(paths[0]) in str(error.value)
    # Check files of earlier versions did not name their shards.
    for path in map(shards.check_path, paths):
        check = json.loads(path.read_text())
        del check["file"]
        path.write_text(json.dumps(check))
    shards.verify(tmp_path, spec, "train")
    for read in (
        lambda: shards.read(tmp_path, spec, "train", 0),
        lambda: shards.verify(tmp_path, spec, "train", again=True),
    ):
        with pytest.raises(files.ShardError, match="not rows range") as error:
            read()
        assert str(paths[0]) in str(error.value)


def test_missing_check_file_and_shard(dataset):
    path = dataset / SPEC.filename("train", 0)
    shards.check_path(path).unlink()
    check_error(dataset, path, "check file")
    path.unlink()
    check_error(dataset, path, "missing")


def test_folder_of_another_config(dataset):
    other = dataclasses.replace(SPEC, shard_size=2)
    with pytest.raises(files.ShardError) as error:
        shards.open_directory(dataset, other)
    assert "shard_size: wanted 2, found 4" in str(error.value)
    assert str(dataset) in str(error.value)


def test_no_data_set(tmp_path):
    with pytest.raises(files.ShardError, match="holds no data set"):
        shards.read_spec(tmp_path)


def test_spec_round_trip(dataset):
    spec = DataSpec.from_dict(shards.read_spec(dataset))
    assert spec == SPEC
    assert spec.fingerprint() == SPEC.fingerprint()
    changed = dataclasses.replace(SPEC, seed=2)
    assert changed.fingerprint() != SPEC.fingerprint()
    with pytest.raises(files.ShardError, match="another version"):
        DataSpec.from_dict({**SPEC.to_dict(), "format": 99})


def test_what_a_spec_leaves_open_is_that_of_the_folder(tmp_path):
    mine, other = (
        dataclasses.replace(SPEC, weights_sha256=letter * 64) for letter in "ab"
    )
    wanted = dataclasses.replace(SPEC, synth_version="")
    assert shards.adopt(tmp_path, wanted) == wanted
    shards.open_directory(tmp_path, mine)
    assert mine.fingerprint() != SPEC.fingerprint()
    assert DataSpec.from_dict(shards.read_spec(tmp_path)) == mine
    assert shards.adopt(tmp_path, wanted) == mine
    assert shards.adopt(tmp_path, other) == other
    with pytest.raises(files.ShardError, match="weights_sha256: wanted bbb"):
        shards.open_directory(tmp_path, other)
    newer = dataclasses.replace(mine, synth_version="Dexed 2")
    assert shards.adopt(tmp_path, newer) == newer
    with pytest.raises(files.ShardError, match="synth_version: wanted Dexed 2"):
        shards.open_directory(tmp_path, newer)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"name": "Big Name"}, "lower-case"),
        ({"splits": ()}, "no split"),
        ({"splits": (("train", 0),)}, "'train' has 0 rows"),
        ({"splits": (("a-b", 1),)}, "'a-b'"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"embed_batch": 0}, "embed_batch is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_spec(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SPEC, **fields)


def test_unknown_split_names_those_there_are():
    with pytest.raises(ValueError, match="no split 'val', only train, test"):
        SPEC.rows("val")


def test_differences_name_the_field():
    wanted = {"a": {"b": 1, "c": 2}, "d": 3}
    assert differences(wanted, wanted) == []
    assert differences(wanted, {"a": {"b": 1, "c": 5}, "e": 4}) == [
        "a.c: wanted 2, found 5",
        "d: wanted 3, found nothing",
        "e: wanted nothing, found 4",
    ]


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 50),
        elements=st.floats(-8, 8, width=32, allow_subnormal=False),
    )
)
def test_quantised_audio_is_within_half_a_step(audio):
    values, scale = shards.quantise(audio)
    back = shards.dequantise(values, np.array(scale, np.float32))
    assert values.dtype == np.int16
    # And what float32 itself rounds at this size.
    rounding = 2 * np.finfo(np.float32).eps * np.abs(audio).max()
    assert np.abs(back - audio).max() <= 0.5 * scale + rounding
    # Full scale is 32767 unless the sound exceeds it.
    assert scale == pytest.approx(max(1, np.abs(audio).max()) / 32767)


def test_claim_is_exclusive_and_sweeps_up(tmp_path):
    stale = tmp_path / ".x.tmp-elsewhere-1"
    stale.touch()
    with files.claim(tmp_path, "x") as first:
        assert first
        assert not stale.exists()
        with files.claim(tmp_path, "x") as second:
            assert not second
        with files.claim(tmp_path, "y") as other:
            assert other
    with files.claim(tmp_path, "x") as again:
        assert again
    assert list(tmp_path.iterdir()) == []


def test_unfinished_shard_leaves_nothing(tmp_path):
    with (
        pytest.raises(KeyError),
        files.claim(tmp_path, SPEC.filename("train", 0)),
        shards.Writer(tmp_path, SPEC, "train", 0) as writer,
    ):
        writer.write(record(SPEC, "train", 0))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_too_few_records(tmp_path):
    with (
        shards.Writer(tmp_path, SPEC, "train", 0) as writer,
        pytest.raises(files.ShardError, match="1 of 1 records written, 4"),
    ):
        writer.write(record(SPEC, "train", 0))
        writer.finish()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for act in (
        lambda d: shards.open_directory(d, SPEC),
        lambda d: files.claim(d, "x").__enter__(),
        lambda d: shards.Writer(d, SPEC, "train", 0),
    ):
        with pytest.raises(files.ShardError, match="cannot be written"):
            act(tmp_path / "file" / "data")


def test_full_disk_is_one_error_and_keeps_finished_shards(tmp_path):
    """A limit on file size stands in for the end of the disk."""
    code = f"""
import pathlib, resource, signal, sys
from datasets import files, shards
from tests import test_shards as t
directory = pathlib.Path({str(tmp_path)!r})
shards.open_directory(directory, t.SPEC)
t.write(directory, t.SPEC, "train", 0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    t.write(directory, t.SPEC, "train", 1)
except files.ShardError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    lines = [x for x in result.stdout.splitlines() if "cannot be written" in x]
    assert len(lines) == 1
    assert SPEC.filename("train", 1) in lines[0]
    assert "Finished shards are kept" in lines[0]
    assert shards.missing(tmp_path, SPEC) == [("train", 1), ("test", 0)]
    shards.read_check(tmp_path, SPEC, "train", 0)
    assert not list(tmp_path.glob(".*.tmp-*"))


def test_check_file_says_what_it_should(dataset):
    path = dataset / SPEC.filename("train", 0)
    check = json.loads(shards.check_path(path).read_text())
    assert check["records"] == 4
    assert check["bytes"] == path.stat().st_size
    assert check["sha256"] == files.sha256(path)
    assert check["spec"] == SPEC.to_dict()
