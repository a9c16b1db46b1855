"""VAR (Tian et al. 2024)."""
