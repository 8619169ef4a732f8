"""Matching sounds: stages, budgets, files, resumption, errors."""

import dataclasses
import itertools
import json
import os
import types
from typing import Any

import jax
import numpy as np
import pytest
import scipy.io.wavfile

from configs import quickstart
from datasets import engines
from datasets.engines import dexed_batch
from datasets.presets import reading
from launch.match import judge as judging
from launch.match import output
from launch.match import search as searching
from launch.runs import build, checkpoints, data, making
from launch.runs import opened as opening
from matching import distances, refine
from proxy import priors, spaces
from tests import commands

SPACE = spaces.get("dexed")
RATE = 44_100
NOTE, HOLD = 55, 0.6
SEARCH = ("neighbours", "evolution", "ranking")
OPTIONS = judging.Options(
    stages=SEARCH, evaluations=150, nearest=48, children=32, workers=1
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A proxy that was not trained, with data: all that matching reads."""
    folder = tmp_path_factory.mktemp("match")
    config = quickstart.get_config()
    config.run, config.data = str(folder / "run"), str(folder / "data")
    config.audio_model = "mel128"
    config.prior.update({"uniform": 1.0, "fitted": 0.0})
    config.average = 0.0
    config.num_train, config.num_test = 96, 8
    config.validation = (1, 8)
    config.shard_size = 96
    config.workers = 1
    config.sizes.hidden, config.sizes.blocks = 32, 2
    config.render.duration, config.render.hold = 1.0, 0.5
    checkpoints.prepare(config)
    data.record_dataset(folder / "run", making.ensure(config))
    state = build.initial_state(config, np.zeros((1, 128), np.float32))
    with checkpoints.manager(folder / "run") as saved:
        checkpoints.save(saved, 1, state, {"mrr": 0.5})
    return folder / "run"


@pytest.fixture(scope="module")
def setup(run):
    return opening.setup(str(run))


def sound_of(setup, preset, note=NOTE):
    settings = dataclasses.replace(setup.settings, hold=HOLD)
    engine = engines.get("dexed", settings)
    return engine.render(np.asarray(SPACE.to_plugin(preset)), note)


@pytest.fixture(scope="module")
def target(setup):
    """A sound that the engine can make, of a preset not in the bank."""
    preset = setup.bank.presets[7].copy()
    names = [p.name for p in SPACE.used]
    for operator in range(1, 7):
        preset[names.index(f"op{operator}_f_fine")] = 0.3
    return sound_of(setup, np.asarray(SPACE.snap(preset)))


@pytest.fixture
def opened(setup, monkeypatch):
    """Opens the run no more, which compiles its audio model again."""
    monkeypatch.setattr(opening, "setup", lambda *_: setup)


@pytest.fixture(scope="module")
def found(setup, target):
    return searching.search(setup, target, NOTE, HOLD, OPTIONS)


def folder_of(path, *sounds, rate=RATE):
    path.mkdir(exist_ok=True)
    for name, sound in sounds:
        scipy.io.wavfile.write(path / f"{name}.wav", rate, sound)
    return path


def run_command(run, out, *words, **flags):
    given = {
        "run": run,
        "out": out,
        "estimator": False,
        "evaluations": 60,
        "nearest": 48,
        "workers": 1,
        **flags,
    }
    argv = [f"--{name}={value}" for name, value in given.items()]
    commands.run("launch.match", *argv, *words)
    return json.loads((out / "summary.json").read_text())


# The search ------------------------------------------------------------------


def test_every_stage_keeps_or_improves_the_best(found):
    names = [stage["stage"] for stage in found.stages]
    assert names == [searching.BASELINE, *SEARCH]
    best = [stage["distances"]["a_mean"] for stage in found.stages]
    # The quick distance that stages look at is not a_mean to the last digit.
    assert all(b <= a * 1.05 for a, b in itertools.pairwise(best))
    assert best[-1] < best[0]
    renders = [stage["renders"] for stage in found.stages]
    assert renders == sorted(renders)
    assert found.renders == renders[-1] == OPTIONS.evaluations
    assert not found.interrupted


def test_candidates_are_ranked_valid_and_differ(found):
    a_mean = found.distances["a_mean"]
    assert len(a_mean) == OPTIONS.candidates
    assert (np.diff(a_mean) >= 0).all()
    np.testing.assert_allclose(SPACE.snap(found.presets), found.presets)
    apart = np.abs(found.presets[:, None] - found.presets).max(-1)
    assert (apart[~np.eye(len(apart), dtype=bool)] > 0).all()
    last = found.stages[-1]["distances"]
    for name, value in found.distances.items():
        np.testing.assert_allclose(value[0], last[name], rtol=1e-5)


def test_distances_are_those_of_the_presets(setup, target, found):
    clip = sound_of(setup, found.presets[0])
    np.testing.assert_allclose(clip, found.clips[0], atol=1e-6)
    # The target is faded as renders are.
    faded = engines.fade(target.copy(), setup.settings)
    measured = distances.measure(
        jax.numpy.asarray(clip[None]),
        jax.numpy.asarray(faded[None]),
        sample_rate=RATE,
        chosen=("a_mean",),
    )
    np.testing.assert_allclose(
        measured["a_mean"][0], found.distances["a_mean"][0], rtol=1e-4
    )


def test_the_result_depends_on_the_seed_not_on_the_workers(
    setup, target, found
):
    again, other = (
        searching.search(
            setup, target, NOTE, HOLD, dataclasses.replace(OPTIONS, **changed)
        )
        for changed in ({"workers": 3}, {"seed": 1})
    )
    np.testing.assert_array_equal(again.presets, found.presets)
    assert not np.array_equal(other.presets, found.presets)


@pytest.mark.parametrize("off", SEARCH)
def test_each_stage_can_be_turned_off(setup, target, off):
    stages = tuple(name for name in SEARCH if name != off)
    options = dataclasses.replace(OPTIONS, stages=stages, evaluations=60)
    found = searching.search(setup, target, NOTE, HOLD, options)
    names = [stage["stage"] for stage in found.stages]
    wanted = [*stages]
    if off != "neighbours":
        wanted.insert(0, searching.BASELINE)
    assert names == wanted
    assert len(found.presets) == OPTIONS.candidates
    assert found.renders == 60 if "evolution" in stages else found.renders < 60


def test_a_sound_that_is_only_quieter_is_found_at_once(setup):
    quiet = 0.2 * sound_of(setup, setup.bank.presets[9])
    apart = {}
    for level in (True, False):
        options = dataclasses.replace(
            OPTIONS,
            stages=("neighbours", "ranking"),
            evaluations=200,
            nearest=96,
            level=level,
        )
        found = searching.search(setup, quiet, NOTE, HOLD, options)
        apart[level] = found.distances["a_mean"][0]
        # What is said of presets holds when they are rendered.
        clip = sound_of(setup, found.presets[0])
        np.testing.assert_allclose(clip, found.clips[0], atol=1e-6)
    assert apart[True] < 0.6 * apart[False]


def test_the_estimate_is_a_candidate_and_a_row_of_the_table(setup, target):
    guess = setup.bank.presets[3]
    heard = []

    def estimate(sound):
        heard.append(sound)
        return guess

    with_estimator = dataclasses.replace(setup, estimate=estimate)
    options = dataclasses.replace(OPTIONS, stages=("estimator", "ranking"))
    found = searching.search(with_estimator, target, NOTE, HOLD, options)
    assert heard[0].shape == (setup.settings.samples,)
    np.testing.assert_array_equal(found.presets, guess[None])
    # At the run's note, and as it was held there.
    faded = engines.fade(target.copy(), setup.settings)
    known = opening.as_known(setup.settings, faded, NOTE, HOLD)
    np.testing.assert_array_equal(heard[0], known)
    assert np.abs(known - faded).max() > 0.01
    assert [s["stage"] for s in found.stages] == ["estimator", "ranking"]
    assert found.renders == 1


def test_a_budget_in_seconds_ends_the_search(setup, target, monkeypatch):
    clock = iter(np.arange(0, 1e6, 0.02))
    # Of the search alone: others look at the clock, too.
    fake = types.SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr(judging, "time", fake)
    options = dataclasses.replace(OPTIONS, evaluations=0, seconds=4.0)
    found = searching.search(setup, target, NOTE, HOLD, options)
    # Each look at the clock takes 20 ms.
    assert 50 < found.renders < 2_000
    assert 2.0 < found.seconds < 4.5


def test_warming_up_compiles_all_that_a_search_needs(setup, target):
    length = len(target) - 5_000  # that no other test compiled
    options = dataclasses.replace(OPTIONS, evaluations=0, seconds=2.0)
    searching.warm_up(setup, length, options)
    compiled: list[Any] = [judging._quick(OPTIONS.every, RATE), judging._goal]
    compiled += [judging._at_level(OPTIONS.every, SPACE)]
    compiled += [priors.propose, refine.promising, distances._measure]
    before = [f._cache_size() for f in compiled]
    options = dataclasses.replace(OPTIONS, nearest=32)
    searching.search(setup, target[:length], NOTE, HOLD, options)
    assert [f._cache_size() for f in compiled] == before


def test_ctrl_c_keeps_the_best_so_far(setup, target, monkeypatch):
    begin = searching.Judge.begin

    def interrupted(judge, presets):
        if judge.stage == "evolution" and judge.renders > 79:
            raise KeyboardInterrupt
        return begin(judge, presets)

    monkeypatch.setattr(searching.Judge, "begin", interrupted)
    found = searching.search(setup, target, NOTE, HOLD, OPTIONS)
    assert found.interrupted
    assert 79 < found.renders < OPTIONS.evaluations
    assert [s["stage"] for s in found.stages][-2:] == ["neighbours", "ranking"]
    assert (np.diff(found.distances["a_mean"]) >= 0).all()


def test_what_is_kept_is_in_every_candidate(setup, target):
    preset = setup.bank.presets[5]
    locked = np.ones(SPACE.num_used, bool)
    locked[SPACE.module_columns[0]] = False
    kept = refine.Kept(preset, locked)
    found = searching.search(
        setup, target, NOTE, HOLD, OPTIONS, parents=preset[None], kept=kept
    )
    np.testing.assert_array_equal(
        found.presets[:, locked], np.tile(preset[locked], (5, 1))
    )
    assert (found.presets[0] != preset).any()
    # With nothing to vary, the search ends by itself.
    everything = refine.Kept(preset, np.ones_like(locked))
    found = searching.search(
        setup,
        target,
        NOTE,
        HOLD,
        OPTIONS,
        parents=preset[None],
        kept=everything,
    )
    np.testing.assert_array_equal(found.presets, preset[None])
    assert found.renders == 1


def test_who_watches_ends_the_search(setup, target):
    seen = []

    def watch(judge):
        seen.append(judge.best_score)
        return judge.renders < 100

    found = searching.search(setup, target, NOTE, HOLD, OPTIONS, watch=watch)
    assert found.interrupted and 100 <= found.renders < 130
    assert seen == sorted(seen, reverse=True) and len(seen) == 2


def test_presets_that_fail_to_render_are_never_chosen(
    setup, target, monkeypatch
):
    render = dexed_batch.BatchedDexed.render_batch
    bad = setup.bank.presets[:20]
    failing = {np.asarray(SPACE.to_plugin(p)).tobytes() for p in bad}

    def fail(self, values, notes=None, **given):
        clips, reasons = render(self, values, notes, **given)
        for row, preset in enumerate(np.asarray(values)):
            if preset.tobytes() in failing:
                clips[row], reasons[row] = 0, "this one fails"
        return clips, reasons

    monkeypatch.setattr(dexed_batch.BatchedDexed, "render_batch", fail)
    options = dataclasses.replace(
        OPTIONS, stages=("neighbours",), nearest=96, level=False, candidates=76
    )
    found = searching.search(setup, target, NOTE, HOLD, options)
    assert len(found.presets) == 76
    apart = np.abs(found.presets[:, None] - bad[None]).max(-1)
    assert (apart > 0).all()


@pytest.mark.usefixtures("opened")
def test_where_nothing_is_heard_that_is_told(
    run, setup, target, tmp_path, monkeypatch, capsys
):
    render = dexed_batch.BatchedDexed.render_batch

    def fail(self, values, notes=None, **given):
        clips, reasons = render(self, values, notes, **given)
        low = notes is not None and notes[0] == NOTE
        return clips, ["is silent"] * len(values) if low else reasons

    monkeypatch.setattr(dexed_batch.BatchedDexed, "render_batch", fail)
    with pytest.raises(ValueError, match=f"silent or fails at note {NOTE}"):
        searching.search(setup, target, NOTE, HOLD, OPTIONS)
    # The other sounds of a folder are matched.
    higher = sound_of(setup, setup.bank.presets[2], 67)
    sounds = folder_of(tmp_path / "in", ("a", target), ("b", higher))
    note = {"velocity": 100, "sample_rate": RATE, "instrument_family_str": ""}
    note |= {"instrument_source_str": ""}
    (sounds / "examples.json").write_text(
        json.dumps({"a": note | {"pitch": NOTE}, "b": note | {"pitch": 67}})
    )
    (sounds / "audio").mkdir()
    for name in "ab":
        (sounds / f"{name}.wav").rename(sounds / "audio" / f"{name}.wav")
    with pytest.raises(ValueError, match="1 of the sounds"):
        run_command(run, tmp_path / "out", sounds)
    assert "error: a: no preset was heard" in capsys.readouterr().err
    assert (tmp_path / "out" / "b" / "result.json").exists()


def test_ctrl_c_before_anything_was_heard_ends_all(setup, target, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching.Judge, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        searching.search(setup, target, NOTE, HOLD, OPTIONS)


def test_options_and_stages_that_do_not_fit_are_refused(setup, target):
    with pytest.raises(ValueError, match="--noestimator"):
        searching.search(
            setup, target, NOTE, HOLD, judging.Options(evaluations=10)
        )
    with pytest.raises(ValueError, match="no preset was heard"):
        options = judging.Options(stages=("ranking",), evaluations=10)
        searching.search(setup, target, NOTE, HOLD, options)
    with pytest.raises(ValueError, match="unknown stages dance"):
        judging.Options(stages=("dance",))
    with pytest.raises(ValueError, match="seconds=1: give at least 2"):
        judging.Options(seconds=1)
    with pytest.raises(ValueError, match="candidates is 0"):
        judging.Options(candidates=0)
    with pytest.raises(ValueError, match="evaluations is -5"):
        judging.Options(evaluations=-5)


def test_shown_candidates_differ_where_they_can():
    presets = np.zeros((6, 10))
    presets[1, 0] = 1  # like the best but for one parameter
    presets[2, :5] = 1
    presets[3, 5:] = 1
    chosen = searching.different(presets, 3, 4)
    np.testing.assert_array_equal(np.flatnonzero(chosen), [0, 2, 3])
    assert searching.different(presets, 5, 4).sum() == 5


# The command -----------------------------------------------------------------


def test_a_sound_becomes_files(run, target, tmp_path, capsys):
    sounds = folder_of(tmp_path / "in", ("flute", target))
    out = tmp_path / "out"
    summary = run_command(run, out, sounds / "flute.wav", note=NOTE, hold=HOLD)
    assert summary["sounds"] == 1
    folder = out / "flute"
    result = json.loads((folder / "result.json").read_text())
    assert result["note"] == NOTE and result["renders"] == 60
    assert result["bank"] == "96 synthetic presets"
    rate, written = scipy.io.wavfile.read(folder / "target.wav")
    assert rate == RATE and len(written) == RATE
    for i, candidate in enumerate(result["candidates"]):
        from_json, from_syx = (
            reading.load(folder / f"match-{i + 1}{suffix}", SPACE).presets
            for suffix in (".json", ".syx")
        )
        # Both play the same; a .syx has the DX7's integers.
        np.testing.assert_allclose(from_syx, from_json, atol=0.06)
        rate, clip = scipy.io.wavfile.read(folder / f"match-{i + 1}.wav")
        engine = engines.get(
            "dexed",
            engines.RenderSettings(sample_rate=RATE, duration=1.0, hold=HOLD),
        )
        for preset in (from_json[0], from_syx[0]):
            values = np.asarray(SPACE.to_plugin(preset), np.float32)
            np.testing.assert_allclose(
                engine.render(values, NOTE), clip, atol=1e-5
            )
        assert candidate["distances"]["a_mean"] > 0
    assert (folder / "match.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "baseline" in printed and "match-1" in printed


@pytest.mark.usefixtures("opened")
def test_a_folder_resumes_and_bad_files_do_not_end_it(
    run, setup, target, tmp_path, capsys
):
    other = sound_of(setup, setup.bank.presets[2])
    sounds = folder_of(
        tmp_path / "in",
        ("a", np.zeros(RATE, np.float32)),
        ("b", target),
        ("d", other),
    )
    (sounds / "c.wav").write_text("no sound")
    # One that is no name of a folder elsewhere, one that is no formula.
    (sounds / "b.wav").rename(sounds / "$b_y_z$.wav")
    (sounds / "d.wav").rename(sounds / os.fsdecode(b"d\xff.wav"))
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="2 of the sounds"):
        run_command(run, out, sounds)
    errors = capsys.readouterr().err
    assert "a.wav is silent" in errors and "c.wav is not an audio" in errors
    results = sorted(out.glob("*/result.json"))
    assert [path.parent.name[:2] for path in results] == ["$b", "d_"]
    before = [path.stat().st_mtime_ns for path in results]
    for name in "ac":
        (sounds / f"{name}.wav").unlink()
    summary = run_command(run, out, sounds)
    assert summary["sounds"] == 2
    assert [path.stat().st_mtime_ns for path in results] == before
    means = [
        json.loads(path.read_text())["stages"][-1]["distances"]["sot"]
        for path in results
    ]
    np.testing.assert_allclose(
        summary["stages"]["ranking"]["distances"]["sot"], np.mean(means)
    )
    # Asked otherwise, they are matched again.
    run_command(run, out, sounds, seed=1)
    assert [path.stat().st_mtime_ns for path in results] != before


@pytest.mark.usefixtures("opened")
def test_interrupted_sounds_are_written_and_matched_again(
    run, target, tmp_path, monkeypatch
):
    def interrupt(*_):
        raise KeyboardInterrupt

    sounds = folder_of(tmp_path / "in", ("a", target), ("b", target))
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(searching, "_evolve", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_command(run, out, sounds)
    result = json.loads((out / "a" / "result.json").read_text())
    assert result["interrupted"] and result["candidates"]
    assert not (out / "b").exists()
    summary = run_command(run, out, sounds)
    assert summary["sounds"] == 2
    result = json.loads((out / "a" / "result.json").read_text())
    assert not result["interrupted"]

    # Before anything of a third is heard: the first two are summed up.
    sounds = folder_of(tmp_path / "in", ("c", target))
    (out / "summary.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(searching, "_stages", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_command(run, out, sounds)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sounds"] == 2


@pytest.mark.usefixtures("opened")
def test_notes_are_detected_and_clicks_have_a_result(run, tmp_path, capsys):
    time = np.arange(RATE) / RATE
    tone = 0.3 * np.sin(2 * np.pi * 440 * time)
    click = np.random.default_rng(0).normal(size=RATE // 100) * 0.1
    sounds = folder_of(
        tmp_path / "in",
        ("tone", tone.astype(np.float32)),
        ("click", click.astype(np.float32)),
    )
    out = tmp_path / "out"
    run_command(run, out, sounds, evaluations=20)
    tone, click = (
        json.loads((out / name / "result.json").read_text())
        for name in ("tone", "click")
    )
    assert tone["note"] == 69 and not tone["remarks"]
    assert click["note"] == 60
    assert "no clear pitch" in " ".join(click["remarks"])
    assert "0.01 s short" in capsys.readouterr().out


def test_mistakes_are_told_before_anything_is_loaded(
    run, target, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        opening, "setup", lambda *_: pytest.fail("loaded the run")
    )
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        run_command(run, tmp_path, tmp_path / "missing.wav")
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    other = tmp_path / "other.wav"
    other.write_text("no sound either")
    with pytest.raises(ValueError, match="not an audio file"):
        run_command(run, tmp_path, text)
    with pytest.raises(ValueError, match="2 of the sounds could not"):
        run_command(run, tmp_path / "new", text, other)
    with pytest.raises(ValueError, match="no sound given"):
        run_command(run, tmp_path)


def test_a_run_that_is_missing_is_told(target, tmp_path):
    sounds = folder_of(tmp_path / "in", ("a", target))
    with pytest.raises(FileNotFoundError, match="no run at"):
        run_command(tmp_path / "nothing", tmp_path, sounds)


def test_a_summary_is_over_what_all_sounds_have():
    def result(**stages):
        return {
            "stages": [
                {
                    "stage": name,
                    "renders": 10,
                    "seconds": 1.0,
                    "distances": {"a_mean": x, "dtw_mfcc": x, "sot": x},
                }
                for name, x in stages.items()
            ]
        }

    summary = output.summarise(
        [
            result(**{searching.BASELINE: 2.0, "ranking": 1.0}),
            result(
                **{searching.BASELINE: 4.0, "ranking": 2.0, "neighbours": 3}
            ),
        ]
    )
    assert list(summary["stages"]) == [searching.BASELINE, "ranking"]
    assert summary["stages"]["ranking"]["distances"]["a_mean"] == 1.5
    table = output.summary_table(summary)
    assert "-50.0%" in table and "mean of 2 sounds" in table
