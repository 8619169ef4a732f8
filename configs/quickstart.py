"""A Dexed proxy in minutes: hn_oh on mel128, 16,384 synthetic presets.

    python -m launch.train --config configs/quickstart.py
    python -m launch.evaluate --run runs/quickstart

Hardware: two CPU cores, about four minutes from nothing to the table.
Expected: see the README's table.
"""

from configs import common


def get_config():
    config = common.proxy_config("dexed", "hn_oh")
    config.name = "quickstart"
    config.run = "runs/quickstart"

    config.audio_model = "mel128"
    config.data = "data/quickstart"
    config.num_train = 16_384
    config.validation = (64, 64)
    config.num_test = 4_096
    config.shard_size = 1_024

    # mel128 is in decibels, far from zero.
    config.center = True
    config.epochs = 20
    config.batch = 256
    config.optimizer.learning_rate = 6e-3
    config.optimizer.b1 = 0.93
    config.optimizer.b2 = 0.987
    config.optimizer.eps = 2e-7
    # Few presets for 6 million weights: without decay, they are memorised.
    config.optimizer.weight_decay = 1.0
    config.optimizer.warmup_steps = 64
    config.optimizer.warmup_factor = 0.1
    config.optimizer.cosine_steps = 20 * 64 - 64
    config.optimizer.restart_steps = 0
    config.log_every = 32

    config.evaluation.subset = 4_096
    config.evaluation.repeats = 10
    return config
