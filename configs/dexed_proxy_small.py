"""A Dexed proxy for sound matching on two CPU cores: hn_oh on mn04_mel.

    python -m launch.train --config configs/dexed_proxy_small.py
    python -m launch.train --config configs/dexed_proxy_small.py:finetuned \
        --config.presets=PATH

The second goes on with the first on hand-crafted presets; a tenth of them is
held out for validation, another tenth for the test.
Hardware: two CPU cores; the data, 77,824 presets at about 100/s, takes
a quarter of an hour, the training a few minutes.
Figure to compare: none is published at this size; see matching/README.md.
"""

from configs import matching


def get_config(stage=""):
    config = matching.small_proxy_config("dexed")
    if stage == "finetuned":
        config.optimizer.learning_rate = 1e-3
        config.optimizer.weight_decay = 0.5
        config.optimizer.warmup_steps = 400
        return matching.finetuned(config, epochs=30, presets=15_000)
    if stage:
        raise ValueError(f"unknown stage {stage!r}; there is: finetuned")
    return config
