"""Plug-ins by the documented commands, from a scaffold to matched sounds."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.io import wavfile

from datasets import drawing, engines, shards
from datasets.engines.vst3 import engine as vst3
from datasets.engines.vst3 import process
from datasets.presets import reading
from launch.runs import checkpoints, noise, opened
from matching import distances
from tests import commands
from tests.plugins import plugin

ROOT = pathlib.Path(__file__).parents[1]
SPACES = ROOT / "proxy" / "spaces"
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


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """What one command has compiled, the next takes from a folder."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        yield


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

# Of the scaffolded synthesizer's data.
RENDER = engines.RenderSettings(hold=0.2, duration=0.4)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the code, to which a synthesizer may be added."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ("proxy", "matching", "datasets", "launch", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    return folder


def fixture_options(folder):
    return [
        "--config.synth=fixture",
        f"--config.data={folder}/data",
        f"--config.render.hold={RENDER.hold}",
        f"--config.render.duration={RENDER.duration}",
    ]


@pytest.fixture(scope="module")
def proxy_run(checkout, tmp_path_factory):
    """The run of a proxy of a plug-in, as proxy/spaces/README.md says."""
    folder, path = tmp_path_factory.mktemp("fixture"), plugin()
    found = run("launch.plugin", "inspect", path, folder=checkout)
    assert "Proxy Fixture 1.2.3 by Synth Proxy: 20 parameters" in found
    assert "4 choices: Sine, Triangle, Saw, Square" in found
    assert "looks like no known synthesizer" in found

    hold = "--hold=Hazard,Fault"
    scaffold = ("launch.plugin", "scaffold", path, "--name=fixture", hold)
    told = run(*scaffold, folder=checkout)
    assert "proxy/spaces/fixture.py" in told and "--config.plugin=" in told

    found = run("launch.plugin", "inspect", path, folder=checkout)
    assert "fixture: 17 of 17 varied parameters matched" in found
    assert "every varied parameter changes its sound or its state" in found

    options = [
        "--config=configs/quickstart.py",
        f"--config.plugin={path}",
        *fixture_options(folder),
        f"--config.run={folder}/run",
        "--config.audio_model=mel128",
        "--config.prior.uniform=1",
        "--config.prior.fitted=0",
        "--config.num_train=384",
        "--config.validation=(1,64)",
        "--config.num_test=64",
        "--config.sizes.hidden=128",
        "--config.sizes.blocks=2",
        "--config.batch=32",
        "--config.epochs=16",
    ]
    made = run("launch.precompute", *options, folder=checkout)
    assert "noise floor of Proxy Fixture 1.2.3 (VST3, reset)" in made
    assert f"{folder}/data/synthetic: complete" in made

    # The data are enough: no plug-in from here on.
    options[1] = "--config.plugin="
    run("launch.train", *options, folder=checkout)
    return folder / "run"


def test_from_a_plugin_to_a_proxy(checkout, proxy_run):
    data = proxy_run.parent / "data" / "synthetic"
    kept = noise.read(data)
    assert kept is not None and kept["order"]["max_difference"] == 0
    assert kept["order"]["embedding"] == 0
    spec = shards.read_spec(data)
    assert spec["synth"] == "fixture"
    assert spec["synth_version"] == "Proxy Fixture 1.2.3 (VST3, reset)"
    run("launch.evaluate", f"--run={proxy_run}", folder=checkout)
    text = (proxy_run / "evaluation.json").read_text()
    scores = json.loads(text)["results"]["synthetic"]
    # A ranking of 64 by chance: 1/64 (1 + 1/2 + ... + 1/64) = .074.
    mrr = scores["hn_oh"]["metrics"]["mrr/preset_to_audio"]["mean"]
    assert mrr > 2 * 0.074


def test_a_plugin_that_ignores_parameters_is_refused(
    checkout, proxy_run, tmp_path
):
    """Before anything is rendered for a data set."""
    path = plugin("worn")
    found = run("launch.plugin", "inspect", path, folder=checkout)
    assert "warning: 4 of 17 varied parameters change neither" in found
    options = [
        "--config=configs/quickstart.py",
        f"--config.plugin={path}",
        *fixture_options(tmp_path),
        "--config.prior.uniform=1",
        "--config.prior.fitted=0",
        "--config.audio_model=mel128",
        "--config.num_train=8",
        "--config.validation=(1,8)",
        "--config.num_test=8",
    ]
    told = run("launch.precompute", *options, folder=checkout, succeeds=False)
    (line,) = [line for line in told.splitlines() if "error: " in line]
    assert "(lfo_rate, lfo_depth, noise, echo)" in line
    assert not list(tmp_path.rglob("*.array_record*"))
    allowed = "--config.host.dead=0.24"
    made = run("launch.precompute", *options, allowed, folder=checkout)
    assert f"{tmp_path}/data/synthetic: complete" in made


def test_a_table_in_which_nothing_varies_is_told(tmp_path, monkeypatch, capsys):
    parameter = {"name": "a", "value": 0.0, "texts": ["-"] * 1001}
    info = {"name": "P", "version": "1", "parameters": [parameter]}
    monkeypatch.setattr(vst3, "examine", lambda path: info)
    words = ["scaffold", __file__, "--name=x", f"--folder={tmp_path}"]
    commands.run("launch.plugin", *words)
    assert "warning: nothing would vary" in capsys.readouterr().out
    parameter["texts"] = ["a", "b"]
    words[2] = "--name=y"
    commands.run("launch.plugin", *words)
    assert "warning" not in capsys.readouterr().out


def space_of(checkout):
    """The scaffolded space; it is no module of this checkout."""
    scope = {}
    source = (checkout / "proxy" / "spaces" / "fixture.py").read_text()
    exec(source, scope)
    return scope["SPACE"]


@pytest.fixture
def target(checkout, tmp_path):
    """The file of a sound of the plug-in, and the engine that made it."""
    space = space_of(checkout)
    # No shorter than `launch.match` takes sounds.
    settings = dataclasses.replace(RENDER, duration=1.0)
    engine = vst3.PluginRenderer(str(plugin()), space, settings)
    presets = drawing.draw(space, 7, "target", range(9))[:, 0]
    for values in np.asarray(space.to_plugin(presets)):
        sound = engine.render(values)
        if engines.check_level(sound, settings) is None:
            break
    file = tmp_path / "sound.wav"
    wavfile.write(file, settings.sample_rate, sound)
    yield file, engine
    engine.close()


def a_mean(clips, sound):
    """Distances of sounds from one."""
    found = distances.measure(
        jnp.stack(clips),
        jnp.asarray(sound[None]),
        sample_rate=RENDER.sample_rate,
        chosen=("a_mean",),
    )
    return np.asarray(found["a_mean"])


def match(checkout, run_folder, target, *options, **kwargs):
    """Matches a sound; checks what was found, and returns its `a_mean`.

    And the target as it was compared: it starts where it is heard.
    """
    file, engine = target
    out = file.parent / "out"
    told = run(
        "launch.match",
        file,
        f"--run={run_folder}",
        f"--out={out}",
        f"--hold={RENDER.hold}",
        f"--note={RENDER.note}",
        *options,
        folder=checkout,
        **kwargs,
    )
    # The plug-in's noise floor stands beside its distances.
    assert "noise floor of Proxy Fixture 1.2.3 (VST3, reset)" in told
    found = out / "sound"
    result = json.loads((found / "result.json").read_text())
    assert (found / "match.png").exists()
    _, clip = wavfile.read(found / "match-1.wav")
    preset = reading.load(found / "match-1.json", engine.space).presets[0]
    values = np.asarray(engine.space.to_plugin(preset))
    state = (found / "match-1.vstpreset").read_bytes()
    # Both files hold what was heard; steps have three decimals in a space.
    loaded = engine.read_state(state, "vstpreset")
    np.testing.assert_allclose(loaded, values, atol=6e-4)
    for given in (values, loaded):
        np.testing.assert_allclose(engine.render(given), clip, atol=1e-6)
    _, heard = wavfile.read(found / "target.wav")
    heard = engines.fade(heard.copy(), engine.settings)
    best = result["candidates"][0]["distances"]["a_mean"]
    assert best == pytest.approx(a_mean([clip], heard)[0], abs=1e-2)
    return best, heard, result


def test_from_a_sound_to_a_preset(checkout, proxy_run, target):
    """With the run of a proxy; its config names no plug-in."""
    words = ("--noestimator", "--evaluations=448", "--nearest=64")
    best, heard, result = match(
        checkout, proxy_run, target, *words, FIXTURE_VST3=str(plugin())
    )
    assert result["renders"] == 448
    assert result["bank"] == "384 synthetic presets"
    engine, space = target[1], target[1].space
    known = drawing.draw(space, 0, "train", range(384))[:, 0]
    mean = np.asarray(space.to_plugin(space.snap(known.mean(0))))
    default = np.array([p.default for p in space.parameters])
    others = [engine.render(mean), engine.render(default)]
    assert best < 0.5 * a_mean(others, heard).min()


def test_a_plugin_in_the_application(checkout, proxy_run, target):
    file, engine = target
    words = ["--port=0", "--evaluations=24", "--candidates=2"]
    with subprocess.Popen(
        [sys.executable, "-m", "launch.app", f"--run={proxy_run}", *words],
        cwd=checkout,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "FIXTURE_VST3": str(plugin()),
        },
        stdout=subprocess.PIPE,
        text=True,
    ) as application:
        try:
            lines = application.stdout or ()
            found = (re.search(r"http://\S+", line) for line in lines)
            address = next(match.group() for match in found if match)

            def ask(path, data=None):
                with urllib.request.urlopen(
                    f"{address}/{path}", data, timeout=120
                ) as answer:
                    if path == "events":
                        return answer.readline().removeprefix(b"data: ")
                    return answer.read()

            ask("sound?name=a.wav&seconds=5", file.read_bytes())
            told: dict[str, Any] = {}
            step: dict[str, Any] = {"state": ""}
            while step["state"] != "done":
                time.sleep(0.2)
                told = json.loads(ask("events"))
                step = told["step"]
                assert step["state"] != "failed", step["message"]
            assert told["endings"] == [".vstpreset", ".json"]
            # The plug-in's noise floor stands beside its distances.
            floor = noise.read(proxy_run.parent / "data" / "synthetic")
            assert floor and told["floor"] == noise.worst(floor)["a_mean"]
            best = step["candidates"][0]
            assert best["graph"] is None
            state = ask(f"presets/{best['id']}.vstpreset")
            _, clip = wavfile.read(io.BytesIO(ask(f"sounds/{best['id']}.wav")))
        finally:
            application.terminate()
    played = step["target"]
    settings = dataclasses.replace(engine.settings, hold=played["hold"])
    values = engine.read_state(state, "vstpreset")
    with contextlib.closing(engine.at(settings)) as renderer:
        again = renderer.render(values, played["note"])
    np.testing.assert_allclose(again, clip, atol=1e-6)


def test_from_a_sound_through_an_estimator(checkout, proxy_run, target):
    folder = proxy_run.parent
    run(
        "launch.train",
        "--config=configs/dexed.py:match_small",
        "--config.schedule=ploss",
        *fixture_options(folder),
        f"--config.plugin={plugin()}",
        "--config.audio_model=mel128",
        f"--config.proxy={proxy_run}",
        f"--config.run={folder}/match",
        "--config.stand_in.train=16",
        "--config.stand_in.validation=4",
        "--config.stand_in.test=4",
        "--config.batch=8",
        "--config.epochs=1",
        folder=checkout,
    )
    *_, result = match(
        checkout,
        folder / "match",
        target,
        "--evaluations=9",
        "--nearest=8",
        "--noevolution",
    )
    assert result["stages"][0]["stage"] == "estimator"
    assert result["bank"] == "16 synthetic presets"


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


def test_that_message_waits_for_nothing_heavy():
    code = "import sys; from launch.train import estimator, proxy; "
    code += "print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"matplotlib", "scipy", "tensorflow_datasets", "pedalboard"}
    assert not heavy & set(done.stdout.split())


def train(synth, folder, *options, **kwargs):
    return run(
        "launch.train",
        f"--config=configs/{synth}.py:tfm",
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


def test_matching_needs_the_plugin(diva, monkeypatch):
    monkeypatch.delenv("DIVA_VST3", raising=False)
    match = "set the environment variable DIVA_VST3 or --plugin"
    with pytest.raises(engines.MissingPluginError, match=match):
        opened.setup(str(diva / "run"))


def test_matching_starts_the_plugin_once(diva, tmp_path, monkeypatch):
    """And opening its run, evaluating and reporting it, not at all."""
    monkeypatch.setenv("DIVA_VST3", str(plugin("diva")))
    started = []
    start = process.Worker.__init__

    def count(self, *arguments):
        started.append(arguments)
        start(self, *arguments)

    monkeypatch.setattr(process.Worker, "__init__", count)
    # As Diva is not driven: in one process.
    config = checkpoints.read_config(diva / "run")
    config.host.isolation = "reset"
    run = shutil.copytree(diva / "run", tmp_path / "run")
    (run / "config.json").write_text(config.to_json())
    commands.run("launch.evaluate", f"--run={run}")
    commands.run("launch.report", f"--out={tmp_path}/page", run)
    assert not started

    file, rate = tmp_path / "sound.wav", RENDER.sample_rate
    wavfile.write(file, rate, np.sin(np.arange(rate, dtype=np.float32) / 16))
    commands.run(
        "launch.match",
        f"--run={run}",
        f"--out={tmp_path}/out",
        # The run of a proxy: there is no estimator to ask.
        "--evaluations=24",
        "--nearest=8",
        "--workers=1",
        file,
    )
    assert (tmp_path / "out/sound/match-1.vstpreset").exists()
    assert len(started) == 1


def test_a_run_of_before_is_told(diva, tmp_path):
    """Runs had no kind once."""
    run = shutil.copytree(diva / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    del config["kind"]
    (run / "config.json").write_text(json.dumps(config))
    for name, words in (("evaluate", [f"--run={run}"]), ("report", [run])):
        with pytest.raises(ValueError, match=r"no \"kind\".* train it again"):
            commands.run(f"launch.{name}", f"--out={tmp_path}/out", *words)


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


def test_a_plugin_is_timed_beside_its_bare_host(tmp_path):
    run(
        "launch.benchmark",
        "render",
        "--synth=talnm",
        f"--plugin={plugin('talnm')}",
        "--seconds=0.2",
        f"--json={tmp_path}/rates.json",
    )
    rates = json.loads((tmp_path / "rates.json").read_text())
    bare, *ours = rates["render"]["rows"]
    assert bare["what"] == "bare pedalboard, TAL-NoiseMaker"
    assert bare["of limit"] == 100
    assert ours[0]["what"] == "our host, 1 worker, TAL-NoiseMaker"
    for row in ours:
        assert row["per second"] > 0
        assert row["of limit"] == pytest.approx(
            100 * row["per core"] / bare["per core"]
        )


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
def test_words_are_checked_first(words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        commands.run("launch.plugin", *words)


def test_a_table_is_never_overwritten():
    with pytest.raises(ValueError, match=r"diva\.py is there already"):
        commands.run("launch.plugin", "scaffold", __file__, "--name=diva")


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
