"""A Diva proxy for sound matching on two CPU cores: hn_oh on mn04_mel.

    python -m launch.train --config configs/diva_proxy_small.py
    python -m launch.train --config configs/diva_proxy_small.py:finetuned \
        --config.presets=PATH

The second goes on with the first on hand-crafted presets; a tenth of them is
held out for validation, another tenth for the test.
Hardware: two CPU cores, and the Diva plug-in to render with.
Figure to compare: none is published at this size.
"""

from configs import matching


def get_config(stage=""):
    config = matching.small_proxy_config("diva")
    if stage == "finetuned":
        config.optimizer.learning_rate = 1e-3
        config.optimizer.weight_decay = 0.5
        config.optimizer.warmup_steps = 400
        return matching.finetuned(config, epochs=60, presets=7_721)
    if stage:
        raise ValueError(f"unknown stage {stage!r}; there is: finetuned")
    return config
