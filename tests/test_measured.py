# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The page of what was measured is what the result files say."""

import importlib.util
import json
from pathlib import Path

import PIL.Image
import pytest

from alignext.methods import METHODS


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def measured():
    spec = importlib.util.spec_from_file_location("measured", ROOT / "benchmarks" / "measured.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_results(measured):
    assert (ROOT / "docs" / "measured.md").read_text() == measured.page(), "python benchmarks/measured.py"


def test_the_costs_of_commands_are_what_was_measured(measured):
    assert measured.COSTS.read_text() == measured.costs(), "python benchmarks/measured.py"


def test_the_demo_shows_what_the_results_say(measured):
    assert measured.SHIPPED.read_text() == measured.shipped(), "python benchmarks/measured.py"


def test_pictures_of_the_pages_are_those_of_the_results(measured):
    for name in measured.PICTURES:
        shown, made = PIL.Image.open(ROOT / "docs" / "assets" / name), measured.picture(name)
        assert shown.convert("RGB").tobytes() == made.convert("RGB").tobytes(), (
            f"{name}: python benchmarks/measured.py"
        )


def test_every_method_is_in_the_demo(measured):
    """By a part of its own, or by a row of long runs; two are seen in the parts of others."""
    elsewhere = {"Transfer Q*": "decoding", "FADE": "bco"}
    shown = {row["method"] for row in json.loads(measured.shipped())["rows"]}
    assert {row.name for row in METHODS if not row.demo} == shown | elsewhere.keys()
    for name, demo in elsewhere.items():
        assert name in (ROOT / "alignext" / "demos" / f"{demo}.py").read_text()


@pytest.mark.parametrize(
    ("effect", "distance"),
    [("0.5 (+0.1 to +0.3)", 2.0), ("-0.3 ± 0.1", -3.0), ("1.0 ± 0.3 (plain 0.5 ± 0.4)", 1.0), ("0 (-1 to 3)", 0.5)],
)
def test_distances_are_in_halves_of_the_interval(measured, effect, distance):
    assert measured.distance(effect) == pytest.approx(distance)


def test_every_command_is_a_benchmark(measured):
    assert all((ROOT / "benchmarks" / row.command).is_file() for row in measured.ROWS)


def test_every_benchmark_is_listed():
    listed = (ROOT / "benchmarks" / "README.md").read_text()
    scripts = {script.name for script in (ROOT / "benchmarks").glob("*.py")} - {"common.py", "shapes.py"}
    assert {name for name in scripts if f"benchmarks/{name}" not in listed} == set()


def test_a_line_that_is_gone_is_an_error(measured):
    assert measured.filled("{rival-effect#1: text-to-image > diversity} more").endswith(" more")
    for wrong in ("#1: nobody > diversity", "#1: text-to-image > none", "#9: text-to-image > diversity"):
        with pytest.raises(LookupError, match=r"rival-effect\.md"):
            measured.filled(f"{{rival-effect{wrong}}}")
