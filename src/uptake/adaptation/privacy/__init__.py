"""Differential privacy of training: per-unit norms, clipped sums, secret noise, and what it all costs."""
