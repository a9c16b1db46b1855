"""HART (Tang et al. 2024)."""
