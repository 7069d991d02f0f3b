# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The page of what was measured is what the result files say."""

import importlib.util
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def measured():
    spec = importlib.util.spec_from_file_location("measured", ROOT / "benchmarks" / "measured.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_results(measured):
    assert (ROOT / "docs" / "measured.md").read_text() == measured.page(), "python benchmarks/measured.py"


def test_every_command_is_a_benchmark(measured):
    assert all((ROOT / "benchmarks" / row.command).is_file() for row in measured.ROWS)


def test_a_line_that_is_gone_is_an_error(measured):
    assert measured.filled("{rival-effect#1: text-to-image > diversity} more").endswith(" more")
    for wrong in ("#1: nobody > diversity", "#1: text-to-image > none", "#9: text-to-image > diversity"):
        with pytest.raises(LookupError, match=r"rival-effect\.md"):
            measured.filled(f"{{rival-effect{wrong}}}")
