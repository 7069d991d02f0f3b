# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Line and scatter plots as SVG inside the page: no plotting library, and the page's own colours, light and dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape


_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 44
COLORS = 6  # the page's style sheet has as many; a seventh series begins again


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


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """
    Two to seven round numbers that enclose a range, evenly spaced.

    Args:
        low (`float`): Lower end of the range.
        high (`float`): Upper end; may be equal to the lower one.
        whole (`bool`, *optional*, defaults to `False`): Whole numbers only.
    """
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):  # one value, but for rounding
        span = max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if span <= 5 * factor * power * (1 + 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last += last == first
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def draw(chart: Chart) -> str:
    """The chart as HTML: a figure with its title, a legend if there are several series, the SVG, the caption."""
    names = list(chart.series)
    parts = [f"<strong>{escape(chart.title)}</strong>"]
    if len(names) > 1:
        keys = (f'<span class="key c{i % COLORS}">{escape(name)}</span>' for i, name in enumerate(names))
        parts.append(f'<div class="keys">{"".join(keys)}</div>')
    parts.append(_svg(chart))
    if chart.caption:
        parts.append(f"<figcaption>{escape(chart.caption)}</figcaption>")
    return '<figure class="chart">\n' + "\n".join(parts) + "\n</figure>"


def _svg(chart: Chart) -> str:
    described = f"{chart.title}: {chart.y} against {chart.x}, {', '.join(chart.series)}."
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(described)}">']
    points = [point for values in chart.series.values() for point in values if all(map(math.isfinite, point))]
    if not points:
        return "\n".join([*parts, f'<text x="{_LEFT}" y="{_HEIGHT // 2}">nothing was measured</text>', "</svg>"])
    axes = []
    for values in zip(*points, strict=True):
        axes.append(ticks(min(values), max(values), whole=all(float(value).is_integer() for value in values)))
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = ((v - axis[0]) / (axis[-1] - axis[0]) for v, axis in zip((x, y), axes, strict=True))
        return round(_LEFT + across * (right - _LEFT), 1), round(bottom - up * (bottom - _TOP), 1)

    for value in axes[1]:
        _, y = place(axes[0][0], value)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in axes[0]:
        x, _ = place(value, axes[1][0])
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(chart.x)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{escape(chart.y)}</text>'
    )
    for i, (name, values) in enumerate(chart.series.items()):
        labels = chart.labels.get(name, [""] * len(values))
        kept = [(*place(*p), p, label) for p, label in zip(values, labels, strict=True) if all(map(math.isfinite, p))]
        parts.append(f'<g class="c{i % COLORS}">')
        if chart.lines and len(kept) > 1:
            parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y, *_ in kept)}"/>')
        radius = 2.5 if chart.lines else 5
        for x, y, point, label in kept:
            hint = escape(f"{name}{f' ({label})' if label else ''}: {point[0]:.4g}, {point[1]:.4g}")
            parts.append(f'<circle cx="{x}" cy="{y}" r="{radius}"><title>{hint}</title></circle>')
            if label:
                side, anchor = (-3, "end") if x > (_LEFT + right) / 2 else (3, "start")
                parts.append(f'<text x="{x + side}" y="{y - 7}" text-anchor="{anchor}">{escape(label)}</text>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"])
