"""The oldest torch that this package reads checkpoints with."""

import torch

LEAST = (2, 6)  # before, a file could run code in spite of weights_only (CVE-2025-32434)


def check_torch(version: str) -> None:
    """Raises ImportError for a torch older than LEAST."""
    found = tuple(int(part) if part.isdigit() else 0 for part in version.split("+")[0].split(".")[:2])
    if found < LEAST:
        wanted = ".".join(map(str, LEAST))
        raise ImportError(
            f"StepVAR needs torch {wanted} or newer; this is torch {version}, in which a checkpoint file can run code. "
            f"Update ComfyUI, or run: python -m pip install --upgrade 'torch>={wanted}'"
        )


check_torch(torch.__version__)
