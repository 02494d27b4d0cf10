"""What holds for every test: one thread, no network, examples without a deadline; GPU tests only with a GPU."""

import gc
import os

# Read when torch, triton and huggingface_hub are imported, so before the imports below.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# No deadline: the first example of a test pays for imports and captures, and the machine's cores are shared.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Leave what torch and transformers have made on import, most of all objects, out of every search for garbage."""
    gc.collect()
    gc.freeze()
