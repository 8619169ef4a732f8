"""Every experiment file can be read, overridden, and names what exists."""

import importlib.util
import pathlib

import pytest

from launch import experiment
from proxy import audio, encoders, spaces

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(
    p
    for p in FOLDER.glob("*.py")
    if p.stem not in ("__init__", "common") and "def get_config" in p.read_text()
)

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
    experiment.encoder(config)
    experiment.gradient_transformation(config)
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
