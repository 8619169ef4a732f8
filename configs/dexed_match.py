"""Dexed, sound matching: an estimator of presets from sounds.

    python -m launch.train --config configs/dexed_match.py:mix \
        --config.presets=PATH
    python -m launch.evaluate --run runs/dexed_match_mix --nsynth=FOLDER

Names: ploss (parameter loss alone), mix, switch, reversed_mix,
reversed_switch, perceptual; each with _small (ploss_small, ...) is what two
CPU cores can run. `--config.decoding` says how presets reach the proxy: hard
(the paper's), relaxed, straight_through or gumbel. The proxy comes from
configs/dexed_match_proxy.py, the small one from configs/dexed_proxy_small.py,
each :finetuned.
Hardware: one GPU; the small ones, two CPU cores.
Figure to beat: validation a_mean of ploss 1.765, mix 1.625, switch 1.636,
as published.
"""

from configs import matching


def get_config(name="mix"):
    config = matching.match_config("dexed", name)
    config.label_smoothing = 0.02
    config.optimizer.learning_rate = 7e-3
    config.optimizer.b1 = 0.86
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.01
    # 2,070 steps of the paper's presets.
    matching.scale_warmup(config, 6)
    return config
