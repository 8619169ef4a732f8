"""Diva, transformer over tokens: `configs/diva.py:tfm` by a name of its own.

python -m launch.train --config configs/diva_tfm.py
"""

from configs import diva

get_config = diva.ROWS["tfm"]
