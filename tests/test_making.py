"""What a config's presets are drawn from, and what is kept from whom."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from configs import common
from datasets import drawing
from datasets.presets import reading, writing
from launch.evaluate import proxy as evaluate_proxy
from launch.runs import checkpoints, data, making
from launch.train import proxy as train
from proxy import pretrained, priors, spaces, splits

SPACE = spaces.get("dexed")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Sixty presets that are surely heard."""
    folder = tmp_path_factory.mktemp("bank")
    ways = priors.Ways(crossover=0.0, difference=0.0, share=(0.05, 0.3))
    prior = priors.Variations(SPACE, SPACE.defaults[None], ways)
    u = np.random.default_rng(0).random((60, prior.uniforms))
    presets = prior.from_uniform(u.astype(np.float32)).astype(np.float32)
    names = [f"Preset {i}" for i in range(60)]
    writing.save(folder / "bank.json", presets, names, SPACE)
    return folder / "bank.json"


@pytest.fixture
def config(bank, tmp_path):
    config = common.proxy_config("dexed", "hn_oh")
    config.audio_model = "mel128"
    config.data = str(tmp_path / "data")
    config.num_train, config.validation, config.num_test = 40, (4, 2), 6
    config.shard_size, config.embed_batch, config.workers = 16, 8, 2
    config.render.update({"hold": 0.2, "duration": 0.3, "fade_out": 0.05})
    config.presets = str(bank)
    return config


def prior_of(config) -> tuple[Any, Any]:
    with making.maker(config) as maker:
        return maker.prior, making.synthetic(maker, config).spec


def test_the_default_is_uniform_and_no_spec_says_so(config):
    config.presets = ""
    config.sampling.at_end = 0.2
    prior, spec = prior_of(config)
    assert isinstance(prior, priors.Uniform) and prior.at_end == 0.2
    assert spec.at_end == 0.2 and "prior" not in spec.to_dict()


def test_variations_have_parents_of_the_training_part_alone(config, bank):
    config.prior.update({"uniform": 0.0, "variations": 1.0})
    prior, spec = prior_of(config)
    presets = reading.load(bank, SPACE).presets
    parts = splits.split(presets)
    assert isinstance(prior, priors.Variations) and len(parts["test"]) > 3
    np.testing.assert_array_equal(prior.parents, presets[parts["train"]])
    assert spec.prior == priors.digest(prior) and spec.at_end == 0
    # Another split has other parents.
    config.data_seed = 1
    assert prior_of(config)[1].prior != spec.prior


def test_a_fitted_prior_is_the_projects_or_a_file(config, tmp_path):
    config.prior.update({"uniform": 0.25, "fitted": 0.75})
    mixture, _ = prior_of(config)
    assert mixture.shares == (0.25, 0.75)
    ours = pretrained.prior("dexed")
    assert priors.digest(mixture.priors[1]) == priors.digest(ours)
    config.fitted = str(tmp_path / "prior.npz")
    with pytest.raises(
        ValueError, match=r"config\.fitted=.*No such file.*uniformly"
    ):
        prior_of(config)
    presets = drawing.draw(SPACE, 0, "train", range(50), prior=ours)[:, 0]
    other = priors.fit(presets, SPACE, rounds=1)
    (tmp_path / "prior.npz").write_bytes(priors.to_bytes(other))
    mixture, _ = prior_of(config)
    assert priors.digest(mixture.priors[1]) == priors.digest(other)


def test_priors_that_cannot_be(config):
    config.prior.variations = 0.5
    with pytest.raises(ValueError, match="uniform, fitted, variations that"):
        prior_of(config)
    config.prior.uniform, config.presets = 0.5, ""
    with pytest.raises(ValueError, match="no bank to vary"):
        prior_of(config)
    config = common.proxy_config("talnm", "hn_oh")
    config.prior.update({"uniform": 0.0, "fitted": 1.0})
    with pytest.raises(ValueError, match=r"'talnm'.*launch\.presets fit"):
        prior_of(config)


def test_a_run_on_the_first_rows_is_one_on_so_many(config, tmp_path):
    config.update({"batch": 8, "epochs": 2, "seed": 3})
    config.sizes.update({"hidden": 8, "blocks": 1})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 0})
    config.center = True
    found = {}
    for folder, there in (("many", 40), ("few", 24)):
        config.data, config.run = f"{tmp_path}/{folder}", f"{tmp_path}/{there}"
        config.num_train, config.train_rows = there, 24
        run = train.train(config)
        with checkpoints.load(run)[1] as saved:
            found[folder] = checkpoints.restore_raw(saved, 6)["params"]
        dataset = making.ensure(config)
        assert dataset.synthetic is not None
        ridge = evaluate_proxy.fit_baselines(config, dataset)
        found[f"{folder}, ridge"] = ridge["ridge regression"](
            dataset.synthetic.columns("test")["preset"]
        )
    for key in ("", ", ridge"):
        jax.tree.map(
            np.testing.assert_array_equal,
            found["few" + key],
            found["many" + key],
        )
    config.train_rows = 25
    with pytest.raises(ValueError, match=r"train_rows=25.*num_train=24"):
        making.ensure(config)


def test_training_on_both_and_testing_on_what_was_never_seen(config, bank):
    config.prior.update({"uniform": 0.0, "fitted": 0.5, "variations": 0.5})
    config.source = "both"
    dataset = making.ensure(config)
    assert dataset.synthetic is not None and dataset.handcrafted is not None
    ours = dataset.synthetic.columns("train")
    theirs = dataset.handcrafted.columns("train")
    columns = data.training_columns(config, dataset)
    for name, column in columns.items():
        wanted = np.concatenate([ours[name], theirs[name]])
        np.testing.assert_array_equal(column[:], wanted)
    validated = data.training_source("both", dataset)
    assert validated == dataset.handcrafted
    # Voices of the test part, and none that was learned from.
    held_out = dataset.handcrafted.columns("test")["preset"]
    for source in ("both", "synthetic"):
        config.source = source
        found = evaluate_proxy.test_sets(config, dataset)["hand-crafted"]
        np.testing.assert_array_equal(found["preset"], held_out)
    presets = reading.load(bank, SPACE).presets
    train = presets[splits.split(presets)["train"]]
    assert not (held_out[:, None] == train).all(-1).any()
    # The same gallery, where nothing was learned from any of them.
    config.prior.update({"uniform": 1.0, "fitted": 0.0, "variations": 0.0})
    found = evaluate_proxy.test_sets(config, dataset)["hand-crafted"]
    np.testing.assert_array_equal(found["preset"], held_out)
    few = dataclasses.replace(
        dataset.handcrafted.spec, splits=(("train", len(theirs["preset"])),)
    )
    crafted = dataclasses.replace(dataset.handcrafted, spec=few)
    none = dataclasses.replace(dataset, handcrafted=crafted)
    with pytest.raises(ValueError, match="too few presets for a test split"):
        evaluate_proxy.test_sets(config, none)
