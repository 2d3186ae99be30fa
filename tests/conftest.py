"""Fixtures: devices, hypothesis profiles, and new tensors filled with NaN so that reads before a write show."""

import gc
import os
import sys

# Deterministic matrix products on CUDA ask for it, before torch is imported.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# A graph that was compiled before an operator changed its layout would be taken from the disk.
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")

import pytest
import torch
from hypothesis import HealthCheck, settings

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

settings.register_profile(
    "default", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def pytest_collection_finish() -> None:
    """Take what is imported out of the search for garbage, and search more rarely: compilers make objects by millions.

    It was a tenth of the time of compilers and exporters, and frees what tests of memory look at by `gc.collect()`.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)
    config = sys.modules.get("torch._dynamo.config")
    if hasattr(config, "run_gc_after_compile"):  # a search after every graph
        setattr(config, "run_gc_after_compile", False)  # noqa: B010  not known to the type checker
    # For its log alone, torch times the guards of every graph behind a flush of the caches: a tenth of a second.
    guards = sys.modules.get("torch._dynamo.guards")
    if hasattr(guards, "profile_guard_manager"):
        vars(guards)["profile_guard_manager"] = lambda *_: 0.0


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # the end of the process looks for what it has to free


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _reproducible():
    """Seed every test, and fill `torch.empty` with NaN so that an uninitialised value cannot pass for a result."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
