"""The paper's Dexed proxy for sound matching: tfm on mn20_mel.

    python -m launch.train --config configs/dexed_match_proxy.py
    python -m launch.train --config configs/dexed_match_proxy.py:finetuned \
        --config.presets=PATH

The second goes on with the first on hand-crafted presets. The paper lowers
the rate by 0.1 after 5 epochs without progress in L1; here it falls along a
cosine over the same 60 epochs.
Hardware: one GPU or more; rendering takes CPU cores.
Figure to beat: validation L1 .0217, after fine-tuning .0201 on hand-crafted
validation presets, as published.
"""

from configs import matching


def get_config(stage=""):
    config = matching.proxy_config("dexed")
    config.epochs = 60
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.91
    config.optimizer.b2 = 0.987
    config.optimizer.eps = 2e-8
    config.optimizer.cosine_steps = 60 * 10_000 - 7_500
    config.optimizer.restart_steps = 0
    if stage == "finetuned":
        config.optimizer.weight_decay = 0.01
        config.optimizer.warmup_steps = 3_450
        return matching.finetuned(config, epochs=250, presets=22_116)
    if stage:
        raise ValueError(f"unknown stage {stage!r}; there is: finetuned")
    return config
