"""Columns and batches, and the data of a config from end to end."""

import dataclasses
import functools
import itertools
import os
import re

import jax
import ml_collections
import numpy as np
import pytest

from configs import common
from datasets import engines, files, loader, shards
from datasets.presets import bank as bank_module
from datasets.presets import writing
from launch.runs import data, devices, making
from tests import commands, test_shards


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    test_shards.write_all(directory, test_shards.SPEC)
    return directory


SPEC = test_shards.SPEC


def test_columns_are_the_rows_in_order(dataset):
    columns = loader.open_columns(
        dataset, SPEC, "train", ("index", "preset", "audio", "audio_scale")
    )
    for row in range(7):
        wanted = test_shards.record(SPEC, "train", row)
        for key, column in columns.items():
            np.testing.assert_array_equal(
                column[row], np.asarray(wanted[key], column.dtype)
            )
    assert all(isinstance(c, np.memmap) for c in columns.values())
    with pytest.raises(ValueError, match="read-only"):
        columns["preset"][0] = 0


def test_columns_are_decoded_once(dataset, monkeypatch):
    loader.open_columns(dataset, SPEC, "test")
    monkeypatch.setattr(shards, "read", None)
    loader.open_columns(dataset, SPEC, "test")
    # Another feature needs the shards again.
    with pytest.raises(TypeError):
        loader.open_columns(dataset, SPEC, "test", ("audio",))
    # A failed decoding leaves no column behind.
    assert not list(dataset.glob(".cache/*/test/audio.npy"))
    assert not list(dataset.glob(".cache/*/test/.tmp-*"))


def test_blocks_give_back_the_memory_of_columns(dataset, monkeypatch):
    columns = loader.open_columns(dataset, SPEC, "train")
    released = []
    monkeypatch.setattr(loader, "release", lambda c: released.append(list(c)))
    kept = [block for _, block in loader.blocks(columns, 3)]
    assert released == [["preset", "embedding"]] * 3
    monkeypatch.undo()
    before = {k: np.array(c) for k, c in columns.items()}
    loader.release({**columns, "more": np.ones(3)})
    for key, column in columns.items():
        np.testing.assert_array_equal(column, before[key])
        whole = np.concatenate([block[key] for block in kept])
        np.testing.assert_array_equal(whole, before[key])


def test_names(dataset):
    names = loader.open_names(dataset, SPEC, "train")
    assert names == [f"Flöte {row}" for row in range(7)]


def test_what_is_not_there_is_named(dataset, tmp_path):
    with pytest.raises(ValueError, match="no column 'mel', only index, preset"):
        loader.open_columns(dataset, SPEC, "train", ("mel",))
    with pytest.raises(ValueError, match="no split 'valid'"):
        loader.open_columns(dataset, SPEC, "valid")
    with pytest.raises(files.ShardError, match="holds no data set"):
        loader.open_columns(tmp_path, SPEC, "train")


def test_other_settings_are_refused(dataset):
    other = dataclasses.replace(
        SPEC, settings=dataclasses.replace(SPEC.settings, hold=1.0)
    )
    with pytest.raises(
        files.ShardError, match=r"settings\.hold: wanted 1\.0, found 2\.0"
    ):
        loader.open_columns(dataset, other, "train")


def test_damaged_shard_is_found_on_load(tmp_path):
    test_shards.write_all(tmp_path, SPEC)
    loader.open_columns(tmp_path, SPEC, "train")
    path = tmp_path / SPEC.filename("train", 0)
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    with pytest.raises(files.ShardError, match="sha256") as error:
        loader.open_columns(tmp_path, SPEC, "train")
    assert str(path) in str(error.value)


def test_damaged_columns_are_decoded_anew(tmp_path):
    test_shards.write_all(tmp_path, SPEC)
    columns = loader.open_columns(tmp_path, SPEC, "train")
    wanted = {key: np.array(column) for key, column in columns.items()}
    path = loader._column_path(tmp_path, SPEC, "train", "preset")
    check = shards.check_path(path)
    whole = path.read_bytes()

    def flip(number):
        content = bytearray(whole)
        content[number * 7919 % len(whole)] ^= 1 << number % 8
        path.write_bytes(content)

    damages = [
        *(functools.partial(flip, number) for number in range(40)),
        *(
            functools.partial(path.write_bytes, whole[:size])
            for size in (0, 1, 100, len(whole) - 1)
        ),
        lambda: np.save(path, np.zeros((100, 384), np.float32)),
        path.unlink,
        check.unlink,  # as of an earlier version
        *(
            functools.partial(check.write_text, text)
            for text in ("", "[]", "{}", '{"sha256": 3, "shards": 4}')
        ),
    ]
    for damage in damages:
        damage()
        columns = loader.open_columns(tmp_path, SPEC, "train")
        for key, column in columns.items():
            np.testing.assert_array_equal(column, wanted[key])
        assert path.read_bytes() == whole


def test_columns_of_other_shards_are_decoded_anew(tmp_path, monkeypatch):
    test_shards.write_all(tmp_path, SPEC)
    loader.open_columns(tmp_path, SPEC, "test")
    path = tmp_path / SPEC.filename("test", 0)
    path.unlink()
    record = test_shards.record
    monkeypatch.setattr(
        test_shards,
        "record",
        lambda *place: {**record(*place), "preset": np.ones(5, np.float32)},
    )
    test_shards.write(tmp_path, SPEC, "test", 0)
    columns = loader.open_columns(tmp_path, SPEC, "test")
    np.testing.assert_array_equal(columns["preset"], np.ones((2, 5)))


def test_a_row_that_is_not_finite_is_named(tmp_path, monkeypatch):
    record = test_shards.record

    def bad(spec, split, row):
        found = record(spec, split, row)
        if row == 5:
            found["embedding"][1] = np.nan
        return found

    monkeypatch.setattr(test_shards, "record", bad)
    test_shards.write_all(tmp_path, SPEC)
    path = tmp_path / SPEC.filename("train", 1)
    with pytest.raises(files.ShardError, match="row 5 of train") as error:
        loader.open_columns(tmp_path, SPEC, "train")
    assert str(path) in str(error.value) and "embedding" in str(error.value)


# Batches ---------------------------------------------------------------------

COLUMNS = {
    "index": np.arange(23),
    "preset": np.arange(46, dtype=np.float32).reshape(23, 2),
}


def take(count, **options):
    source = loader.batches(COLUMNS, 4, seed=5, **options)
    return list(itertools.islice(source, count))


def test_permutation_depends_on_seed_and_epoch_alone():
    orders = [loader.permutation(50, s, e) for s in (0, 1) for e in (0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({o.tobytes() for o in orders}) == 4
    np.testing.assert_array_equal(orders[3], loader.permutation(50, 1, 1))


def test_an_epoch_holds_each_row_once():
    found = take(10)
    for epoch in (0, 1):
        rows = [b["index"] for p, b in found if p.epoch == epoch]
        assert len(rows) == 5
        assert len(set(np.concatenate(rows))) == 20
    left = [
        set(range(23)) - set(np.concatenate([b["index"] for _, b in part]))
        for part in (found[:5], found[5:])
    ]
    assert left[0] != left[1]
    for _, batch in found:
        np.testing.assert_array_equal(
            batch["preset"], COLUMNS["preset"][batch["index"]]
        )


def test_going_on_from_any_position_is_exact():
    whole = take(12)
    for i, (position, _) in enumerate(whole[:-1]):
        ((next_position, batch),) = take(1, start=position)
        assert next_position == whole[i + 1][0]
        np.testing.assert_array_equal(batch["index"], whole[i + 1][1]["index"])


def test_processes_share_a_batch():
    whole = take(7)
    parts = [take(7, process_index=i, process_count=2) for i in range(2)]
    for (position, batch), *halves in zip(whole, *parts, strict=True):
        assert all(position == p for p, _ in halves)
        joined = np.concatenate([b["index"] for _, b in halves])
        np.testing.assert_array_equal(joined, batch["index"])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch_size": 24}, "batch size is 24, the split has 23 rows"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"batch_size": 5, "process_count": 2}, "among 2 processes"),
        ({"start": loader.Position(0, 6)}, "another batch size"),
    ],
)
def test_bad_batches(options, words):
    options = {"batch_size": 4, "seed": 0, **options}
    with pytest.raises(ValueError, match=words):
        next(loader.batches(COLUMNS, **options))
    with pytest.raises(ValueError, match="differ in length"):
        next(loader.batches({"a": np.zeros(2), "b": np.zeros(3)}, 1, seed=0))


def test_blocks_are_the_rows_in_order():
    found = list(loader.blocks(COLUMNS, 10))
    assert [rows for rows, _ in found] == [
        range(0, 10),
        range(10, 20),
        range(20, 23),
    ]
    index = np.concatenate([block["index"] for _, block in found])
    np.testing.assert_array_equal(index, np.arange(23))


def test_joined_columns_are_one_after_the_other():
    halves = [
        {k: c[part] for k, c in COLUMNS.items()}
        for part in (slice(0, 9), slice(9, None))
    ]
    joined = loader.join(*halves)
    for (_, a), (_, b) in itertools.islice(
        zip(
            loader.batches(COLUMNS, 4, seed=1),
            loader.batches(joined, 4, seed=1),
            strict=True,
        ),
        12,
    ):
        for key, rows in a.items():
            np.testing.assert_array_equal(rows, b[key])
    for key, column in COLUMNS.items():
        assert len(joined[key]) == len(column)
        np.testing.assert_array_equal(joined[key][5:11], column[5:11])


def test_batches_reach_the_devices_in_order():
    mesh = devices.mesh()
    assert mesh.size == 4
    wanted = take(9)
    with loader.on_devices(
        loader.batches(COLUMNS, 4, seed=5), devices.split(mesh)
    ) as found:
        for position, batch in wanted:
            there, placed = next(found)
            assert there == position
            assert placed["preset"].sharding == devices.split(mesh)
            assert isinstance(placed["preset"], jax.Array)
            # The batch survives those after it.
            np.testing.assert_array_equal(placed["index"], batch["index"])


def test_background_errors_reach_the_loop():
    def source():
        yield loader.Position(), {"x": np.zeros(4)}
        raise OSError("the disk went away")

    sharding = devices.split(devices.mesh())
    with loader.on_devices(source(), sharding) as found:
        next(found)
        with pytest.raises(OSError, match="the disk went away"):
            next(found)


# A config's data -------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = common.proxy_config("dexed", "hn_oh")
    config.audio_model = "mel128"
    config.data = str(tmp_path_factory.mktemp("data") / "tiny")
    config.num_train, config.validation, config.num_test = 40, (5, 4), 6
    config.shard_size, config.embed_batch, config.workers = 16, 8, 2
    config.batch = 8
    config.render = ml_collections.ConfigDict(
        {"hold": 0.2, "duration": 0.3, "fade_out": 0.05, "min_rms": 0.02}
    )
    return config


def test_ensure_builds_then_finds(config, capfd):
    first = making.ensure(config)
    out, _ = capfd.readouterr()
    assert "building 6 of 6 shards (0 already there)" in out
    assert "66 presets" in out
    assert data.NO_BANK in out
    assert first.handcrafted is None
    second = making.ensure(config)
    out, _ = capfd.readouterr()
    assert "building" not in out
    assert second == first and first.synthetic is not None
    columns = first.synthetic.columns("train")
    assert columns["preset"].shape == (40, 100)
    assert columns["embedding"].shape == (40, 128)


# A library reads config files in an old way.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_verify_reads_everything_again(config, capsys):
    source = making.ensure(config).synthetic
    assert source is not None
    file = source.directory.parent / "config.py"

    def verify(folder):
        file.write_text(
            "import ml_collections\n"
            "def get_config():\n"
            f"    return ml_collections.ConfigDict({{'data': {folder!r}}})\n"
        )
        commands.run("launch.precompute", f"--config={file}", "--verify")
        return capsys.readouterr().out

    told = verify(config.data)
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        assert re.search(rf"synthetic +{split} +{count} +", told)
    assert "every shard and column is whole" in told
    path = source.directory / source.spec.filename("test", 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(files.ShardError, match="sha256"):
        verify(config.data)
    path.write_bytes(whole)
    with pytest.raises(files.ShardError, match="holds no data set"):
        verify(f"{config.data}/nothing")

    # Two shards that changed places, each with its check file.
    first, second = (
        source.directory / source.spec.filename("train", shard)
        for shard in (0, 1)
    )

    def exchange():
        for name in (lambda path: path, shards.check_path):
            one, other = name(first).read_bytes(), name(second).read_bytes()
            name(first).write_bytes(other)
            name(second).write_bytes(one)

    exchange()
    with pytest.raises(files.ShardError, match="another name"):
        verify(config.data)
    exchange()
    for name in ("features.json", "dataset_info.json"):
        path = source.directory / name
        whole = path.read_text()
        for text in ("", whole.replace("4", "5"), "[]"):
            path.write_text(text)
            with pytest.raises(files.ShardError, match=name):
                verify(config.data)
        path.write_text(whole)
    # A column whose bits flip while its time stays, as on a bad disk.
    source.columns("test")
    path = loader._column_path(
        source.directory, source.spec, "test", "embedding"
    )
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(files.ShardError, match=r"embedding\.npy.*sha256"):
        verify(config.data)
    source.columns("test")
    assert path.read_bytes() == whole
    assert re.search(r"synthetic +test +1 +2 +6", verify(config.data))


def test_validate_scores_every_ranking_once(config):
    dataset = making.ensure(config)
    assert dataset.synthetic is not None
    columns = dataset.synthetic.columns("validation")
    mesh = devices.mesh()
    seen = []

    def validator(state, presets, embeddings):
        del state
        seen.append(presets.shape)
        return presets[:, 0, 0], embeddings[..., 0].mean(1)

    found = data.validate(dataset.synthetic, (5, 4), validator, None, mesh)
    assert seen[0][1:] == (4, 100)
    firsts = np.asarray(columns["preset"])[::4, 0]
    np.testing.assert_allclose(found["mrr"], firsts.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        found["l1"], np.asarray(columns["embedding"])[:, 0].mean(), rtol=1e-5
    )


def test_handcrafted_presets_are_gated_split_and_kept(
    config, tmp_path, capfd, monkeypatch
):
    """A bank made of the synthetic presets, and one that is silent."""
    dataset = making.ensure(config)
    assert dataset.synthetic is not None
    space = engines.get("dexed").space
    presets = np.array(dataset.synthetic.columns("train")["preset"])
    silent = presets[:1].copy()
    levels = [i for i, n in enumerate(space.names) if "output_level" in n]
    silent[:, levels] = 0
    presets = np.concatenate([presets, silent])
    names = [f"Preset {i}" for i in range(len(presets))]
    bank = tmp_path / "bank.json"
    writing.save(bank, presets, names, space)
    crafted = config.copy_and_resolve_references()
    crafted.presets = str(bank)

    capfd.readouterr()
    source = making.ensure(crafted).handcrafted
    assert source is not None
    # A folder of its own for each choice of banks.
    assert source.directory.name.startswith("handcrafted-")
    out, _ = capfd.readouterr()
    assert data.NO_BANK not in out
    assert "silent" in out
    assert source.spec.keep_audio
    rows = {}
    for split in source.splits:
        columns = source.columns(split, ("preset", "audio"))
        assert columns["audio"].dtype == np.int16
        for name, preset in zip(
            source.names(split), columns["preset"], strict=True
        ):
            rows[name] = preset
    assert set(rows) == set(names[:-1])
    for i, name in enumerate(names[:-1]):
        np.testing.assert_array_equal(rows[name], presets[i])

    # Rankings of a small split overlap, each for another sound.
    count = source.spec.rows("validation")
    columns = source.columns("validation")
    presets = np.asarray(columns["preset"])
    targets = []

    def validator(state, presets, embeddings):
        del state, embeddings
        assert presets.shape[1] == 2
        targets.extend(np.asarray(presets[:, 0]))
        return presets[:, 0, 0], presets[:, 0, 0]

    mesh = devices.mesh(1)
    data.validate(source, (100, 2), validator, None, mesh)
    np.testing.assert_array_equal(targets[:count], presets)

    # Which ones pass is remembered: the bank is not rendered again.
    monkeypatch.setattr(bank_module, "gate", None)
    assert making.ensure(crafted).handcrafted == source
