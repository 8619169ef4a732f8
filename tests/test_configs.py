"""Every experiment file can be read, overridden, and names what exists."""

import importlib.util
import pathlib

import pytest

from launch.runs import build
from matching import decode, schedules
from proxy import audio, encoders, spaces

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
EXPERIMENTS = sorted(
    p for p in FOLDER.glob("*.py") if "def get_config" in p.read_text()
)
MATCHING = [p for p in EXPERIMENTS if p.stem.endswith("_match")]
FILES = [p for p in EXPERIMENTS if p not in MATCHING]

# Learning rate, beta 1, beta 2, eps; the paper's published settings.
PAPER = {
    "dexed_mlp": (1.2e-2, 0.78, 0.998, 8e-6),
    "dexed_hn": (4e-3, 0.93, 0.987, 2e-7),
    "dexed_hnpt": (7e-3, 0.78, 0.97, 3e-7),
    "dexed_hnptgru": (1.5e-3, 0.775, 0.978, 3e-7),
    "dexed_tfm": (1e-3, 0.91, 0.987, 2e-8),
    "diva_mlp": (1.4e-2, 0.78, 0.998, 2e-8),
    "diva_hn": (4e-3, 0.93, 0.987, 2e-7),
    "diva_hnpt": (4e-3, 0.93, 0.987, 2e-7),
    "diva_hnptgru": (1.5e-3, 0.775, 0.978, 2e-8),
    "diva_tfm": (1e-3, 0.89, 0.987, 5e-10),
    "talnm_mlp": (1.4e-2, 0.91, 0.98, 2e-8),
    "talnm_hn": (1e-2, 0.80, 0.948, 2e-7),
    "talnm_hnpt": (1e-2, 0.80, 0.948, 2e-7),
    "talnm_hnptgru": (1.5e-3, 0.93, 0.987, 2e-8),
    "talnm_tfm": (1e-3, 0.89, 0.987, 5e-10),
}


# Learning rate, moments, eps, decay, warm-up, label smoothing.
PAPER_MATCHING = {
    "dexed_match": (7e-3, 0.86, 0.98, 1e-8, 0.01, 2_070, 0.02),
    "diva_match": (3e-4, 0.91, 0.98, 1e-7, 0.3, 1_080, 0.01),
}
STAGES = [
    "dexed_match_proxy",
    "dexed_proxy_small",
    "diva_match_proxy",
    "diva_proxy_small",
]


def read(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.get_config()


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def experiment_file(request):
    return request.param, *read(request.param)


def test_docstring_has_the_command_hardware_and_figure(experiment_file):
    path, module, _ = experiment_file
    text = module.__doc__
    assert f"python -m launch.train --config configs/{path.name}" in text
    for word in ("Hardware:", "xpected" if "quick" in path.stem else "Figure"):
        assert word in text


def test_config_names_what_exists(experiment_file):
    path, _, config = experiment_file
    assert config.run == f"runs/{config.name}"
    spaces.get(config.synth)
    assert audio.get(config.audio_model).dimension > 0
    assert config.encoder in encoders.names()
    assert config.num_train >= config.batch
    assert len(config.validation) == 2
    build.encoder(config)
    build.gradient_transformation(config)
    if path.stem in PAPER:
        o = config.optimizer
        assert (o.learning_rate, o.b1, o.b2, o.eps) == PAPER[path.stem]
        assert config.batch == (256 if config.encoder == "tfm" else 512)
        scale = 512 // config.batch
        assert o.warmup_steps == 7_500 and o.warmup_factor == 1.0
        assert o.warmup_steps + o.cosine_steps == 200_000 * scale
        assert o.restart_steps == 400_000 * scale
        assert o.minimum == 2e-6 and o.weight_decay == 0
        assert config.num_train * config.epochs // config.batch == (
            600_000 * scale
        )


def test_all_of_the_paper_are_there():
    assert PAPER.keys() <= {p.stem for p in FILES}


def test_configs_share_their_fields(experiment_file):
    _, _, config = experiment_file
    _, other = read(FOLDER / "dexed_hn.py")
    assert set(config) == set(other)
    assert set(config.optimizer) == set(other.optimizer)


# Sound matching --------------------------------------------------------------


@pytest.mark.parametrize("stem", PAPER_MATCHING)
@pytest.mark.parametrize("schedule", schedules.names())
@pytest.mark.parametrize("size", ["", "_small"])
def test_matching_experiments(stem, schedule, size):
    module, default = read(FOLDER / f"{stem}.py")
    config = module.get_config(schedule + size)
    assert set(config) == set(default)
    assert config.name == f"{stem}_{schedule}{size}"
    assert config.run == f"runs/{config.name}"
    assert config.schedule == schedule and config.decoding in decode.MODES
    assert (config.start, config.length) == (0.333, 0.33)
    assert config.batch == 64
    o, paper = config.optimizer, PAPER_MATCHING[stem]
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
    synth = stem.removesuffix("_match")
    proxy = f"{synth}_proxy_small" if size else f"{synth}_match_proxy"
    tuned = read(FOLDER / f"{proxy}.py")[0].get_config("finetuned")
    assert config.proxy == tuned.run
    for field in ("synth", "audio_model", "data", "shard_size", "embed_batch"):
        assert config[field] == tuned[field]
    assert config.render == tuned.render


def test_matching_experiments_are_documented():
    assert [p.stem for p in MATCHING] == list(PAPER_MATCHING)
    for path in MATCHING:
        text = str(read(path)[0].__doc__)
        assert f"python -m launch.train --config configs/{path.name}:" in text
        assert "Hardware:" in text and "Figure to beat" in text
        for name in schedules.names():
            assert name in text
    with pytest.raises(ValueError, match=r"mixed.*there are ploss, mix"):
        read(MATCHING[0])[0].get_config("mixed")


@pytest.mark.parametrize("stem", STAGES)
def test_fine_tuning_goes_on_with_the_proxy(stem):
    module, before = read(FOLDER / f"{stem}.py")
    config = module.get_config("finetuned")
    assert config.init == before.run and config.source == "handcrafted"
    for field in ("synth", "audio_model", "encoder", "sizes", "data"):
        assert config[field] == before[field]
    for o in (before.optimizer, config.optimizer):
        assert o.cosine_steps > o.warmup_steps and o.restart_steps == 0
    with pytest.raises(ValueError, match="unknown stage"):
        module.get_config("tuned")
