import json
import pathlib

import numpy as np
import pytest
from matplotlib import image

from configs.ranking import dexed
from datasets import engines
from datasets.engines import dexed as engine
from launch.rank import output
from launch.rank import study as rank_study
from launch.rank import table as rank_table
from proxy import audio, spaces
from tests import commands
from tests.plugins import plugin
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
        assert rank_study.unfit(sounds, settings) is None, sweep.preset
        assert rank_study.alike(sounds) is None, sweep.preset


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
        ({"parameter": "Midle C"}, "parameter of dexed 'midle_c'"),
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


def test_correlation_of_perfect_reversed_and_deaf_models():
    straight = np.linspace(0, 1, 20)[:, None] * np.ones(3)
    assert rank_study.correlation(straight) == pytest.approx(1)
    swapped = np.array([0, 2, 1, 3])[:, None]
    # From either end, distances of two neighbours are swapped: 1 - 6 * 2 / 60.
    assert rank_study.correlation(swapped) == pytest.approx(0.8)
    # There and back: the last step is the nearest to the first.
    around = np.abs(np.linspace(-1, 1, 20))[:, None]
    assert abs(rank_study.correlation(around)) < 0.1
    assert rank_study.correlation(np.ones((20, 3))) == 0
    # Of one end alone: from the first, the distances rise and fall.
    hill = np.array([0, 1, 2, 3, 0.5])[:, None]
    first = rank_study.correlation(hill, ["first"])
    last = rank_study.correlation(hill, ["last"])
    assert first == pytest.approx(0.4) and last != pytest.approx(first)
    assert rank_study.correlation(hill) == pytest.approx((first + last) / 2)


def test_rounding_is_no_difference():
    """A model's last bits depend on where in a batch a sound is."""
    rng = np.random.default_rng(0)
    rows = np.tile(rng.normal(size=320), (20, 1))
    drift = 1e-7 * np.linspace(0, 1, 20)[:, None]
    assert rank_study.correlation((rows + drift).astype(np.float32)) == 0
    assert rank_study.correlation(rows + 1e4 * drift) == pytest.approx(1)

    def embed(sounds):
        # Another result for the same sound at another place.
        places = 1e-4 * np.arange(len(sounds))[:, None]
        return np.sum(sounds, axis=1, keepdims=True) + places

    same = np.ones((20, 50), np.float32)
    assert rank_study.correlation(embed(same)) == pytest.approx(1)
    assert rank_study.correlation(rank_study.embed_steps(embed, same)) == 0
    # Ties count half, wherever they are.
    ties = np.repeat(np.linspace(1, 2, 10, dtype=np.float32), 2)
    ties = ties[:, None] * same
    found = rank_study.correlation(rank_study.embed_steps(embed, ties))
    exact = rank_study.correlation(ties.sum(1, keepdims=True))
    assert found == pytest.approx(exact) and found < 1


def test_what_cannot_be_heard_is_told():
    settings = engines.RenderSettings(sample_rate=8000, duration=1.0)
    rng = np.random.default_rng(0)
    sounds = 0.1 * rng.standard_normal((4, 8000))
    assert rank_study.unfit(sounds, settings) is None
    quiet = np.concatenate([sounds[:2], 0.01 * sounds[2:]])
    assert "step 3 is silent" in str(rank_study.unfit(quiet, settings))
    same = sounds[[0, 1, 1, 2]]
    assert rank_study.unfit(same, settings) is None
    assert rank_study.alike(same) == "steps 2 and 3 sound the same"
    assert rank_study.alike(sounds) is None


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
    # What is not to be heard does not count.
    silent = {"preset": "z", "score": -1.0, "unfit": "step 1 is silent"}
    scores["m"]["a"].append(silent)
    scores["m"]["c"] = [silent]
    again = rank_study.summary(scores)["m"]
    assert again["attributes"].pop("c") == {"mean": None, "std": None}
    assert again == found
    assert "| c " in output.tables(
        {"m": rank_study.summary(scores)["m"]}, others=False
    )
    with pytest.raises(ValueError, match="is silent or too loud"):
        rank_study.summary({"m": {"c": [silent]}})


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
    # Nothing, the second time.
    assert rendered == [4, 4]


def test_command_tells_of_sweeps_that_cannot_be_heard(study, capsys):
    quiet = table()
    quiet["presets"]["loud"] = {"op1_output_level": 0.3}
    pathlib.Path(study["table"]).write_text(json.dumps(quiet))
    study["models"] = "mel128"
    printed = command(capsys, **study)
    assert "not counted: pitch, loud: step 1 is silent" in printed
    content = json.loads(
        (pathlib.Path(study["out"]) / "ranking.json").read_text()
    )
    assert (content["sweeps"], content["counted"]) == (2, 1)
    summary = content["summary"]["mel128"]
    assert summary["mean"] == summary["attributes"]["colour"]["mean"]
    assert "-" in next(x for x in printed.splitlines() if "| pitch" in x)


def test_what_studies_do_in_different_ways(study, capsys):
    """No choice takes the scores of another."""
    study["models"] = "mel128"
    scores = {}
    for name, options in {
        "ours": {},
        "rate": {"rate": 16_000},
        "duration": {"duration": 0.4},
        "ends": {"ends": "first"},
    }.items():
        command(capsys, **study, **options)
        file = pathlib.Path(study["out"]) / "ranking.json"
        content = json.loads(file.read_text())
        scores[name] = content["scores"]["mel128"]["colour"][0]["score"]
        assert content["seconds"] == options.get("duration", 0.5)
    notes = pathlib.Path(study["out"]) / "scores.jsonl"
    # Two sweeps of each, and nothing twice.
    assert len(set(notes.read_text().split("\n"))) == 8 + 1
    assert np.isfinite(list(scores.values())).all()
    with pytest.raises(ValueError, match="--ends=middle: give first"):
        command(capsys, **study, ends="middle")
    with pytest.raises(ValueError, match="--rate=10"):
        command(capsys, **study, rate=10)


def test_sounds_are_as_long_at_another_rate():
    time = np.arange(4000) / 8000
    sound = np.sin(2 * np.pi * 440 * time)[None].astype(np.float32)
    found = rank_study._resampled(sound, 8000, 32_000)
    assert found.shape == (1, 16_000) and found.dtype == np.float32
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 32_000)
    inner = slice(500, -500)
    np.testing.assert_allclose(found[0, inner], expected[inner], atol=5e-3)
    assert rank_study._resampled(sound, 8000, 8000) is sound


def test_renders_may_depend_on_those_before(study, monkeypatch, capsys):
    """Where that is asked for: of the plug-in that is known to leak."""
    monkeypatch.setenv("TALNM_VST3", str(plugin("talnm")))
    rows = [{"parameter": "Filter Cutoff", "interval": [0, 1]}]
    file = pathlib.Path(study["table"])
    whole = table(synth="talnm", attributes={"cutoff": rows})
    file.write_text(json.dumps(whole))
    study |= {"synth": "talnm", "models": "mel128"}
    heard = {}
    embed_steps = rank_study.embed_steps
    for isolation in ("reset", "none"):

        def noted(embed, sounds, isolation=isolation):
            heard[isolation] = sounds
            return embed_steps(embed, sounds)

        monkeypatch.setattr(rank_study, "embed_steps", noted)
        command(capsys, **study, isolation=isolation)
    np.testing.assert_array_equal(heard["none"][0], heard["reset"][0])
    assert np.abs(heard["none"][1:] - heard["reset"][1:]).max() > 1e-3


def test_published_models_are_listed_beside_the_papers_synthesizer():
    summary = rank_study.summary(
        {"mel128": {"a": [{"preset": "x", "score": 0.5}]}}
    )
    text = output.tables(summary, others=True)
    assert "mn20" in text and "0.976" in text and text.count("mel128") == 2
    # The published figure is that of 320 numbers.
    assert output.published("mn04_mel") == 0.965
    assert output.published("mn04") is None
    assert audio.get("mn04_mel").dimension == 320
    assert all(
        name in audio.names()
        for name in output.PUBLISHED
        if not name.startswith("OpenL3")
    )
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
