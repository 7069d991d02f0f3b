# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Keeps the tests of this folder quick."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_collection() -> Iterator[None]:
    """A run starts by collecting garbage. Nothing that is imported is any, and looking at it takes a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
