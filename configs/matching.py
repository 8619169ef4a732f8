"""Fields of the sound-matching experiments, with the paper's values.

Three stages, each a run: a proxy on synthetic presets, the same proxy
fine-tuned on hand-crafted ones, and the estimator that learns through it.
Each has the paper's size and a small one for two CPU cores.
"""

from typing import Any

import ml_collections

from configs import common

SCHEDULES = (
    "ploss",
    "mix",
    "switch",
    "reversed_mix",
    "reversed_switch",
    "perceptual",
)
# Training presets of the paper's hand-crafted sets, for lengths in steps.
_PAPER_PRESETS = {"dexed": 22_116, "diva": 7_721}


def proxy_config(synth: str) -> Any:
    """The paper's proxy for matching: tfm on mn20_mel, 2.56 M presets.

    Args:
      synth: "dexed" or "diva".

    Returns:
      The config; learning rate and moments are left to the experiment.
    """
    config = common.proxy_config(synth, "tfm")
    config.name = f"{synth}_match_proxy"
    config.run = f"runs/{config.name}"
    config.audio_model = "mn20_mel"
    config.data = f"data/{synth}_mn20_mel"
    config.num_train = 2_560_000
    config.batch = 256
    config.optimizer.warmup_steps = 7_500
    return config


def small_proxy_config(synth: str) -> Any:
    """A proxy for matching on two CPU cores: hn_oh on mn04_mel.

    Args:
      synth: "dexed" or "diva".

    Returns:
      The config.
    """
    config = common.proxy_config(synth, "hn_oh")
    config.name = f"{synth}_proxy_small"
    config.run = f"runs/{config.name}"
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


def finetuned(config: Any, *, epochs: int, presets: int) -> Any:
    """Goes on with a proxy on hand-crafted presets.

    Args:
      config: of the proxy; changed.
      epochs: passes over the hand-crafted training presets.
      presets: about how many there are, for the length of the cosine.

    Returns:
      The config; the paper does not say how the rate falls, here along a
      cosine.
    """
    config.init = config.run
    config.name = f"{config.name}_finetuned"
    config.run = f"runs/{config.name}"
    config.source = "handcrafted"
    config.epochs = epochs
    config.batch = 64
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.998
    config.optimizer.eps = 1e-8
    config.optimizer.warmup_factor = 0.1
    steps = presets // 64 * epochs
    config.optimizer.cosine_steps = steps - config.optimizer.warmup_steps
    config.optimizer.restart_steps = 0
    return config


def match_config(synth: str, name: str) -> Any:
    """An estimator with the paper's settings, or a small one.

    Args:
      synth: "dexed" or "diva".
      name: one of `SCHEDULES`, or one followed by "_small".

    Returns:
      The config; learning rate, moments and decay are left to the
      experiment.

    Raises:
      ValueError: for an unknown name.
    """
    schedule = name.removesuffix("_small")
    small = schedule != name
    if schedule not in SCHEDULES:
        raise ValueError(
            f"no matching experiment {name!r}; there are "
            f"{', '.join(SCHEDULES)}, each also with _small"
        )
    config = ml_collections.ConfigDict()
    config.kind = "estimator"
    config.name = f"{synth}_match_{name}"
    config.run = f"runs/{config.name}"
    config.seed = 0

    # Data: hand-crafted presets with their sounds, shared with the proxy.
    base = small_proxy_config(synth) if small else proxy_config(synth)
    for field in (
        "synth",
        "audio_model",
        "data",
        "shard_size",
        "embed_batch",
        "data_seed",
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

    # Loss. How the proxy's input is decoded: "hard" is the paper's;
    # "relaxed", "straight_through" and "gumbel" reach every parameter.
    config.schedule = schedule
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
    if small:
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


def scale_warmup(config: Any, epochs: float) -> None:
    """Sets the warm-up to so many epochs of the paper's presets."""
    presets = config.num_train or _PAPER_PRESETS[config.synth]
    config.optimizer.warmup_steps = round(presets // config.batch * epochs)
