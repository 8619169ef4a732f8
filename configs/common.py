"""Fields that every proxy experiment has, with the paper's values.

An experiment file starts from these and changes what differs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict


class Published(NamedTuple):
    """What the paper says of an encoder: its AdamW and the result.

    Attributes:
      learning_rate: rate that the schedule starts from.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      mrr: validation MRR, 256 rankings of 512, after 30 epochs of 10.24 M
        presets.
    """

    learning_rate: float
    b1: float
    b2: float
    eps: float
    mrr: float


def choose(file: str, rows: Mapping[str, Callable[[], Any]], name: str) -> Any:
    """The config of a row of an experiment file.

    Args:
      file: name of the file, for the error.
      rows: makers of configs by name.
      name: what stands behind the colon in `--config FILE:NAME`.

    Returns:
      The config.

    Raises:
      ValueError: listing the rows, when there is none of that name.
    """
    if name not in rows:
        raise ValueError(
            f"{file} has no experiment {name!r}; it has {', '.join(rows)}"
        )
    return rows[name]()


def paper_rows(
    synth: str, encoders: Mapping[str, Published], **tuning: Any
) -> dict[str, Callable[[], Any]]:
    """The rows of the paper's encoders.

    Args:
      synth: "dexed", "diva" or "talnm".
      encoders: settings by name in `proxy.encoders`.
      **tuning: how `finetuned` goes on with each of them; if none, there are
        no such rows.

    Returns:
      Makers of configs: "tfm", and "tfm_finetuned" where it is tuned.
    """
    rows = {
        name: functools.partial(proxy_config, synth, name, row)
        for name, row in encoders.items()
    }
    return {**rows, **tuned_rows(rows, **tuning)} if tuning else rows


def tuned_rows(
    rows: Mapping[str, Callable[[], Any]], **tuning: Any
) -> dict[str, Callable[[], Any]]:
    """Rows "NAME_finetuned" that go on with others, see `finetuned`."""
    return {
        f"{name}_finetuned": functools.partial(
            lambda make: finetuned(make(), **tuning), make
        )
        for name, make in rows.items()
    }


def proxy_config(
    synth: str, encoder: str, published: Published | None = None
) -> Any:
    """A preset encoder on mn04 embeddings, as in the paper (section 3).

    Args:
      synth: "dexed", "diva" or "talnm".
      encoder: name in `proxy.encoders`.
      published: the paper's settings; optax's moments and a rate of 0 if
        none.

    Returns:
      The config. `run` follows `name`.
    """
    config = ml_collections.ConfigDict()
    config.kind = "proxy"  # or "estimator"
    config.name = f"{synth}_{encoder}"
    config.run = "runs/" + config.get_ref("name")
    config.checkpoints = ""  # another folder or gs:// for them; "": in run
    config.seed = 0

    # Data: made once, shared by all encoders of a synthesizer.
    config.synth = synth
    config.audio_model = "mn04"
    config.data = f"data/{synth}_mn04"
    config.num_train = 10_240_000
    # Of these, so many are trained on, the first ones.
    config.train_rows = config.get_ref("num_train") + 0
    config.validation = (256, 512)  # rankings, candidates
    config.num_test = 131_072
    config.shard_size = 8192
    config.embed_batch = 64
    config.keep_audio = False
    config.data_seed = 0
    # Shares of synthetic presets by prior, see proxy/priors.py; the paper's
    # are uniform. Variations are of the training part of `presets`.
    config.prior = ml_collections.ConfigDict(
        {"uniform": 1.0, "fitted": 0.0, "variations": 0.0}
    )
    # Of the fitted: file of `launch.presets fit`; "": the project's own.
    config.fitted = ""
    # Of the uniform: the probability of a numerical parameter's default, and
    # of the two ends of its interval; 0 in the paper.
    config.sampling = ml_collections.ConfigDict(
        {"at_default": 0.0, "at_end": 0.0}
    )
    config.render = ml_collections.ConfigDict(
        {
            "note": 60,
            "velocity": 100,
            "hold": 2.0,  # seconds
            "duration": 5.0,
            "fade_out": 0.1,
        }
    )
    # What renders Dexed without a plug-in: "jax" in batches, "dexed-py" one by
    # one, "auto" the faster one.
    config.engine = "auto"
    # The synthesizer's VST3 plug-in; "": what the environment variable
    # SYNTH_VST3 names, e.g. DIVA_VST3. Dexed needs none.
    config.plugin = ""
    config.host = ml_collections.ConfigDict(
        {
            # Of its render contract (datasets/engines/vst3/), what is to be
            # other than known: isolation, "reset", "flush" or "process";
            # seconds, at most, until a first sound; seconds until a render
            # has hung.
            "isolation": "",
            "warm_up": config_dict.placeholder(float),
            "timeout": config_dict.placeholder(float),
            # Share of the varied parameters that the plug-in may ignore.
            "dead": config_dict.placeholder(float),
        }
    )
    config.presets = ""  # file or folder of hand-crafted banks
    config.weights = ""  # local file of the audio model's weights
    config.workers = 0  # rendering workers, 0: one per core

    config.encoder = encoder
    # None: the encoder's own default, which is the paper's.
    config.sizes = ml_collections.ConfigDict(
        {
            "hidden": config_dict.placeholder(int),
            "blocks": config_dict.placeholder(int),
            "layers": config_dict.placeholder(int),
            "token": config_dict.placeholder(int),
            "heads": config_dict.placeholder(int),
            "factor": config_dict.placeholder(float),
            "pooling": config_dict.placeholder(str),
        }
    )
    config.dtype = "float32"  # of the computation; parameters are float32

    # Optimisation.
    # What is trained on: "synthetic", "handcrafted" (the training part of
    # `presets`) or "both". Unless synthetic, hand-crafted ones validate.
    config.source = "synthetic"
    # Whether a step sees other presets that sound the same (symmetries).
    config.equivalent = False
    # Added to the L1 loss: telling which sound of a batch is which preset's.
    config.contrastive = ml_collections.ConfigDict(
        {"weight": 0.0, "temperature": 0.05}
    )
    config.init = ""  # run whose weights to start from
    config.epochs = 30
    config.batch = 256 if encoder == "tfm" else 512
    config.accumulate = 1
    config.devices = 0  # 0: all
    config.center = False  # start the output at the mean embedding
    config.average = 0.0  # decay of a moving average of weights, 0: none
    config.optimizer = ml_collections.ConfigDict(
        {
            "learning_rate": 0.0,
            "minimum": 2e-6,
            "warmup_steps": 7_500,
            "warmup_factor": 1.0,
            # With the warm-up, 10 of the 30 epochs; the others restart.
            "cosine_steps": 102_400_000 // config.batch - 7_500,
            "restart_steps": 204_800_000 // config.batch,
            "restart_factor": 1.0,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 0.0,  # 0: no clipping
        }
    )

    config.log_every = 100  # steps
    config.checkpoint_minutes = 10.0  # between validations

    # Test protocol: one-versus-all among `subset` presets, repeated.
    config.evaluation = ml_collections.ConfigDict(
        {"subset": 4096, "repeats": 100, "seed": 42}
    )
    if published:
        settings = published._asdict()
        del settings["mrr"]
        config.optimizer.update(settings)
    return config


def finetuned(
    config: Any, *, epochs: int, presets: int, **optimizer: float
) -> Any:
    """Goes on with a proxy on hand-crafted presets.

    Args:
      config: config of the proxy; it is changed.
      epochs: passes over the hand-crafted training presets.
      presets: about how many there are, for the length of the cosine.
      **optimizer: fields of `config.optimizer`.

    Returns:
      The config. The paper does not say how the rate falls, here it does
      along a cosine.
    """
    config.init = config.run
    config.name = f"{config.name}_finetuned"
    config.source = "handcrafted"
    config.epochs = epochs
    config.batch = 64
    config.optimizer.update(
        {"b1": 0.9, "b2": 0.998, "eps": 1e-8, "warmup_factor": 0.1}
    )
    config.optimizer.update(optimizer)
    steps = presets // 64 * epochs
    config.optimizer.cosine_steps = steps - config.optimizer.warmup_steps
    config.optimizer.restart_steps = 0
    return config


def few_presets(config: Any, steps_per_epoch: int) -> None:
    """The recipe for tens of thousands of presets on two CPU cores.

    Args:
      config: config of an hn_oh; it is changed.
      steps_per_epoch: batches of 256 in the training presets.
    """
    # Averages in decibels are far from zero.
    config.center = True
    config.epochs = 20
    config.batch = 256
    config.optimizer.learning_rate = 6e-3
    config.optimizer.b1 = 0.93
    config.optimizer.b2 = 0.987
    config.optimizer.eps = 2e-7
    config.optimizer.warmup_steps = steps_per_epoch
    config.optimizer.warmup_factor = 0.1
    config.optimizer.cosine_steps = (config.epochs - 1) * steps_per_epoch
    config.optimizer.restart_steps = 0
    config.evaluation.repeats = 10
