r"""What the paper tunes for the highway networks: rate, moments and eps.

    python -m launch.sweep --config configs/dexed.py \
        --space configs/sweeps/hn.py

A space is a function `get_space()` from dotted config fields to Optuna's
distributions; any number, size or name in a config may be one of its fields.
The paper ran 203 trials of one million presets.
"""

from optuna.distributions import FloatDistribution


def get_space():
    return {
        "optimizer.learning_rate": FloatDistribution(5e-4, 2e-2, log=True),
        "optimizer.b1": FloatDistribution(0.75, 0.95),
        "optimizer.b2": FloatDistribution(0.94, 0.999),
        "optimizer.eps": FloatDistribution(1e-9, 1e-5, log=True),
    }
