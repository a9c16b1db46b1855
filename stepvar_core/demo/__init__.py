"""The bundled demo model: weights, labels, and how it was trained. See README.md beside this file."""

from __future__ import annotations

from pathlib import Path

MODEL_FILE = Path(__file__).with_name("demo_var.safetensors")
VAE_FILE = Path(__file__).with_name("demo_vae.safetensors")
