"""Diva, sound matching: an estimator of presets from sounds.

    python -m launch.train --config configs/diva_match.py:switch \
        --config.presets=PATH
    python -m launch.evaluate --run runs/diva_match_switch --nsynth=FOLDER

Names: ploss (parameter loss alone), mix, switch, reversed_mix,
reversed_switch, perceptual; each with _small (ploss_small, ...) is what two
CPU cores can run. `--config.decoding` says how presets reach the proxy: hard
(the paper's), relaxed, straight_through or gumbel. The proxy comes from
configs/diva_match_proxy.py, the small one from configs/diva_proxy_small.py,
each :finetuned.
Hardware: one GPU, and the Diva plug-in to render with.
Figure to beat: validation a_mean of ploss 2.096, mix 1.808, switch 1.717,
as published.
"""

from configs import matching


def get_config(name="switch"):
    config = matching.match_config("diva", name)
    config.label_smoothing = 0.01
    config.optimizer.learning_rate = 3e-4
    config.optimizer.b1 = 0.91
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-7
    config.optimizer.weight_decay = 0.3
    # 1,080 steps of the paper's presets.
    matching.scale_warmup(config, 9)
    return config
