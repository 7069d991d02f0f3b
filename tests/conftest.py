# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Settings every test runs under: no network, no telemetry, one torch thread."""

import gc
import os


# Before any Hugging Face library is imported, since each reads its switches once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    """A test that forgets to pass a generator still gives the same figures every time."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Trainers collect garbage after every run. What was imported stays anyway, and took half of their time."""
    gc.collect()
    gc.freeze()
