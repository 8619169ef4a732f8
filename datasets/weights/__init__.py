"""Weights of pretrained models: found, read, converted."""
