# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a column of scores looks like: quantiles, a histogram, and whether it goes with another column."""

import math
from collections import Counter


_BINS = 12
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def quantiles(values: list[float]) -> list[tuple[float, float]]:
    """Share and value."""
    ordered = sorted(values)
    return [(q, ordered[round(q * (len(ordered) - 1))]) for q in _QUANTILES] if ordered else []


def histogram(values: list[float]) -> list[tuple[float, int]]:
    """Lower end and count of each bin, of equal widths."""
    low, high = min(values), max(values)
    width = (high - low) / _BINS or 1.0
    counts = Counter(min(int((value - low) / width), _BINS - 1) for value in values)
    return [(low + i * width, counts[i]) for i in range(_BINS)]


def spearman(x: list[float], y: list[float]) -> float:
    """Rank correlation; NaN where one of the two is constant. Equal values share their mean rank."""

    def ranks(values: list[float]) -> list[float]:
        order = sorted(range(len(values)), key=lambda i: values[i])
        found, start = [0.0] * len(values), 0
        while start < len(order):
            end = start
            while end < len(order) and values[order[end]] == values[order[start]]:
                end += 1
            for place in range(start, end):
                found[order[place]] = (start + end - 1) / 2
            start = end
        return found

    a, b = ranks(x), ranks(y)
    middle = (len(x) - 1) / 2
    top = sum((p - middle) * (q - middle) for p, q in zip(a, b, strict=True))
    bottom = math.sqrt(sum((p - middle) ** 2 for p in a) * sum((q - middle) ** 2 for q in b))
    return top / bottom if bottom else math.nan
