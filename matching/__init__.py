"""From a sound to a preset: pure functions in JAX."""
