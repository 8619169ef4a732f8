"""The study of audio models."""
