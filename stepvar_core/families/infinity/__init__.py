"""Infinity (Han et al. 2024)."""
