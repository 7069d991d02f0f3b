# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Charts: every finite point where it belongs, words that are escaped."""

import math
import re
from xml.etree import ElementTree

import pytest

from alignext.demos.charts import COLORS, Chart, draw


def svg(chart):
    """The SVG of a chart, read as XML."""
    return ElementTree.fromstring(draw(chart))


def points(chart):
    """Where the points of the series are drawn."""
    series = [group for group in svg(chart).iter("g") if group.get("id", "").startswith("series")]
    return [(float(mark.get("x")), float(mark.get("y"))) for group in series for mark in group.iter("use")]


def lines(chart):
    """How many series are joined by a line."""
    series = [group for group in svg(chart).iter("g") if group.get("id", "").startswith("series")]
    return sum("fill: none" in path.get("style", "") for group in series for path in group.findall("path"))


def test_larger_is_further_right_and_further_up():
    (x0, y0), (x1, y1), (x2, y2) = points(Chart("t", "x", "y", {"a": [(0, 0), (1, 1), (2, 4)]}))
    assert x1 - x0 == pytest.approx(x2 - x1) and x0 < x1
    assert y0 - y2 == pytest.approx(4 * (y0 - y1)) and y0 > y1


def test_what_is_not_finite_is_left_out():
    measured = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    chart = Chart("t", "x", "y", {"a": measured}, labels={"a": ["p", "q", "r", "s"]})
    assert len(points(chart)) == 2
    assert {text.text for text in svg(chart).iter("text")} >= {"p", "s"}
    assert not {text.text for text in svg(chart).iter("text")} & {"q", "r"}


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, math.nan)]}])
def test_nothing_to_draw_says_so(series):
    assert "nothing was measured" in [text.text for text in svg(Chart("t", "x", "y", series)).iter("text")]


def test_one_point_is_drawn():
    assert len(points(Chart("t", "x", "y", {"a": [(3, 0.5)]}))) == 1


def test_points_are_joined_unless_told_otherwise():
    chart = Chart("t", "x", "y", {"a": [(0, 1), (1, 2)], "b": [(0, 2), (1, 1)]})
    assert lines(chart) == 2
    assert lines(Chart("t", "x", "y", {"a": [(0, 1), (1, 2)]}, lines=False)) == 0


def test_words_are_escaped_and_nothing_is_mathematics():
    words = 'a "b" & <c> $d$'
    chart = Chart("t" + words, words, words, {words: [(0, 1)], "d": [(1, 2)]}, labels={words: [words]})
    assert "<c>" not in draw(chart)
    assert [text.text for text in svg(chart).iter("text")].count(words) == 3  # two axes, and the label
    assert "t" + words in svg(chart).get("aria-label")


def test_colours_are_those_of_the_page():
    chart = Chart("t", "x", "y", {f"s{i}": [(0, i), (1, i)] for i in range(COLORS + 1)})
    assert {f"var(--c{i})" for i in range(COLORS)} <= set(re.findall(r"var\(--\w+\)", draw(chart)))
    assert not re.findall("#[0-9a-f]{6}", draw(chart)) and "http" not in draw(chart)


def test_counts_have_whole_ticks():
    texts = {text.text for text in svg(Chart("t", "x", "y", {"a": [(1, 0.5), (2, 0.7)]})).iter("text")}
    assert {"1", "2"} <= texts and "1.5" not in texts


def test_the_same_chart_is_the_same_text():
    chart = Chart("t", "x", "y", {"a": [(1, 0.5), (2, 0.7)]})
    assert draw(chart) == draw(chart)


def test_labels_must_fit():
    with pytest.raises(ValueError):
        draw(Chart("t", "x", "y", {"a": [(0, 1), (1, 1)]}, labels={"a": ["only one"]}))
