"""Fields that every proxy experiment has, with the paper's values.

An experiment file starts from these and changes what differs.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

# The paper's sizes.
SIZES = {
    "mlp_raw": {"hidden": 2048, "blocks": 1},
    "mlp_oh": {"hidden": 2048, "blocks": 1},
    "rn_oh": {"hidden": 256, "blocks": 4},
    "hn_oh": {"hidden": 768, "blocks": 6},
    "hn_pt": {"hidden": 512, "blocks": 6, "token": 64},
    "hn_ptgru": {"hidden": 768, "blocks": 6, "token": 384},
    "gru_oh": {"hidden": 1024, "layers": 1},
    "tfm": {
        "hidden": 256,
        "blocks": 6,
        "heads": 8,
        "factor": 4.0,
        "pooling": "cls",
    },
}


def proxy_config(synth: str, encoder: str) -> Any:
    """A preset encoder on mn04 embeddings, as in the paper (section 3).

    Args:
      synth: "dexed", "diva" or "talnm".
      encoder: name in `proxy.encoders`.

    Returns:
      The config; learning rate and moments are left to the experiment.
    """
    config = ml_collections.ConfigDict()
    config.kind = "proxy"
    config.name = f"{synth}_{encoder}"
    config.run = f"runs/{synth}_{encoder}"
    config.checkpoints = ""  # another folder or gs:// for them; "": in run
    config.seed = 0

    # Data: made once, shared by all encoders of a synthesizer.
    config.synth = synth
    config.audio_model = "mn04"
    config.data = f"data/{synth}_mn04"
    config.num_train = 10_240_000
    config.validation = (256, 512)  # rankings, candidates
    config.num_test = 131_072
    config.shard_size = 8192
    config.embed_batch = 64
    config.keep_audio = False
    config.data_seed = 0
    # Of a numerical parameter, the probability of its default, and of the two
    # ends of its interval; the paper draws uniformly.
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
    # The synthesizer's VST3 plug-in; "": what the environment variable
    # SYNTH_VST3 names, e.g. DIVA_VST3. Dexed needs none.
    config.plugin = ""
    config.host = ml_collections.ConfigDict(
        {
            # Of its render contract (datasets/engines/vst3/), what is to be
            # other than known: isolation, "reset" or "process"; seconds, at
            # most, until a first sound; seconds until a render has hung.
            "isolation": "",
            "warm_up": config_dict.placeholder(float),
            "timeout": config_dict.placeholder(float),
        }
    )
    config.presets = ""  # file or folder of hand-crafted banks
    config.weights = ""  # local file of the audio model's weights
    config.workers = 0  # rendering workers, 0: one per core

    config.encoder = encoder
    config.sizes = ml_collections.ConfigDict(SIZES[encoder])
    config.dtype = "float32"  # of the computation; parameters are float32

    # Optimisation.
    config.source = "synthetic"  # or "handcrafted": what is trained on
    config.init = ""  # run whose weights to start from
    config.epochs = 30
    config.batch = 512
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
            "cosine_steps": 192_500,
            "restart_steps": 400_000,
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
    return config


def few_presets(config: Any, steps_per_epoch: int) -> None:
    """The recipe for tens of thousands of presets on two CPU cores.

    Args:
      config: of hn_oh; changed.
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
