"""Switti (Voronov et al. 2024)."""
