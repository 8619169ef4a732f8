"""Plug-ins by the documented commands, from a scaffold to a trained proxy."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from datasets import shards
from launch import noise
from launch import plugin as command
from tests.plugins import plugin

ROOT = pathlib.Path(__file__).parents[1]
# A small network on short clips.
SMALL = [
    "--config.audio_model=mel128",
    "--config.render.hold=0.2",
    "--config.render.duration=0.4",
    "--config.embed_batch=8",
    "--config.sizes.hidden=16",
    "--config.sizes.blocks=1",
    "--config.batch=8",
    "--config.epochs=1",
]


def run(*command, folder=ROOT, succeeds=True, **env):
    """Runs a command line; returns what it printed."""
    unset = {"DIVA_VST3", "TALNM_VST3", "FIXTURE_VST3"} - set(env)
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if k not in unset},
            "JAX_PLATFORMS": "cpu",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode == 0) == succeeds, done.stderr[-2000:]
    return done.stdout if succeeds else done.stderr


# A plug-in of one's own -------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the code, to which a synthesizer may be added."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ("proxy", "matching", "datasets", "launch", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    return folder


def test_from_a_plugin_to_a_proxy(checkout, tmp_path):
    """As proxy/spaces/README.md says."""
    path = plugin()
    found = run("launch.plugin", "inspect", path, folder=checkout)
    assert "Proxy Fixture 1.2.3 by Synth Proxy: 20 parameters" in found
    assert "4 choices: Sine, Triangle, Saw, Square" in found
    assert "looks like no known synthesizer" in found

    hold = "--hold=Hazard,Fault"
    scaffold = ("launch.plugin", "scaffold", path, "--name=fixture", hold)
    told = run(*scaffold, folder=checkout)
    assert "proxy/spaces/fixture.py" in told and "--config.plugin=" in told
    again = run(*scaffold, folder=checkout, succeeds=False)
    assert "fixture.py is there already" in again
    assert "Traceback" not in again

    found = run("launch.plugin", "inspect", path, folder=checkout)
    assert "fixture: 17 of 17 varied parameters matched" in found

    options = [
        "--config=configs/quickstart.py",
        "--config.synth=fixture",
        f"--config.plugin={path}",
        f"--config.data={tmp_path}/data",
        f"--config.run={tmp_path}/run",
        "--config.num_train=384",
        "--config.validation=(1,64)",
        "--config.num_test=64",
        "--config.render.hold=0.2",
        "--config.render.duration=0.4",
        "--config.sizes.hidden=128",
        "--config.sizes.blocks=2",
        "--config.batch=32",
        "--config.epochs=16",
    ]
    made = run("launch.precompute", *options, folder=checkout)
    assert "noise floor of Proxy Fixture 1.2.3 (VST3, reset)" in made
    assert f"{tmp_path}/data/synthetic: complete" in made
    kept = noise.read(tmp_path / "data" / "synthetic")
    assert kept is not None and kept["order"]["max_difference"] == 0
    spec = shards.read_spec(tmp_path / "data" / "synthetic")
    assert spec["synth"] == "fixture"
    assert spec["synth_version"] == "Proxy Fixture 1.2.3 (VST3, reset)"

    # The data are enough: no plug-in from here on.
    options[2] = "--config.plugin="
    run("launch.train", *options, folder=checkout)
    run("launch.evaluate", f"--run={tmp_path}/run", folder=checkout)
    text = (tmp_path / "run" / "evaluation.json").read_text()
    scores = json.loads(text)["results"]["synthetic"]
    # A ranking of 64 by chance: 1/64 (1 + 1/2 + ... + 1/64) = .074.
    mrr = scores["hn_oh"]["metrics"]["mrr/preset_to_audio"]["mean"]
    assert mrr > 0.2


# Diva and TAL-NoiseMaker ----------------------------------------------------


def test_without_diva_one_message_says_what_to_do(tmp_path):
    told = run(
        "launch.train",
        "--config=configs/diva_tfm.py",
        f"--config.run={tmp_path}/run",
        f"--config.data={tmp_path}/data",
        succeeds=False,
    )
    lines = [line for line in told.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: diva is rendered")
    for way in ("DIVA_VST3", "--config.plugin", "--config.data=DIR"):
        assert way in lines[0]
    assert not any(tmp_path.iterdir())


def train(synth, folder, *options, **kwargs):
    return run(
        "launch.train",
        f"--config=configs/{synth}_tfm.py",
        *SMALL,
        "--config.sizes.heads=2",
        "--config.num_train=16",
        "--config.validation=(1,8)",
        "--config.num_test=4",
        f"--config.run={folder}/run",
        f"--config.data={folder}/data",
        # Waiting for a sound is not repeatable on a busy machine.
        "--config.host.warm_up=0",
        *options,
        **kwargs,
    )


@pytest.fixture(scope="module")
def diva(tmp_path_factory):
    """Diva's data set and run, made with a plug-in of Diva's parameters."""
    folder = tmp_path_factory.mktemp("diva")
    train("diva", folder, DIVA_VST3=str(plugin("diva")))
    return folder


def test_diva_runs_from_end_to_end(diva):
    spec = shards.read_spec(diva / "data" / "synthetic")
    assert spec["synth_version"] == "Diva 1.2.3 (VST3, process)"
    assert spec["parameters"] == 173
    assert (diva / "run" / "metrics.jsonl").exists()
    kept = noise.read(diva / "data" / "synthetic")
    assert kept is not None and kept["process"]["max_difference"] == 0


def test_data_made_elsewhere_needs_no_plugin(diva, tmp_path):
    train("diva", tmp_path, f"--config.data={diva}/data")
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    # Another setting would need other data, and so the plug-in.
    told = train(
        "diva",
        tmp_path,
        f"--config.data={diva}/data",
        "--config.render.note=61",
        f"--config.run={tmp_path}/other",
        succeeds=False,
    )
    assert "settings.note: wanted 61, found 60" in told
    # A shard that is missing would have to be rendered.
    copy = tmp_path / "copy"
    shutil.copytree(diva / "data", copy)
    for file in (copy / "synthetic").glob("*-test.*"):
        file.unlink()
    told = train(
        "diva",
        tmp_path,
        f"--config.data={copy}",
        f"--config.run={tmp_path}/third",
        succeeds=False,
    )
    assert "DIVA_VST3" in told and "Traceback" not in told


def test_talnm_runs_from_end_to_end(tmp_path):
    path = plugin("talnm")
    train("talnm", tmp_path, f"--config.plugin={path}")
    spec = shards.read_spec(tmp_path / "data" / "synthetic")
    assert spec["synth_version"] == "TAL-NoiseMaker 1.2.3 (VST3, reset)"
    assert spec["parameters"] == 59


# The command's own errors ---------------------------------------------------


def test_noise_is_measured_by_a_command():
    path = plugin("talnm")
    found = run("launch.plugin", "noise", path, "--presets=2")
    assert "A render depends on its preset alone." in found
    assert "in the reverse order" in found and "fresh process" in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["noise", "PLUGIN"], "looks like no known synthesizer"),
        (["inspect", "PLUGIN", "--synth=divo"], "did you mean 'diva'"),
    ],
)
def test_mistakes_are_told_in_one_line(words, message):
    path = str(plugin())
    words = [path if word == "PLUGIN" else word for word in words]
    told = run("launch.plugin", *words, succeeds=False)
    assert message in told and told.startswith("error: ")
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scaffold", __file__], "needs --name"),
        (["inspect", "/nowhere/X.vst3"], "no plug-in at /nowhere/X.vst3"),
        (["look", "X.vst3"], "say inspect or scaffold or noise"),
        (["inspect"], "say inspect or scaffold or noise"),
    ],
)
def test_words_are_checked_first(words, message, monkeypatch):
    monkeypatch.setattr(command, "_NAME", SimpleNamespace(value=None))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        command.main(words)


def test_scaffolded_files_are_found_by_name(checkout):
    """`proxy.spaces` needs no list of synthesizers."""
    file = checkout / "proxy" / "spaces" / "another.py"
    source = "from proxy.space import binary, space\n"
    file.write_text(source + 'SPACE = space("another", [binary("a", 0.0)])\n')
    code = "from proxy import spaces; print(*spaces.names())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"another", "dexed", "diva", "talnm"} <= set(done.stdout.split())
    assert importlib.util.find_spec("proxy.spaces.another") is None
