"""Synthesizers as pure functions: presets in, sound out."""
