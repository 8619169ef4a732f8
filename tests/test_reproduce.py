"""Reproduction: kills change nothing, failures name the command to resume."""

import copy
import csv
import json
import pathlib
import random
import types

import jax
import pytest
from scipy.io import wavfile

from configs import dexed, quickstart
from datasets import files
from launch.runs import checkpoints, plots
from tests import commands
from tests.matching import RENDER

reproduce = types.SimpleNamespace(**commands.load("launch.reproduce"))

PLANS = (
    "configs/quickstart.py",
    *(f"configs/paper.py:{synth}" for synth in ("dexed", "diva", "talnm")),
)


@pytest.mark.parametrize("path", PLANS)
def test_plans_hold_what_the_paper_does(path):
    plan = reproduce.read_plan(path)
    matching = "talnm" not in path
    encoders = {c.encoder for c in plan["proxies"]}
    if "paper" in path:
        assert encoders == {"mlp_oh", "hn_oh", "hn_pt", "hn_ptgru", "tfm"}
    schedules = {c.schedule for c in plan["matches"]}
    assert schedules == ({"ploss", "mix", "switch"} if matching else set())
    for bank in ("", "BANK"):
        found = reproduce.stages(plan, "F", bank, "", "")
        names = [stage.name for stage in found]
        assert len(set(names)) == len(names)
        assert names[0].startswith("data F/") and names[-1] == "tables and page"
        assert any("finetuned" in n for n in names) == bool(bank and matching)
        # An estimator learns through the tuned proxy, or, without a bank,
        # through the one it would have been tuned from.
        proxies, tuned, matches = reproduce.settle(plan, "F", bank, "")
        runs = {c.run for c in (*proxies, *tuned)}
        assert {c.proxy for c in matches} <= runs
        assert all(c.init in runs for c in tuned)
        assert all(c.proxy in {t.run for t in tuned} for c in matches if bank)


def test_proxies_share_the_data_that_they_are_compared_on():
    plan = reproduce.read_plan("configs/voices.py:longer")
    names = [s.name for s in reproduce.stages(plan, "F", "BANK", "", "")]
    data = [n for n in names if n.startswith("data ")]
    assert data == ["data F/data/voices_people_65536"]
    assert len(names) == len(set(names)) == 1 + 2 * 4 + 1


def tiny_plan():
    proxy = quickstart.get_config()
    proxy.name, proxy.run, proxy.data = "tiny", "runs/tiny", "data/tiny"
    proxy.render.update(RENDER)
    proxy.num_train, proxy.validation, proxy.num_test = 128, (4, 8), 48
    proxy.shard_size, proxy.batch, proxy.epochs = 64, 32, 3
    proxy.sizes.hidden, proxy.sizes.blocks = 16, 2
    proxy.evaluation.repeats, proxy.evaluation.subset = 2, 32
    half = copy.deepcopy(proxy)
    half.name, half.run, half.train_rows = "tiny_half", "runs/tiny_half", 64
    match = dexed.get_config("match_small")
    match.name, match.run = "tiny_mix", "runs/tiny_mix"
    match.audio_model, match.data = proxy.audio_model, proxy.data
    match.prior = proxy.prior
    match.render.update(RENDER)
    match.proxy, match.shard_size = proxy.run, 64
    match.num_train, match.batch, match.epochs = 24, 8, 2
    match.stand_in.update({"train": 24, "validation": 6, "test": 6})
    match.validate_every, match.log_every = 1, 2
    match.evaluation.resamples = 200
    return {
        "name": "tiny",
        "proxies": [proxy, half],
        "tuned": [],
        "matches": [match],
    }


def run(folder, plan=None):
    plan = plan or tiny_plan()
    found = reproduce.stages(plan, str(folder), "", "", "")
    out = reproduce.results_folder(plan, str(folder))
    reproduce.run(found, out, "THIS COMMAND")
    return out


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("compiled"))
    with pytest.MonkeyPatch.context() as patch:
        # UMAP compiles for long; the page's own test draws one.
        flat = lambda *both: [x[:, :2] for x in both]  # noqa: E731
        patch.setattr(plots, "_umap", flat)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield
        jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def results(folder, out):
    """Everything that a reader sees, but for the place it is at."""
    files = [out / "tables.md", out / "comparison.json", out / "curve.png"]
    files += [p for p in (out / "site").rglob("*") if p.is_file()]
    files += [folder / "runs/tiny/evaluation.json"]
    return {
        str(p.relative_to(folder)): p.read_bytes().replace(
            str(folder).encode(), b""
        )
        for p in files
    }


def test_it_leads_from_nothing_to_a_page(finished, capsys):
    folder, out = finished
    text = (out / "tables.md").read_text()
    for part in ("## tiny\n", "## tiny_mix", "## Schedules compared"):
        assert part in text
    assert "hn_oh" in text and "nearest neighbour" in text
    assert "held-out synthetic presets" in text and "no bank" in text
    page = (out / "site" / "index.html").read_text()
    assert "In-domain: Dexed" in page and "no bank of hand-crafted" in page
    with (out / "proxies.csv").open() as file:
        whole, half = csv.DictReader(file)
    assert (whole["run"], half["run"]) == ("tiny", "tiny_half")
    for found, presets, steps in ((whole, 128, 12), (half, 64, 6)):
        assert (found["synthetic"], found["handcrafted"]) == (str(presets), "0")
        assert found["prior"] == "fitted" and found["gallery"] == "32"
        assert int(found["steps"]) == steps
        # Matrices of 32 presets, there and back twice: once for each weight,
        # once for each input.
        assert float(found["flop"]) > 6 * steps * 32 * 16 * 192
        assert 0 < float(found["seconds"]) < 600
        assert 0 < float(found["mrr_audio_to_preset"]) <= 1
    assert float(whole["flop"]) == pytest.approx(2 * float(half["flop"]))
    assert "| synthetic   | hn_oh" in text
    assert "proxies/curve.png" in page
    before = results(folder, out)
    run(folder)
    assert "8 of 8 stages are done" in capsys.readouterr().out
    assert results(folder, out) == before


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def test_killed_anywhere_the_results_are_the_same(finished, tmp_path):
    seed = random.randrange(10**6)
    print("moments drawn with seed", seed)
    moments, left = random.Random(seed), [0]

    def fused(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    kills = 0
    with pytest.MonkeyPatch.context() as patch:
        # Whatever leaves a mark may be the last thing that is done.
        for module, name in (
            (checkpoints, "save"),
            (checkpoints, "prepare"),
            (plots, "_save"),
            (files, "write_atomically"),
            (wavfile, "write"),
            (pathlib.Path, "write_text"),
        ):
            patch.setattr(module, name, fused(getattr(module, name)))
        for _ in range(10):
            left[0] = moments.randint(1, 12)
            try:
                out = run(tmp_path)
            except Killed:
                kills += 1
            else:
                break
    assert kills >= 5
    out = run(tmp_path)
    assert results(tmp_path, out) == results(*finished)


def test_a_failure_names_the_stage_and_the_command(finished, tmp_path):
    plan = tiny_plan()
    plan["proxies"][0].batch = 1000
    with pytest.raises(RuntimeError) as error:
        run(tmp_path, plan)
    message = str(error.value)
    assert message.startswith("[2/8] train tiny: ") and "1000" in message
    assert message.endswith("to go on from here: THIS COMMAND")
    done = json.loads((tmp_path / "results/tiny/stages.json").read_text())
    assert len(done) == 1 and next(iter(done)).startswith("data ")
    # With another setting, what depends on it is not taken for done.
    other = copy.deepcopy(tiny_plan())
    other["matches"][0].epochs = 3
    digests = [
        {s.name: s.digest for s in reproduce.stages(p, "F", "", "", "")}
        for p in (tiny_plan(), other)
    ]
    changed = [n for n, d in digests[0].items() if digests[1][n] != d]
    assert changed == ["match tiny_mix", "evaluate matches", "tables and page"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("configs/none.py", "no such Python file"),
        ("configs/dexed.py", "defines no get_plan"),
        (
            "configs/paper.py:prophet",
            "no plan for 'prophet'; there are dexed, diva",
        ),
    ],
)
def test_plans_that_are_none(path, message):
    with pytest.raises(ValueError, match=message):
        reproduce.read_plan(path)
