"""Models the core tests share: seeded tiny ones, and the reference configurations of tests/golden."""

import sys
from pathlib import Path

import pytest
import torch

# tiny_models and synth_weights are imported under these names: tests/ is no package
GOLDEN = Path(__file__).resolve().parent.parent / "golden"
sys.path[:0] = [str(Path(__file__).resolve().parent), str(GOLDEN)]

import golden_runs  # noqa: E402
import tiny_models  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models gain nothing from a second thread, and on a busy machine threads that wait for each other cost
    minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny():
    """(model, vae): a seeded two-layer VAR and the quantiser that belongs to it."""
    return tiny_models.tiny_pair()


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """golden(name) -> a reference configuration with its checkpoints written out, once per session."""
    built = {}

    def get(name: str) -> golden_runs.Reference:
        if name not in built:
            built[name] = golden_runs.Reference.write(name, tmp_path_factory.mktemp(name))
        return built[name]

    return get
