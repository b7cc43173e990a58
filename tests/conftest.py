"""Fixtures that several test modules use, and the rule for tests that need a GPU."""

import os

# The workers share the cores, and so do the programs that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from gpt2_helpers import SIZE, huggingface, ours


def pytest_collection_modifyitems(items):
    """Skips tests marked `gpu` where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def cuda(monkeypatch):
    """The GPU, at full float32 precision."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    return torch.device("cuda")


@pytest.fixture(scope="session")
def small():
    """Our GPT-2 with transformers' weights, 16 positions, 2 layers, float64."""
    return ours(huggingface(**SIZE | {"n_positions": 16, "n_layer": 2}))
