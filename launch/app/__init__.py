"""Sounds to presets in a browser."""
