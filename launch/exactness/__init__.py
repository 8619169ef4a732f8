"""The JAX engine of the DX7 beside dexed-py."""
