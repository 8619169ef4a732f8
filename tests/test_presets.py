"""The command that fetches, inspects and exports banks."""

import functools
import hashlib
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from datasets.engines import dexed
from datasets.presets import reading, sysex, writing
from launch import cli
from proxy import priors, spaces, splits
from tests import commands
from tests.shared import shared

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPACE = spaces.get("dexed")


def _launch(*arguments, **environment):
    """Runs `python -m launch.presets`; no proxy, no cache of the user."""
    return subprocess.run(
        [sys.executable, "-m", "launch.presets", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def _bank(seed=0):
    uniform = np.random.default_rng(seed).random((32, SPACE.num_used))
    presets = SPACE.from_uniform(uniform.astype(np.float32))
    names = [f"VOICE {i}" for i in range(32)]
    return writing.to_syx(presets, names, SPACE)


# Commands --------------------------------------------------------------------


def test_fetch_says_what_it_would_get_and_where_to_put_it(tmp_path):
    """Offline: one error, with the URL and the place."""
    done = _launch(
        "fetch",
        f"--cache_dir={tmp_path}",
        # A proxy that nobody listens at stands for no network.
        https_proxy="http://127.0.0.1:1",
        no_proxy="",
    )
    assert done.returncode == 1
    assert "licence: GPL-3.0" in done.stdout
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: builtin_pgm.zip is not in the cache and")
    assert "get https://raw.github" in line
    assert line.endswith(f"put it at {tmp_path / 'builtin_pgm.zip'}")


def test_fetch_takes_a_file_that_is_already_there(tmp_path):
    file = tmp_path / "builtin_pgm.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cartridge.syx", _bank())
    done = _launch("fetch", f"--cache_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"sha256:  {digest} (recorded now" in done.stdout
    assert f"--config.presets={file}" in done.stdout
    done = _launch("fetch", f"--cache_dir={tmp_path}")
    assert "as recorded at the first download" in done.stdout


def test_fetch_says_when_it_cannot_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "synth-proxy-jax" / "presets" / "builtin_pgm.zip"
    # A folder in its place: not even the superuser can write the record.
    record = file.with_name("builtin_pgm.zip.sha256")
    record.mkdir(parents=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cartridge.syx", _bank())
    commands.run("launch.presets", "fetch")
    assert f"not recorded: {record}" in capsys.readouterr().out
    assert set(file.parent.iterdir()) == {file, record}


def test_inspect_reports_and_lists(tmp_path):
    file = tmp_path / "bank.syx"
    file.write_bytes(_bank())
    done = _launch("inspect", file, "--list=3")
    assert done.returncode == 0, done.stderr
    assert "voices found" in done.stdout and "VOICE 2" in done.stdout
    assert "VOICE 3" not in done.stdout and "not rendered" in done.stdout
    gated = _launch("inspect", file, "--gate", "--workers=2")
    assert "dropped: silent" in gated.stdout, gated.stderr


def test_export_writes_what_was_asked_for(tmp_path):
    file = tmp_path / "bank.syx"
    file.write_bytes(_bank())
    out = tmp_path / "one.syx"
    done = _launch("export", file, "--names=VOICE 7", f"--output={out}")
    assert done.returncode == 0, done.stderr
    voices, problems = sysex.parse(out.read_bytes())
    assert sysex.read_names(voices) == ["VOICE 7"] and not problems
    assert len(out.read_bytes()) == 163
    assert (voices <= dexed.largest()).all()
    done = _launch("export", file, f"--output={tmp_path / 'all.json'}")
    assert "32 presets written" in done.stdout, done.stderr
    bank = reading.load(tmp_path / "all.json", SPACE)
    np.testing.assert_array_equal(
        bank.presets, reading.load(file, SPACE).presets
    )
    column = SPACE.index("algorithm")
    kept = sorted({int(a) for a in bank.presets[:, column]})[:2]
    where = f"--where=algorithm={kept[0]},{kept[1]}-{kept[1]}"
    done = _launch("export", file, where, f"--output={tmp_path / 'some.json'}")
    some = reading.load(tmp_path / "some.json", SPACE).presets
    chosen = np.isin(bank.presets[:, column], kept)
    assert 0 < chosen.sum() < 32, done.stderr
    np.testing.assert_array_equal(some, bank.presets[chosen])


def test_fit_learns_from_the_training_part_alone(tmp_path, capsys, monkeypatch):
    quick = functools.partial(priors.fit, levels=4, rounds=1)
    monkeypatch.setattr(priors, "fit", quick)
    file, out = tmp_path / "bank.syx", tmp_path / "a" / "prior.npz"
    file.write_bytes(_bank())
    commands.run("launch.presets", "fit", str(file), f"--output={out}")
    told = capsys.readouterr().out
    presets = reading.load(file, SPACE).presets
    train = presets[splits.split(presets)["train"]]
    prior = priors.from_bytes(out.read_bytes(), SPACE)
    wanted = priors.digest(priors.fit(train, SPACE))
    assert priors.digest(prior) == wanted and wanted in told
    assert f"{len(train)} training presets" in told
    assert "independent" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give fetch, inspect, export, fit, not nothing"),
        (("list",), "not 'list'"),
        (("inspect",), "give at least one file or folder"),
        (("inspect", "/no/such/bank.syx"), "no bank at /no/such/bank.syx"),
        (("export", "BANK"), "--output=FILE.syx or FILE.json"),
        (("export", "BANK", "--names=X", "--output=x.syx"), "named 'X'"),
        (("export", "BANK", "--output=x.fxp"), "written as .syx or .json"),
        (
            ("export", "BANK", "--output=x.syx", "--where=feedback=1"),
            "feedback has no categories",
        ),
        (
            ("export", "BANK", "--output=x.syx", "--where=algorithm=99"),
            "no such preset",
        ),
        (("fit", "BANK"), "fit needs --output=FILE.npz"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, arguments, message):
    file = tmp_path / "bank.syx"
    file.write_bytes(_bank())
    words = [str(file) if a == "BANK" else a for a in arguments]
    with pytest.raises(cli.EXPECTED) as caught:
        commands.run("launch.presets", *words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_presets_of_another_synthesizer_name_it(tmp_path):
    table = shared("presets/talnm_factory.json")
    with pytest.raises(ValueError, match=r"talnm's: --synth=talnm$"):
        commands.run("launch.presets", "inspect", table)
    commands.run("launch.presets", "inspect", table, "--synth=talnm")
    talnm = spaces.get("talnm")
    presets = np.zeros((1, talnm.num_used), np.float32)
    file = tmp_path / "a.json"
    file.write_text(writing.to_json(presets, ["x"], talnm))
    with pytest.raises(ValueError, match=r"talnm's: --synth=talnm$"):
        commands.run("launch.presets", "inspect", file)
    file.write_text('[{"name": "x", "values": {"lfo_sped": 0}}]')
    with pytest.raises(ValueError, match="lfo_speed") as error:
        commands.run("launch.presets", "inspect", file)
    assert "--synth" not in str(error.value)
    file.write_text('{"parameter_names": [], "presets": {"x": []}}')
    with pytest.raises(ValueError, match="without a column") as error:
        commands.run("launch.presets", "inspect", file)
    assert "--synth" not in str(error.value)


def test_a_real_bank_goes_out_and_comes_back(tmp_path):
    file = shared("presets/Dexed_01.syx")
    out = tmp_path / "out.syx"
    done = _launch("export", file, f"--output={out}")
    assert done.returncode == 0, done.stderr
    before = reading.load(file, SPACE)
    after = reading.load(out, SPACE)
    assert after.names == before.names
    # The DX7's integers nearest to the ends of the intervals.
    np.testing.assert_allclose(after.presets, before.presets, atol=0.0051)
