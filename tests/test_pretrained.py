"""What comes with the project: its files, and runs exported and opened."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datasets.presets import reading
from launch.match import files
from launch.runs import checkpoints, data, making, opened
from proxy import pretrained, priors, spaces, splits
from tests import commands, matching
from tests.shared import shared

ROOT = pathlib.Path(__file__).parents[1]
SPACE = spaces.get("dexed")


# The fitted prior ------------------------------------------------------------


@pytest.fixture(scope="module")
def voices():
    return reading.load(shared("presets/dx7_voices.bin"), SPACE).presets


def test_none_of_its_draws_is_a_voice(voices):
    prior = pretrained.prior("dexed")
    known = {row.tobytes() for row in np.rint(voices * 10_000).astype("i4")}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        u = rng.random((10_000, prior.uniforms), np.float32)
        codes = np.rint(prior.from_uniform(u) * 10_000).astype("i4")
        assert not known.intersection(row.tobytes() for row in codes)


def test_it_is_like_voices_that_it_never_saw(voices):
    prior = pretrained.prior("dexed")
    parts = splits.split(voices)
    held_out = prior.log_prob(voices[parts["test"]]).mean()
    seen = prior.log_prob(voices[parts["train"]]).mean()
    # Parameters fitted one by one have -212 nats.
    assert -180 < held_out < seen < held_out + 5
    uniform = np.asarray(SPACE.sample(jax.random.key(0), (500,)))
    assert prior.log_prob(uniform).mean() < held_out - 100


def test_other_synthesizers_have_none():
    with pytest.raises(ValueError, match=r"'diva' \(known: dexed\); fit one"):
        pretrained.prior("diva")


# Proxies ---------------------------------------------------------------------


def test_files_are_whole_or_refused():
    arrays = {
        "b/c": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a": np.ones((), np.float32),
    }
    content = pretrained.encode(arrays, {"encoder": "tfm"})
    found, about = pretrained.decode(content)
    assert about["encoder"] == "tfm" and list(found) == ["a", "b/c"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    for broken in (b"", content[:40], content[:-2], damaged):
        with pytest.raises(ValueError, match="not a file of a proxy"):
            pretrained.decode(broken)
    with pytest.raises(ValueError, match="a: int32 cannot be stored"):
        pretrained.encode({"a": np.zeros(2, np.int32)}, {})


@pytest.fixture
def exported(tmp_path, monkeypatch, capsys):
    """A run, and its file where the project's own are looked for."""
    run = matching.save_proxy(tmp_path)
    folder = tmp_path / "files"
    path = folder / "tiny.safetensors"
    commands.run("launch.export", f"--run={run}", f"--output={path}")
    assert f"wrote {path}" in capsys.readouterr().out
    prior = ROOT / "proxy" / "pretrained" / "dexed_prior.npz"
    shutil.copy(prior, folder)
    monkeypatch.setattr(pretrained, "_FILES", folder)
    monkeypatch.chdir(tmp_path)
    return run


def test_an_exported_run_is_loaded(exported):
    run = opened.open_proxy(exported)
    assert pretrained.names() == ("tiny",)
    encoder, variables = pretrained.load("tiny")
    assert encoder.clone(dtype=run.encoder.dtype) == run.encoder
    relaxed = SPACE.to_relaxed(SPACE.sample(jax.random.key(0), (5,)))
    ours, theirs = (
        np.asarray(encoder.apply(v, relaxed, train=False))
        for v in (variables, run.variables)
    )
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-2)
    with pytest.raises(ValueError, match="unknown pretrained proxy 'tini'"):
        pretrained.load("tini")


def test_it_is_a_run_wherever_one_is_expected(exported, tmp_path, capsys):
    proxy = opened.open_proxy("pretrained:tiny")
    place = checkpoints.place("pretrained:tiny")
    assert (
        place.parent == pathlib.Path("runs")
        and (place / "config.json").exists()
    )
    assert checkpoints.place("pretrained:tiny") == place
    assert proxy.config.render == opened.open_proxy(exported).config.render
    relaxed = SPACE.to_relaxed(SPACE.sample(jax.random.key(0), (5,)))
    wanted = opened.open_proxy(exported)
    ours, theirs = (
        np.asarray(p.encoder.apply(p.variables, relaxed, train=False))
        for p in (proxy, wanted)
    )
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-2)
    # A matching experiment goes through it.
    config = matching.match_config(tmp_path, "ploss", "match")
    config.proxy = "pretrained:tiny"
    assert opened.load_proxy(config).step == 0
    with pytest.raises(ValueError, match="unknown pretrained proxy 'other'"):
        checkpoints.place("pretrained:other")


def test_it_makes_the_data_that_it_is_used_with(exported):
    config = checkpoints.read_config("pretrained:tiny")
    config.num_train = config.train_rows = 24
    config.validation, config.num_test = (2, 2), 4
    config.shard_size, config.embed_batch, config.workers = 16, 8, 2
    run = checkpoints.place("pretrained:tiny")
    dataset = making.of_run(run, config)
    assert dataset.synthetic is not None and dataset.handcrafted is None
    prior = pretrained.prior("dexed")
    assert dataset.synthetic.spec.prior == priors.digest(prior)
    assert data.recorded(run, config.data)["synthetic"] == dataset.synthetic
    setup = opened.setup("pretrained:tiny")
    assert len(setup.bank.presets) == 24


def test_matching_searches_what_it_says_of_drawn_presets(exported, tmp_path):
    run = checkpoints.place("pretrained:tiny")
    setup = files.open_setup(run)
    bank = setup.bank
    assert bank.source == "drawn" and len(bank.presets) > 10_000
    assert len(np.unique(bank.presets, axis=0)) == len(bank.presets)
    wanted = opened.open_proxy(exported)
    relaxed = SPACE.to_relaxed(jnp.asarray(bank.presets[-5:]))
    said = wanted.encoder.apply(wanted.variables, relaxed, train=False)
    np.testing.assert_allclose(bank.embeddings[-5:], said, 2e-3, 2e-2)
    # Nothing is rendered, and the next start draws the same.
    assert not (tmp_path / "data").exists()
    np.testing.assert_array_equal(
        files.open_setup(run).bank.presets, bank.presets
    )


# The wheel -------------------------------------------------------------------


def test_a_wheel_has_the_files(tmp_path):
    project = tmp_path / "project"
    for name in ("proxy", "matching"):
        shutil.copytree(ROOT / name, project / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    build = "import setuptools.build_meta as b; b.build_wheel('.')"
    subprocess.run(
        [sys.executable, "-c", build],
        cwd=project,
        check=True,
        capture_output=True,
    )
    (wheel,) = project.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    names = {
        path.name
        for path in (tmp_path / "installed/proxy/pretrained").iterdir()
    }
    assert names >= {
        path.name for path in (ROOT / "proxy/pretrained").glob("*.*")
    }
    assert {"dexed_prior.npz", "README.md"} <= names
    assert (
        sum(
            p.stat().st_size
            for p in (ROOT / "proxy/pretrained").iterdir()
            if p.is_file()
        )
        < 12e6
    )
    code = """
import jax, numpy as np
from proxy import pretrained, priors, spaces
presets = priors.sample(pretrained.prior("dexed"), jax.random.key(0), (2,))
assert presets.shape == (2, 100), presets.shape
for name in pretrained.names():
    encoder, variables = pretrained.load(name)
    relaxed = encoder.space.to_relaxed(presets)
    assert np.isfinite(encoder.apply(variables, relaxed, train=False)).all()
assert "installed" in pretrained.__file__, pretrained.__file__
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, check=True
    )
