"""The paper's Diva proxy for sound matching: tfm on mn20_mel.

    python -m launch.train --config configs/diva_match_proxy.py
    python -m launch.train --config configs/diva_match_proxy.py:finetuned \
        --config.presets=PATH

The second goes on with the first on hand-crafted presets. The paper lowers
the rate by 0.1 after 5 epochs without progress in L1; here it falls along a
cosine over the same 50 epochs.
Hardware: one GPU or more, and the Diva plug-in to render with.
Figure to beat: validation L1 .0329, after fine-tuning .0379 on hand-crafted
validation presets, as published.
"""

from configs import matching


def get_config(stage=""):
    config = matching.proxy_config("diva")
    config.epochs = 50
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b1 = 0.89
    config.optimizer.b2 = 0.987
    config.optimizer.eps = 5e-10
    config.optimizer.cosine_steps = 50 * 10_000 - 7_500
    config.optimizer.restart_steps = 0
    if stage == "finetuned":
        config = matching.finetuned(config, epochs=250, presets=7_721)
        config.optimizer.learning_rate = 5e-5
        config.optimizer.b1 = 0.86
        config.optimizer.weight_decay = 0.08
        config.optimizer.warmup_steps = 600
        config.optimizer.cosine_steps = 7_721 // 64 * 250 - 600
        return config
    if stage:
        raise ValueError(f"unknown stage {stage!r}; there is: finetuned")
    return config
