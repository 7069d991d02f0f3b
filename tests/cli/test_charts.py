# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Charts: round ticks around the data, every finite point where it belongs, words that are escaped."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from alignext.cli.charts import Chart, draw, ticks


def svg(chart):
    """The SVG of a chart, read as XML."""
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", draw(chart), flags=re.DOTALL)[0])


def circles(chart):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in svg(chart).iter("circle")]


@pytest.mark.parametrize(
    "low, high",
    [
        (0, 1),
        (0.013, 0.0141),
        (-3.2, 17),
        (-1e-9, 1e-9),
        (1e-13, 2e-13),
        (1e6, 1.5e6),
        (5, 5),
        (0.3, 0.1 + 0.2),
        (0, 0),
        (-7, -7),
        (2, 24),
    ],
)
def test_ticks_enclose_the_range_evenly_and_are_few(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12 and found[0] < found[-1]
    assert 2 <= len(found) <= 7
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps))
    digits = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(digits - d) for d in (1, 2, 5)) < 1e-6


def test_ticks_of_counts_are_whole():
    assert ticks(1, 2, whole=True) == [1, 2]
    assert ticks(1, 24, whole=True)[1] % 1 == 0


def test_larger_is_further_right_and_further_up():
    (x0, y0), (x1, y1), (x2, y2) = circles(Chart("t", "x", "y", {"a": [(0, 0), (1, 1), (2, 4)]}))
    assert x1 - x0 == pytest.approx(x2 - x1) and x0 < x1
    assert y0 - y2 == pytest.approx(4 * (y0 - y1)) and y0 > y1


def test_what_is_not_finite_is_left_out():
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    chart = Chart("t", "x", "y", {"a": points}, labels={"a": ["p", "q", "r", "s"]})
    assert len(circles(chart)) == 2
    assert {text.text for text in svg(chart).iter("text")} >= {"p", "s"}
    assert not {text.text for text in svg(chart).iter("text")} & {"q", "r"}


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, math.nan)]}])
def test_nothing_to_draw_says_so(series):
    assert [text.text for text in svg(Chart("t", "x", "y", series)).iter("text")] == ["nothing was measured"]


def test_one_point_is_drawn():
    assert len(circles(Chart("t", "x", "y", {"a": [(3, 0.5)]}))) == 1


def test_points_are_joined_unless_told_otherwise():
    chart = Chart("t", "x", "y", {"a": [(0, 1), (1, 2)], "b": [(0, 2), (1, 1)]})
    assert len(list(svg(chart).iter("polyline"))) == 2
    assert not list(svg(Chart("t", "x", "y", {"a": [(0, 1), (1, 2)]}, lines=False)).iter("polyline"))


def test_words_are_escaped_and_several_series_have_a_legend():
    words = 'a "b" & <c>'
    chart = Chart(words, words, words, {words: [(0, 1)], "d": [(1, 2)]}, labels={words: [words]}, caption=words)
    html = draw(chart)
    assert "<c>" not in html and html.count("&lt;c&gt;") >= 6
    assert words in svg(chart).get("aria-label")
    assert html.count('class="key ') == 2
    assert 'class="key ' not in draw(Chart("t", "x", "y", {"a": [(0, 1)]}))


def test_labels_must_fit():
    with pytest.raises(ValueError):
        draw(Chart("t", "x", "y", {"a": [(0, 1), (1, 1)]}, labels={"a": ["only one"]}))
