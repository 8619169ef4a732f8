"""Shards on Beam and in mirrors: the same bytes, wherever they were made."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from datasets import beam, engines, files, mirror, precompute, shards
from proxy import audio
from tests.test_precompute import CONFIG, SETTINGS, build, contents, make_spec

ROOT = pathlib.Path(__file__).parents[1]
# Beam itself warns of what will change in its next release.
pytestmark = pytest.mark.filterwarnings("default")


def make_renderer():
    return engines.get("dexed", SETTINGS)


def make_embed():
    model = audio.get("mel128")
    return jax.jit(lambda sounds: model.embed({}, sounds))


@pytest.fixture(scope="module")
def spec():
    return make_spec(shard_size=10)


@pytest.fixture(scope="module")
def reference(spec, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference") / "tiny"
    build(spec, directory, make_embed())
    return directory


def test_two_beam_workers_write_the_same_bytes_as_one(
    spec, reference, tmp_path
):
    pairs = precompute.share(spec)
    options = ["--runner=DirectRunner", "--direct_num_workers=2"]
    options.append("--direct_running_mode=multi_processing")
    work = {"make_renderer": make_renderer, "make_embed": make_embed}
    arguments = (spec, tmp_path, "tiny")
    # Some shards are there already.
    build(spec, tmp_path / "tiny", make_embed(), only=pairs[2:4])
    built = beam.build(*arguments, pairs=pairs, options=options, **work)
    assert built == len(pairs) - 2 == 4
    assert contents(tmp_path / "tiny") == contents(reference)
    assert beam.build(*arguments, pairs=pairs, options=options, **work) == 0
    for split, _ in spec.splits:
        shards.verify(tmp_path / "tiny", spec, split)


def test_beam_workers_without_a_shared_folder_use_the_mirror(
    spec, reference, tmp_path, monkeypatch
):
    # A bucket cannot be had in a test: a folder is treated like one.
    remote = os.fspath(tmp_path / "bucket")
    monkeypatch.setattr(mirror, "is_remote", lambda p: str(p) == remote)
    beam.build(
        spec,
        remote,
        "tiny",
        make_renderer,
        make_embed,
        pairs=precompute.share(spec),
        options=["--runner=DirectRunner", "--direct_running_mode=in_memory"],
    )
    # What is read back completes a data set, without building anything.
    local = tmp_path / "tiny"
    assert mirror.fetch(remote, local, spec, precompute.share(spec)) == 6
    report = build(spec, local, make_embed())
    assert report.built == 0
    assert contents(local) == contents(reference)


def test_two_machines_share_a_mirror(spec, reference, tmp_path):
    bucket, pairs = tmp_path / "bucket", precompute.share(spec)
    for task in range(2):
        local = tmp_path / f"machine{task}" / "tiny"
        mine = precompute.share(spec, task=task, num_tasks=2)
        assert mirror.fetch(bucket, local, spec, mine) == 0
        with mirror.following(bucket, local, spec, seconds=0.01):
            build(spec, local, make_embed(), only=mine)
        assert mirror.store(bucket, local, spec) == 0  # all are there
    assert mirror.fetch(bucket, local, spec, pairs) == 3
    assert build(spec, local, make_embed()).built == 0
    assert contents(local) == contents(reference)
    assert not list(local.glob(".*fetched"))


def test_a_damaged_or_foreign_mirror_is_refused(spec, reference, tmp_path):
    bucket = tmp_path / "bucket"
    mirror.check(bucket, "tiny", spec)
    assert mirror.store(bucket, reference, spec) == 6
    path = bucket / "tiny" / spec.filename("train", 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(files.ShardError, match="does not match its checksum"):
        mirror.fetch(bucket, tmp_path / "tiny", spec, [("train", 0)])
    assert not list((tmp_path / "tiny").glob("*array_record-00000-of-00005"))
    other = make_spec(shard_size=10, seed=4)
    with pytest.raises(files.ShardError, match="seed: wanted 4, found 3"):
        mirror.fetch(bucket, tmp_path / "other" / "tiny", other, [])
    with pytest.raises(files.ShardError, match="cannot be reached"):
        mirror.check("s3://no-such-bucket-of-ours/x", "tiny", spec)


def test_the_command_builds_on_beam_and_mirrors(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(data=str(tmp_path / "data")))
    small = [
        f"--config={config}",
        "--config.num_train=80",
        "--config.validation=(1,5)",
        "--config.num_test=5",
    ]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}

    def run(*flags):
        command = [sys.executable, "-m", "launch.precompute", *small, *flags]
        found = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    output = run(
        "--runner=DirectRunner",
        "--pipeline_options=direct_running_mode=in_memory",
        f"--mirror={tmp_path / 'mirror'}",
    )
    assert "4 shards built on DirectRunner" in output
    assert "4 shards from" in output and "complete" in output
    output = run(
        f"--config.data={tmp_path / 'other'}", f"--mirror={tmp_path / 'mirror'}"
    )
    assert "4 shards from" in output and "building" not in output
    assert contents(tmp_path / "other/synthetic") == contents(
        tmp_path / "data/synthetic"
    )
