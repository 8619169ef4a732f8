"""Fields of the sound-matching experiments, with the paper's values.

Three stages, each a run: a proxy on synthetic presets, the same proxy
fine-tuned on hand-crafted ones, and the estimator that learns through it.
Each has the paper's size and a small one for two CPU cores.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from configs import common

# Training presets of the paper's hand-crafted sets, for lengths in steps.
PAPER_PRESETS = {"dexed": 22_116, "diva": 7_721}


def rows(
    synth: str,
    proxy: common.Published,
    *,
    epochs: int,
    tuning: Mapping[str, Any],
    small_tuning: Mapping[str, Any],
    estimator: Mapping[str, Any],
    **fields: Any,
) -> dict[str, Callable[[], Any]]:
    """The rows of sound matching.

    Args:
      synth: "dexed" or "diva".
      proxy: rate and moments of the paper's proxy for matching.
      epochs: passes of the paper's proxy over its presets.
      tuning: how the paper's proxy is fine-tuned, see `common.finetuned`.
      small_tuning: how the small proxy is, see `common.finetuned`.
      estimator: fields of the estimator's optimizer; in place of
        `warmup_steps`, `warmup_epochs`.
      **fields: other fields of the estimator's config.

    Returns:
      Makers of configs: "match_proxy" and "proxy_small", each also with
      "_finetuned"; "match" and "match_small", the estimators.
    """
    large = {
        "match_proxy": functools.partial(proxy_config, synth, proxy, epochs)
    }
    small = {"proxy_small": functools.partial(small_proxy_config, synth)}

    def match(name: str, size: str) -> Any:
        config = match_config({**large, **small}[name](), size)
        optimizer = dict(estimator)
        presets = config.num_train or PAPER_PRESETS[synth]
        optimizer["warmup_steps"] = round(
            presets // config.batch * optimizer.pop("warmup_epochs")
        )
        config.optimizer.update(optimizer)
        config.update(fields)
        return config

    return {
        **large,
        **common.tuned_rows(large, **tuning),
        **small,
        **common.tuned_rows(small, **small_tuning),
        "match": functools.partial(match, "match_proxy", ""),
        "match_small": functools.partial(match, "proxy_small", "_small"),
    }


def proxy_config(synth: str, published: common.Published, epochs: int) -> Any:
    """The paper's proxy for matching: tfm on mn20_mel, 2.56 M presets.

    The paper lowers the rate by 0.1 after 5 epochs without progress in L1;
    here it falls along a cosine over the same epochs.
    """
    config = common.proxy_config(synth, "tfm", published)
    config.name = f"{synth}_match_proxy"
    config.audio_model = "mn20_mel"
    config.data = f"data/{synth}_mn20_mel"
    config.num_train = 2_560_000
    config.epochs = epochs
    config.optimizer.cosine_steps = epochs * 10_000 - 7_500
    config.optimizer.restart_steps = 0
    return config


def small_proxy_config(synth: str) -> Any:
    """A proxy for matching on two CPU cores: hn_oh on mn04_mel."""
    config = common.proxy_config(synth, "hn_oh")
    config.name = f"{synth}_proxy_small"
    config.audio_model = "mn04_mel"
    config.data = f"data/{synth}_mn04_mel"
    config.num_train = 65_536
    config.validation = (64, 64)
    config.num_test = 8_192
    config.shard_size = 4_096
    common.few_presets(config, 256)
    # Few presets for 6 million weights: without decay, they are memorised.
    config.optimizer.weight_decay = 0.5
    return config


def match_config(base: Any, size: str) -> Any:
    """An estimator with the paper's settings, or a small one.

    Args:
      base: config of the proxy, before it is fine-tuned.
      size: "", the paper's, or "_small".

    Returns:
      The config; learning rate, moments and decay are left to the
      experiment. `name` follows `schedule`.
    """
    config = ml_collections.ConfigDict()
    config.kind = "estimator"
    # Of the losses' weights: a name in `matching.schedules`.
    config.schedule = "mix"
    config.name = f"{base.synth}_match_" + config.get_ref("schedule") + size
    config.run = "runs/" + config.get_ref("name")
    config.checkpoints = ""  # another folder or gs:// for them; "": in run
    config.seed = 0

    # Data: hand-crafted presets with their sounds, shared with the proxy.
    for field in (
        "synth",
        "audio_model",
        "data",
        "shard_size",
        "embed_batch",
        "data_seed",
        "engine",
        "prior",
        "fitted",
        "sampling",
        "render",
        "plugin",
        "host",
        "presets",
        "weights",
        "workers",
    ):
        config[field] = base[field]
    config.num_train = 0  # of the training presets, 0: all
    # Without a bank, so many synthetic presets instead.
    config.stand_in = ml_collections.ConfigDict(
        {"train": 16_384, "validation": 2_048, "test": 2_048}
    )
    config.proxy = f"{base.run}_finetuned"  # run of the frozen proxy
    # What the estimator reads of a sound: see `embedding_config`.
    config.hears = "spectrogram"

    # Loss. How the proxy's input is decoded: "hard" is the paper's;
    # "relaxed", "straight_through" and "gumbel" reach every parameter.
    config.start = 0.333  # share of the run before the change of weights
    config.length = 0.33  # share that the change takes
    config.decoding = "hard"
    config.temperature = ml_collections.ConfigDict(
        {"first": 1.0, "last": 1.0, "share": 1.0}  # of the run it takes
    )
    config.label_smoothing = 0.0

    # The network and its optimisation.
    config.dropout = 0.3
    config.dtype = "float32"
    config.epochs = 600
    config.batch = 64
    config.devices = 0  # 0: all
    # Whether spectrograms are made once and kept in memory (160 kB each),
    # or made again in every step, which costs accelerators little.
    config.keep_spectrograms = False
    config.optimizer = ml_collections.ConfigDict(
        {
            "learning_rate": 0.0,
            "warmup_steps": 0,
            "warmup_factor": 0.1,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 0.0,  # 0: no clipping
        }
    )
    # The rate falls when so many validations in a row were no better.
    config.plateau = ml_collections.ConfigDict({"factor": 0.5, "patience": 5})
    config.validate_every = 10  # epochs
    config.validation_rows = 0  # of the validation presets, 0: all
    config.log_every = 100  # steps
    config.checkpoint_minutes = 10.0
    if size:
        config.num_train = 4_096
        config.stand_in.update({"train": 4_096, "validation": 512, "test": 512})
        config.epochs = 60
        config.keep_spectrograms = True
        config.validate_every = 5
        config.validation_rows = 512
        config.log_every = 32

    # Test: distances of rendered predictions.
    config.evaluation = ml_collections.ConfigDict(
        {"resamples": 10_000, "seed": 42}  # of the bootstrap
    )
    return config


def embedding_config(base: Any) -> Any:
    """An estimator that reads embeddings, on all that a proxy learns from.

    Args:
      base: config of the proxy.

    Returns:
      The config.
    """
    config = match_config(base, "_embedding")
    config.hears = "embedding"
    config.proxy = "pretrained:dexed"
    # What it learns from: "synthetic", "handcrafted" or "both"; and fields of
    # the proxy, which say what synthetic presets there are.
    config.source = base.source
    config.synthetic = ml_collections.ConfigDict(
        {
            name: base[name]
            for name in ("num_train", "validation", "num_test", "keep_audio")
        }
    )
    # Of these, so many are trained on, the first ones.
    config.train_rows = config.synthetic.get_ref("num_train") + 0
    # See `matching.estimator.ModuleEstimator`.
    config.network = ml_collections.ConfigDict(
        {
            "hidden": 512,
            "blocks": 3,
            "token": 128,
            "noise": 0.0,
        }
    )
    config.dropout = 0.0
    config.average = 0.99  # decay of a moving average of weights, 0: none
    config.keep_spectrograms = False
    config.batch = 256
    config.epochs = 8
    config.optimizer.update(
        {
            "learning_rate": 1e-3,
            "warmup_steps": 500,
            "b1": 0.9,
            "b2": 0.98,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
        }
    )
    # The rate falls to this, along a cosine, and not at a plateau.
    config.optimizer.minimum = 1e-5
    config.plateau.patience = 1_000_000
    config.validate_every = 2
    config.validation_rows = 256
    return config
