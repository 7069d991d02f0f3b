# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Line and scatter plots as SVG inside the page, in its own colours, light and dark."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from typing import Any


# What matplotlib draws in, and the variables of the page's style sheet that take the place of it.
_SERIES = ("#0b62c4", "#c2500a", "#2a7a3a", "#8a3ab9", "#7d6b00", "#b3245c")
_SOFT, _LINE = "#5f5f65", "#e2e2de"
_VARIABLES = {_SOFT: "soft", _LINE: "line"} | {color: f"c{i}" for i, color in enumerate(_SERIES)}
COLORS = len(_SERIES)  # a seventh series begins again

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "alignext",  # the same chart gives the same file
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": _SOFT,
    "text.parse_math": False,
    "axes.labelcolor": _SOFT,
    "axes.edgecolor": _LINE,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _LINE,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Chart:
    """A plot of the gallery.

    Args:
        title (`str`): What it shows.
        x (`str`): Name of the horizontal axis.
        y (`str`): Name of the vertical axis.
        series (`Mapping[str, Sequence[tuple[float, float]]]`):
            The points of each series, by its name. A point that is not finite is left out.
        labels (`Mapping[str, Sequence[str]]`, *optional*, defaults to `{}`): A word for each point of a series.
        lines (`bool`, *optional*, defaults to `True`): Join the points of a series.
        caption (`str`, *optional*, defaults to `""`): How to read it.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lines: bool = True
    caption: str = ""


def draw(chart: Chart) -> str:
    """
    The SVG of a chart.

    Raises:
        ValueError: If a series has not as many labels as points.
    """
    import matplotlib  # not at the top: most galleries have no charts
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    series = {name: _finite(points, chart.labels.get(name)) for name, points in chart.series.items()}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.1, 3.1), layout="constrained")
        axes = figure.add_subplot(xlabel=chart.x, ylabel=chart.y)
        for number, points in enumerate(series.values()):
            x, y, labels = zip(*points, strict=True) if points else ((), (), ())
            axes.plot(
                x,
                y,
                "-o" if chart.lines else "o",
                markersize=3.5 if chart.lines else 7,
                linewidth=1.6,
                color=_SERIES[number % COLORS],
                gid=f"series-{number}",
            )
            for point in zip(x, y, labels, strict=True):
                axes.annotate(point[2], point[:2], xytext=(3, 5), textcoords="offset points")
        if chart.labels:
            axes.margins(x=0.2)  # room for a word behind the last point
        found = [point for points in series.values() for point in points]
        if not found:
            axes.text(0.5, 0.5, "nothing was measured", ha="center", transform=axes.transAxes)
        if found and all(float(x).is_integer() for x, *_ in found):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    described = escape(f"{chart.title}: {chart.y} against {chart.x}, {', '.join(chart.series)}.")
    svg = file.getvalue()
    svg = re.sub(r'<svg (.*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg[svg.index("<svg") :], count=1, flags=re.S)
    # Inside a page no address is needed: neither names of formats nor metadata.
    svg = re.sub(r'<metadata>.*?</metadata>|xmlns(:xlink)?="[^"]*"', "", svg, flags=re.S).replace("xlink:href", "href")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{described}" ', 1)
    return re.sub("|".join(_VARIABLES), lambda color: f"var(--{_VARIABLES[color[0]]})", svg)


def _finite(points: Sequence[tuple[float, float]], labels: Sequence[str] | None) -> list[tuple[float, float, str]]:
    """The points that can be drawn, each with its label."""
    named = zip(points, labels or [""] * len(points), strict=True)
    return [(*point, label) for point, label in named if all(map(math.isfinite, point))]
