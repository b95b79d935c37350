"""Uptake: a trained language model takes new text up, under one honest evaluation."""

__version__ = "0.1.0"
