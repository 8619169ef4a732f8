r"""Rate, moments, eps and the shape of the transformer.

    python -m launch.sweep --config configs/dexed.py:tfm \
        --space configs/sweeps/tfm.py

Small shapes first is a matter of `--trials`: nothing here knows their cost.
"""

from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)


def get_space():
    return {
        "optimizer.learning_rate": FloatDistribution(1e-4, 5e-3, log=True),
        "optimizer.b1": FloatDistribution(0.85, 0.95),
        "optimizer.b2": FloatDistribution(0.96, 0.999),
        "optimizer.eps": FloatDistribution(1e-10, 1e-6, log=True),
        "sizes.blocks": IntDistribution(3, 8),
        "sizes.hidden": CategoricalDistribution([128, 256, 384]),
        "sizes.pooling": CategoricalDistribution(["cls", "mean"]),
    }
