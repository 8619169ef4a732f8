import json
import pathlib
from typing import Any

import numpy as np
import pytest
import scipy.stats
from matplotlib import image

from configs.ranking import dexed
from datasets import engines
from datasets.engines import dexed as engine
from launch.rank import output
from launch.rank import study as rank_study
from launch.rank import table as rank_table
from proxy import spaces
from tests import commands
from tests.shared import shared

SPACE = spaces.get("dexed")
ATTRIBUTES = dexed.get_table()["attributes"]
NAMES = [p.name for p in SPACE.parameters]


def table(**fields):
    """Two sweeps of four steps, half a second each."""
    sweeps = [
        {
            "preset": "loud",
            "parameter": "Middle C",
            "interval": [0.25, 0.75],
            "overrides": {"OP1 F Coarse": 0.0},
        },
        {
            "preset": "default",
            "parameters": {"op2_output_level": [0.5, 0.9], "feedback": [1, 0]},
        },
    ]
    return {
        "synth": "dexed",
        "steps": 4,
        "held_seconds": 0.3,
        "render_seconds": 0.5,
        "presets": {"loud": {"op1_output_level": 0.95}},
        "attributes": {"pitch": sweeps[:1], "colour": sweeps[1:]},
    } | fields


def command(capsys, **options):
    """Runs the command; returns what it printed."""
    flags = (f"--{name}={value}" for name, value in options.items())
    commands.run("launch.rank", *flags)
    return capsys.readouterr().out


# The project's table ---------------------------------------------------------


def test_table_has_enough_of_everything():
    assert len(ATTRIBUTES) >= 12
    for rows in ATTRIBUTES.values():
        assert len({row["preset"] for row in rows}) == 10
    sweeps = rank_table.sweeps(dexed.get_table(), SPACE)
    assert {len(sweep.values) for sweep in sweeps} == {20}
    # No two sweeps are alike.
    assert len({s.values.tobytes() for s in sweeps}) == len(sweeps)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_sweep_is_monotone_and_audible(attribute):
    whole = dexed.get_table()
    whole["attributes"] = {attribute: ATTRIBUTES[attribute]}
    settings = rank_table.settings(whole, 16_000)
    renderer = engines.get("dexed", settings)
    sweeps = rank_table.sweeps(whole, SPACE)
    rows = (row for sweep in sweeps for row in sweep.values)
    clips = engines.render_many(renderer, rows, workers=2)
    for sweep in sweeps:
        # As the engine rounds them: every step moves, and none goes back.
        voices = np.stack(
            [engine.to_voices(row, SPACE) for row in sweep.values]
        ).astype(int)
        steps = np.diff(voices, axis=0)
        assert (steps != 0).any(axis=1).all(), sweep.preset
        assert ((steps >= 0).all(0) | (steps <= 0).all(0)).all(), sweep.preset
        sounds = np.stack([np.asarray(next(clips)) for _ in sweep.values])
        level = rank_study.measure(sounds, settings)
        assert level.unfit is None, sweep.preset
        assert level.change > rank_study.AUDIBLE


# Reading tables --------------------------------------------------------------


def test_values_are_base_then_overrides_then_steps():
    pitch, colour = rank_table.sweeps(table(), SPACE)
    defaults = np.array([p.default for p in SPACE.parameters], np.float32)
    expected = np.tile(defaults, (4, 1))
    expected[:, NAMES.index("op1_output_level")] = 0.95
    expected[:, NAMES.index("op1_f_coarse")] = 0
    expected[:, NAMES.index("middle_c")] = [1 / 4, 5 / 12, 7 / 12, 3 / 4]
    np.testing.assert_allclose(pitch.values, expected, rtol=1e-6)
    moved = np.flatnonzero(np.ptp(colour.values, axis=0))
    assert {NAMES[i] for i in moved} == {"op2_output_level", "feedback"}
    np.testing.assert_allclose(
        colour.values[:, NAMES.index("feedback")], [1, 2 / 3, 1 / 3, 0]
    )
    assert (pitch.attribute, pitch.preset) == ("pitch", "loud")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "lout"}, "unknown base preset 'lout', did you mean 'loud'"),
        ({"parameter": "Midle C"}, "parameter of dexed 'middlec'"),
        ({"interval": [0.5, 1.5]}, "Middle C is 1.5, not a number in"),
        ({"interval": [0.5]}, "moves over .0.5., not two values"),
        ({"parameter": None, "parameters": {}}, "nothing moves"),
        ({"overrides": {"feedback": "loud"}}, "feedback is 'loud', not a num"),
    ],
)
def test_mistakes_in_a_table_are_named(change, message):
    wrong = table()
    wrong["attributes"]["pitch"][0] |= change
    with pytest.raises(ValueError, match=f"pitch, '.*': .*{message}"):
        rank_table.sweeps(wrong, SPACE)


def test_files_that_are_no_tables_are_named(tmp_path):
    file = tmp_path / "table.json"
    with pytest.raises(FileNotFoundError, match="--table"):
        rank_table.load("dexed", str(file))
    for text, message in (
        ("{", "not JSON"),
        ("{}", "no table of sweeps"),
        (json.dumps(table(synth="talnm")), "--synth talnm"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            rank_table.load("dexed", str(file))
    with pytest.raises(ValueError, match="no table of sweeps for 'diva'"):
        rank_table.load("diva")
    with pytest.raises(ValueError, match="at least 3"):
        rank_table.sweeps(table(steps=2), SPACE)


def test_presets_come_as_mappings_or_columns(tmp_path):
    file = tmp_path / "presets.json"
    file.write_text(
        json.dumps(
            {
                "parameter_names": ["-", "OP1 Output Level"],
                "presets": {"listed": [0.1, 0.5], "named": {"feedback": 1.0}},
            }
        )
    )
    presets = rank_table.load_presets(str(file))
    given = table()
    given["attributes"]["pitch"][0]["preset"] = "listed"
    pitch, _ = rank_table.sweeps(given, SPACE, presets)
    column = pitch.values[:, NAMES.index("op1_output_level")]
    np.testing.assert_array_equal(column, 0.5)
    file.write_text('{"presets": {"short": [0.1]}}')
    with pytest.raises(ValueError, match="'short' is a list of 1"):
        rank_table.load_presets(str(file))
    file.write_text("[]")
    with pytest.raises(ValueError, match='no "presets"'):
        rank_table.load_presets(str(file))


def test_the_papers_table_is_readable():
    """The 130 sweeps on TAL-NoiseMaker, every name bound."""
    file = str(shared("ranking/talnm_attribute_sweeps.json"))
    presets = str(shared("presets/talnm_factory.json"))
    talnm = spaces.get("talnm")
    found = rank_table.load("talnm", file)
    sweeps = rank_table.sweeps(found, talnm, rank_table.load_presets(presets))
    assert len(sweeps) == 130 and len(found["attributes"]) == 13
    for sweep in sweeps:
        assert sweep.values.shape == (20, 83)
        assert (np.ptp(sweep.values, axis=0) > 0).sum() == 1
    settings = rank_table.settings(found, 32_000)
    assert (settings.hold, settings.duration) == (2, 4)
    wet = [p.name for p in talnm.parameters].index("reverb_wet")
    first = next(s for s in sweeps if s.attribute == "reverb_wet")
    np.testing.assert_allclose(first.values[[0, -1], wet], [0, 1])


# Scores ----------------------------------------------------------------------


def test_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    rows = np.arange(20)[:, None] + 3 * rng.standard_normal((20, 7))
    near, far = (np.abs(rows - rows[end]).sum(1) for end in (0, -1))
    # scipy's own Spearman, as a matrix of the columns' correlations.
    order = np.arange(20)
    matrix: Any = scipy.stats.spearmanr(np.stack([near, far, order], axis=1))[0]
    expected = np.mean([matrix[0, 2], -matrix[1, 2]])
    assert 0.5 < expected < 0.999
    assert rank_study.correlation(rows) == pytest.approx(expected)


def test_correlation_of_perfect_reversed_and_deaf_models():
    straight = np.linspace(0, 1, 20)[:, None] * np.ones(3)
    assert rank_study.correlation(straight) == pytest.approx(1)
    # There and back: the last step is the nearest to the first.
    around = np.abs(np.linspace(-1, 1, 20))[:, None]
    assert abs(rank_study.correlation(around)) < 0.1
    assert rank_study.correlation(np.ones((20, 3))) == 0


def test_what_cannot_be_heard_is_told():
    settings = engines.RenderSettings(sample_rate=8000, duration=1.0)
    rng = np.random.default_rng(0)
    sounds = 0.1 * rng.standard_normal((4, 8000))
    assert rank_study.measure(sounds, settings).unfit is None
    quiet = np.concatenate([sounds[:2], 0.01 * sounds[2:]])
    assert "step 3 is silent" in str(rank_study.measure(quiet, settings).unfit)
    same = sounds[[0, 1, 1, 2]]
    found = rank_study.measure(same, settings)
    assert found.unfit == "steps 2 and 3 sound the same" and found.change == 0


def test_summary():
    scores = {
        "m": {
            "a": [{"preset": "x", "score": 1.0}, {"preset": "y", "score": 0.5}],
            "b": [{"preset": "x", "score": 0.25}],
        }
    }
    found = rank_study.summary(scores)["m"]
    assert found["mean"] == 0.5
    assert (found["worst"], found["worst_attribute"]) == (0.25, "b")
    assert found["attributes"]["a"] == {"mean": 0.75, "std": 0.25}


# The command -----------------------------------------------------------------


@pytest.fixture(name="study")
def _study(tmp_path):
    file = tmp_path / "table.json"
    file.write_text(json.dumps(table()))
    return {
        "synth": "dexed",
        "models": "mel128,transport640",
        "table": str(file),
        "out": str(tmp_path / "out"),
        "workers": 1,
    }


def test_command_writes_what_it_found(study, capsys):
    printed = command(capsys, **study)
    out = pathlib.Path(study["out"])
    content = json.loads((out / "ranking.json").read_text())
    assert content["synth"] == "dexed" and content["sweeps"] == 2
    assert content["engine"].startswith("dexed-py")
    for name in study["models"].split(","):
        rows = content["scores"][name]["pitch"]
        assert [row["preset"] for row in rows] == ["loud"]
        mean = content["summary"][name]["mean"]
        assert 0 < mean <= 1 and f"{mean:.3f}" in printed
    # The pitch of a sine: the model made for it tells the order.
    assert content["summary"]["transport640"]["attributes"]["pitch"][
        "mean"
    ] == pytest.approx(1)
    markdown = (out / "ranking.md").read_text()
    assert markdown in printed and "0.921" in markdown
    latex = (out / "ranking.tex").read_text()
    assert r"\toprule" in latex and r"$\pm$" in latex
    picture = image.imread(out / "ranking.png")
    assert min(picture.shape[:2]) > 100 and np.ptp(picture[..., :3]) > 0.5


def test_an_interrupted_study_goes_on(study, monkeypatch, capsys):
    """Nothing that is known is rendered again, nothing stale is used."""
    study["models"] = "mel128"
    command(capsys, **study)
    out = pathlib.Path(study["out"])
    notes, whole = out / "scores.jsonl", (out / "ranking.json").read_text()
    first, second = notes.read_text().splitlines()
    # Cut off in the middle of the second score.
    notes.write_text(first + "\n" + second[:20])
    rendered = []
    render = engines.render_many

    def counted(renderer, values, **options):
        values = list(values)
        rendered.append(len(values))
        return render(renderer, values, **options)

    monkeypatch.setattr(engines, "render_many", counted)
    command(capsys, **study)
    assert (out / "ranking.json").read_text() == whole
    command(capsys, **study)
    assert (out / "ranking.json").read_text() == whole
    # Another preset under the same name is another sweep.
    changed = table()
    changed["presets"]["loud"]["feedback"] = 1.0
    pathlib.Path(study["table"]).write_text(json.dumps(changed))
    command(capsys, **study)
    assert rendered == [4, 0, 4]


def test_command_tells_of_sweeps_that_cannot_be_heard(study, capsys):
    quiet = table()
    quiet["presets"]["loud"] = {"op1_output_level": 0.3}
    pathlib.Path(study["table"]).write_text(json.dumps(quiet))
    study["models"] = "mel128"
    printed = command(capsys, **study)
    assert "not to be ranked by ear: pitch, loud: step 1 is silent" in printed


def test_published_models_are_listed_beside_the_papers_synthesizer():
    summary = rank_study.summary(
        {"mel128": {"a": [{"preset": "x", "score": 0.5}]}}
    )
    text = output.tables(summary, others=True)
    assert "mn20" in text and "0.976" in text and text.count("mel128") == 2
    assert "mn20" not in output.tables(summary, others=False)
    assert output.published("openl3_mel256_music_6144") == 0.966
    assert output.published("transport640") is None


def test_a_missing_plug_in_is_one_clear_error(study, monkeypatch, capsys):
    monkeypatch.delenv("TALNM_VST3", raising=False)
    pathlib.Path(study["table"]).write_text(
        json.dumps(
            table(
                synth="talnm",
                attributes={
                    "cutoff": [
                        {"parameter": "Filter Cutoff", "interval": [0, 1]}
                    ]
                },
            )
        )
    )
    study["synth"] = "talnm"
    with pytest.raises(ValueError, match="TALNM_VST3"):
        command(capsys, **study)


def test_weights_are_told_apart(tmp_path):
    file = tmp_path / "weights.pt"
    file.touch()
    assert rank_study.weight_files(
        [str(file)], ["mn04", "mn04_mel", "mel128"]
    ) == {"mn04": str(file)}
    named = rank_study.weight_files([f"mn04={file}", f"mn10={file}"], ["mn04"])
    assert named == {"mn04": str(file), "mn10": str(file)}
    with pytest.raises(ValueError, match="mn04, mn10; say which"):
        rank_study.weight_files([str(file)], ["mn04", "mn10"])
    with pytest.raises(ValueError, match="no weights"):
        rank_study.weight_files([str(file)], ["mel128"])
    with pytest.raises(FileNotFoundError, match="no weights at"):
        rank_study.weight_files([f"mn04={file}2"], ["mn04"])
    with pytest.raises(ValueError, match="none of the models takes them"):
        rank_study.load_models(["mel128"], named)
