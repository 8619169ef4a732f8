"""Fine-tunes a trained Dexed proxy on hand-crafted presets, before matching.

    python -m launch.train --config configs/dexed_finetune.py

Starts from runs/dexed_tfm (another with `--config.init=RUN`, another encoder
with `--config configs/dexed_finetune.py:hn_oh`) and needs a bank of presets:
`--config.presets=PATH`. A tenth of it is held out for validation, another
tenth for the test. Batch, rate, moments, decay and warm-up are the paper's;
after the warm-up the rate falls along a cosine, where the paper does not say.
Hardware: one GPU, or CPU for the smaller encoders.
Figure to compare: the paper tunes on mn20_mel, so its L1 (.0217 before, .0201
after) is of another scale.
"""

from configs import common


def get_config(encoder="tfm"):
    config = common.proxy_config("dexed", encoder)
    config.name = f"dexed_{encoder}_finetuned"
    config.run = f"runs/{config.name}"
    config.init = f"runs/dexed_{encoder}"
    config.source = "handcrafted"

    config.epochs = 250
    config.batch = 64
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.998
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 3_450
    config.optimizer.warmup_factor = 0.1
    # 22,116 training presets, as the paper has, are 345 steps an epoch.
    config.optimizer.cosine_steps = 345 * 250 - 3_450
    config.optimizer.restart_steps = 0
    return config
