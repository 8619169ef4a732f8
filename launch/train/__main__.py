"""Trains a proxy: f(preset) = g(sound of the preset).

    python -m launch.train --config configs/quickstart.py

An experiment of sound matching trains an estimator of presets from sounds
instead, see `launch.train.estimator`:

    python -m launch.train --config configs/dexed.py:match_small

Builds the shards that are missing, trains, validates after every epoch, keeps
the best and the last checkpoint. Stopped at any point, by Ctrl-C, SIGTERM or
a crash, the same command goes on and ends with the same parameters.
"""

import jax

from launch import cli
from launch.runs import devices, making

_CONFIG = cli.define_config()


def main() -> None:
    """Runs the command."""
    config = _CONFIG.value
    if config.get("kind") == "proxy":
        from launch.train.proxy import train
    elif config.get("kind") == "estimator":
        from launch.train.estimator import train
    else:
        raise ValueError(
            f"config.kind={config.get('kind')!r}, choose proxy or estimator"
        )
    # Looking for accelerators takes seconds.
    making.check(config)
    devices.initialize_distributed()
    print(devices.describe(), flush=True)
    run = train(config)
    if jax.process_index() == 0:
        print(f"next: python -m launch.evaluate --run {run}")


if __name__ == "__main__":
    cli.run(main)
