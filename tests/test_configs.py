"""Every row of every experiment file names what exists, with its settings."""

import math
import pathlib
import runpy

import ml_collections
import pytest

from configs import dexed, diva, quickstart, ranges, talnm, voices
from launch.runs import build
from matching import decode, schedules
from proxy import audio, encoders, spaces

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
# Files of one experiment.
ALONE = {"quickstart": quickstart, "voices": voices}
FILES = {"dexed": dexed, "diva": diva, "talnm": talnm}
ROWS = [
    (synth, name)
    for synth, file in FILES.items()
    for name in file.ROWS
    if not name.startswith("match") or "proxy" in name
]

# Learning rate, beta 1, beta 2, eps; the paper's published settings.
PAPER = {
    ("dexed", "mlp_oh"): (1.2e-2, 0.78, 0.998, 8e-6),
    ("dexed", "hn_oh"): (4e-3, 0.93, 0.987, 2e-7),
    ("dexed", "hn_pt"): (7e-3, 0.78, 0.97, 3e-7),
    ("dexed", "hn_ptgru"): (1.5e-3, 0.775, 0.978, 3e-7),
    ("dexed", "tfm"): (1e-3, 0.91, 0.987, 2e-8),
    ("diva", "mlp_oh"): (1.4e-2, 0.78, 0.998, 2e-8),
    ("diva", "hn_oh"): (4e-3, 0.93, 0.987, 2e-7),
    ("diva", "hn_pt"): (4e-3, 0.93, 0.987, 2e-7),
    ("diva", "hn_ptgru"): (1.5e-3, 0.775, 0.978, 2e-8),
    ("diva", "tfm"): (1e-3, 0.89, 0.987, 5e-10),
    ("talnm", "mlp_oh"): (1.4e-2, 0.91, 0.98, 2e-8),
    ("talnm", "hn_oh"): (1e-2, 0.80, 0.948, 2e-7),
    ("talnm", "hn_pt"): (1e-2, 0.80, 0.948, 2e-7),
    ("talnm", "hn_ptgru"): (1.5e-3, 0.93, 0.987, 2e-8),
    ("talnm", "tfm"): (1e-3, 0.89, 0.987, 5e-10),
}
# Learning rate, moments, eps, decay, warm-up, label smoothing.
PAPER_MATCHING = {
    "dexed": (7e-3, 0.86, 0.98, 1e-8, 0.01, 2_070, 0.02),
    "diva": (3e-4, 0.91, 0.98, 1e-7, 0.3, 1_080, 0.01),
}
# Epochs, learning rate, moments, eps, decay and warm-up of fine-tuning.
PAPER_TUNING = {
    "dexed": (250, 1e-3, 0.9, 0.998, 1e-8, 0.01, 3_450),
    "diva": (250, 5e-5, 0.86, 0.998, 1e-8, 0.08, 600),
}


def row(synth, name):
    return FILES[synth].get_config(name)


@pytest.mark.parametrize(
    ("synth", "name"), [*ROWS, *((file, "") for file in ALONE)]
)
def test_a_row_names_what_exists(synth, name):
    config = row(synth, name) if name else ALONE[synth].get_config()
    assert config.kind == "proxy" and config.run == f"runs/{config.name}"
    assert sum(config.prior.values()) == 1
    spaces.get(config.synth)
    assert audio.get(config.audio_model).dimension > 0
    assert config.encoder in encoders.names()
    assert config.num_train >= config.batch
    assert len(config.validation) == 2
    build.encoder(config)
    build.gradient_transformation(config)
    other = row("dexed", "hn_oh")
    assert set(config) == set(other)
    assert set(config.optimizer) == set(other.optimizer)


def test_all_presets_are_trained_on_unless_fewer_are_asked_for():
    config = quickstart.get_config()
    config.num_train = 2_048
    assert config.train_rows == 2_048
    config.train_rows = 1_024
    assert (config.num_train, config.train_rows) == (2_048, 1_024)


def test_voices_follow_what_the_command_line_says():
    config = voices.get_config("modules_tfm")
    assert config.run == "runs/voices_modules_tfm"
    for presets, epochs in ((131_072, 40), (1_048_576, 10)):
        config.num_train, config.epochs = presets, epochs
        steps = (presets + 14_088) // config.batch * epochs
        o = config.optimizer
        assert o.warmup_steps + o.cosine_steps == steps
    config.train_rows = 16_384
    steps = (16_384 + 14_088) // config.batch * config.epochs
    assert o.warmup_steps + o.cosine_steps == steps


@pytest.mark.parametrize(
    ("name", "runs", "steps"),
    [
        ("people", 6, 1_079),
        ("uniform", 4, 1_079),
        ("tokens", 2, 1_079),
        ("longer", 4, 5_400),
        ("paper", 3, 1_079),
        ("tfm", 1, 119),
    ],
)
def test_voices_are_compared_in_as_many_steps(name, runs, steps):
    proxies = voices.get_plan(name)["proxies"]
    assert len({c.run for c in proxies}) == len(proxies) == runs
    for config in proxies:
        ranges.check(config)
        both = config.source == "both"
        assert both == (config.prior.uniform == 0)
        epoch = (config.train_rows + 14_088 * both) // config.batch
        assert abs(epoch * config.epochs / steps - 1) < 0.15
        o = config.optimizer
        assert o.warmup_steps + o.cosine_steps == epoch * config.epochs
        assert config.train_rows <= config.num_train
    # One folder has all that any of the runs sees, drawn from one prior.
    made = {(c.data, c.num_train, c.prior.to_json()) for c in proxies}
    assert len(made) == 1
    with pytest.raises(ValueError, match=r"no plan 'other'.*uniform"):
        voices.get_plan("other")


@pytest.mark.parametrize(("synth", "name"), PAPER)
def test_the_papers_settings(synth, name):
    config = row(synth, name)
    o = config.optimizer
    assert (o.learning_rate, o.b1, o.b2, o.eps) == PAPER[synth, name]
    assert config.batch == (256 if config.encoder == "tfm" else 512)
    scale = 512 // config.batch
    assert o.warmup_steps == 7_500 and o.warmup_factor == 1.0
    assert o.warmup_steps + o.cosine_steps == 200_000 * scale
    assert o.restart_steps == 400_000 * scale
    assert o.minimum == 2e-6 and o.weight_decay == 0
    assert config.num_train * config.epochs // config.batch == 600_000 * scale
    assert not any(size is not None for size in config.sizes.values())
    assert 0 < FILES[synth].ENCODERS[name].mrr <= 1


def test_the_cards_command_names_the_transformer_of_diva():
    (config,) = (
        runpy.run_path(str(path))["get_config"]()
        for path in FOLDER.glob("*_tfm.py")
    )
    assert config.to_dict() == row("diva", "tfm").to_dict()


@pytest.mark.parametrize("file", [*FILES.values(), *ALONE.values()])
def test_a_docstring_has_the_command_and_hardware(file):
    name = pathlib.Path(file.__file__).name
    assert f"python -m launch.train --config configs/{name}" in file.__doc__
    assert "Hardware:" in file.__doc__


@pytest.mark.parametrize("synth", FILES)
def test_a_wrong_name_lists_the_right_ones(synth):
    with pytest.raises(ValueError, match=r"no experiment 'tmf'.*hn_ptgru, tfm"):
        row(synth, "tmf")


@pytest.mark.parametrize(
    ("synth", "name"), [r for r in ROWS if r[1].endswith("_finetuned")]
)
def test_fine_tuning_goes_on_with_its_proxy(synth, name):
    before, config = (
        row(synth, name.removesuffix("_finetuned")),
        row(synth, name),
    )
    assert config.init == before.run and config.source == "handcrafted"
    for field in ("synth", "audio_model", "encoder", "sizes", "data"):
        assert config[field] == before[field]
    o = config.optimizer
    assert o.cosine_steps > o.warmup_steps and o.restart_steps == 0
    if not name.startswith("proxy_small"):
        found = (o.learning_rate, o.b1, o.b2, o.eps, o.weight_decay)
        assert (config.epochs, *found, o.warmup_steps) == PAPER_TUNING[synth]


@pytest.mark.parametrize("synth", PAPER_MATCHING)
@pytest.mark.parametrize("size", ["", "_small"])
def test_estimators(synth, size):
    config = row(synth, f"match{size}")
    assert config.kind == "estimator" and config.decoding in decode.MODES
    assert config.schedule in schedules.names()
    for schedule in schedules.names():
        config.schedule = schedule
        assert config.name == f"{synth}_match_{schedule}{size}"
        assert config.run == f"runs/{config.name}"
    assert (config.start, config.length) == (0.333, 0.33)
    assert config.batch == 64
    o, paper = config.optimizer, PAPER_MATCHING[synth]
    assert (o.learning_rate, o.b1, o.b2, o.eps, o.weight_decay) == paper[:5]
    assert config.label_smoothing == paper[6]
    if size:
        assert (config.num_train, config.epochs) == (4_096, 60)
    else:
        assert (config.num_train, config.epochs) == (0, 600)
        assert o.warmup_steps == paper[5]
        assert config.validate_every == 10
        assert (config.plateau.factor, config.plateau.patience) == (0.5, 5)
    # Its proxy is one of the experiments, fine-tuned, on the same data.
    proxy = "proxy_small" if size else "match_proxy"
    tuned = row(synth, f"{proxy}_finetuned")
    assert config.proxy == tuned.run
    for field in ("synth", "audio_model", "data", "shard_size", "embed_batch"):
        assert config[field] == tuned[field]
    assert config.render == tuned.render


def leaves(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.mark.parametrize(
    ("synth", "name"),
    [(synth, name) for synth, file in FILES.items() for name in file.ROWS],
)
def test_every_number_has_a_range_and_lies_in_it(synth, name):
    config = row(synth, name)
    ranges.check(config)
    for field, value in leaves(config.to_dict()):
        if not isinstance(value, bool | str) and field != "sizes.pooling":
            assert field in ranges.FIELDS, field


BAD = {
    "seed": (-1, 2**70),
    "run": ("", " "),
    "data": ("",),
    "validation": ((0, 2), (3, 3, 3), 7),
    "num_test": (0,),
    "train_rows": (0, 1.5),
    "sampling.at_default": (math.nan, -0.1, 1.0),
    "render.duration": (1e9, 0.0, math.nan),
    "render.note": (-1, 128, 60.5),
    "host.isolation": ("cage",),
    "host.timeout": (0.0, "long"),
    "sizes.hidden": (0, -3),
    "dtype": ("float99",),
    "epochs": (0, -1, True, None),
    "batch": (0,),
    "accumulate": (0,),
    "devices": (-1,),
    "average": (math.nan, 1.0),
    "optimizer.learning_rate": (-1.0, math.inf, math.nan),
    "optimizer.clip_norm": (-1.0,),
    "optimizer.b1": (2.0,),
    "optimizer.eps": (0.0,),
    "log_every": (0,),
    "checkpoint_minutes": (math.nan,),
}


def test_all_that_is_out_of_range_is_listed_at_once():
    for number in range(3):
        content = row("dexed", "hn_oh").to_dict()
        wanted = []
        for field, values in BAD.items():
            *path, last = field.split(".")
            part = content
            for step in path:
                part = part[step]
            part[last] = values[number % len(values)]
            wanted.append(f"config.{field}={part[last]!r}, need ")
        with pytest.raises(ValueError, match=r"^out of range: ") as error:
            ranges.check(ml_collections.ConfigDict(content))
        assert len(str(error.value).split("; ")) == len(wanted)
        for words in wanted:
            assert words in str(error.value)


def test_ends_of_intervals():
    for text, inside, outside in (
        ("[0, 1)", (0, 0.5, 0.0), (1, 1.0, -1e-9, math.nan, None, "0", False)),
        ("(0, 1]", (1, 1e-9), (0, 1.1)),
        ("whole [1, 4e9]", (1, 4_000_000_000), (1.0, 0, 4_000_000_001)),
        ("two whole [1, 9]", ((1, 9), [2, 3]), ((1, 10), (1,), 5, None, "12")),
        ("[0, 1] or None", (None, 1), (2,)),
        (("a", ""), ("a", ""), ("b", None, 0)),
    ):
        for value in inside:
            assert ranges.fits(value, text), (text, value)
        for value in outside:
            assert not ranges.fits(value, text), (text, value)


def test_schedules_are_documented_where_they_are_chosen():
    for name in schedules.names():
        assert name in str(dexed.__doc__)


def test_the_quickstart_takes_more_presets_in_as_many_steps():
    def steps(config):
        return config.num_train // config.batch * config.epochs

    small, large = (
        {c.encoder: c for c in plan["proxies"]}
        for plan in (quickstart.get_plan(), quickstart.get_plan("65536"))
    )
    for name, config in large.items():
        epoch = config.num_train // config.batch
        assert 0 <= steps(config) - steps(small[name]) < epoch
        assert config.num_train == 65_536
        assert config.data != small[name].data
        assert config.run != small[name].run
    for wrong in ("0", "many"):
        with pytest.raises(ValueError, match=f"{wrong}: give a number"):
            quickstart.get_config(wrong)
