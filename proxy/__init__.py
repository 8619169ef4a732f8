"""Differentiable proxies of synthesizers: pure functions in JAX.

The rooms: `space` and `spaces` (what a preset is), `audio` (frozen audio
models g), `encoders` (preset encoders f), `objective` and `optimizer`
(f(x) = g(s(x)), learned), `retrieval` (how well it was). Nothing here opens a
file, reads a flag or loads a plug-in.
"""
