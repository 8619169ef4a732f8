"""Compares the JAX engine of the DX7 with dexed-py, sample by sample.

    python -m launch.exactness --voices bank.bin

A voice is equal when every sample is, bit for bit, before any filter.
"""

import numpy as np
from absl import flags

from datasets.engines import dexed
from datasets.presets import reading, sysex
from launch import cli
from launch.exactness import cases

_VOICES = flags.DEFINE_string(
    "voices", "", "A file of DX7 voices, in any format."
)
_COUNT = flags.DEFINE_integer(
    "count", 0, "How many of its voices; 0 for all.", lower_bound=0
)


def main() -> None:
    """Prints the table of all cases."""
    voices = np.zeros((0, dexed.VOICE_BYTES), np.uint8)
    if _VOICES.value:
        with open(_VOICES.value, "rb") as file:
            parsed, _ = sysex.parse(file.read())
        voices, _ = reading.repair(parsed)
    print(cases.run(voices[: _COUNT.value or None]))


if __name__ == "__main__":
    cli.run(main)
