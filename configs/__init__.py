"""Experiments: one file each, read by `--config`."""
