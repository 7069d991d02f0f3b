# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The report of a column of scores, as text and as a page: quantiles, a histogram, the rows on top, what it means."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignext.data.counts import histogram, quantiles, spearman


_WIDTH = 40


@dataclass(frozen=True)
class Words:
    """
    What a report says.

    Args:
        title (`str`): Of the page.
        column (`str`): The score.
        note (`str`): The column that says why a row has none.
        largest (`str`): What rows with large scores are.
        meaning (`str`): What the number means.
        advice (`str`): What to do next.
        texts (`tuple[str, ...]`): Columns that are shown, as far as they are there.
        rows (`int`): How many rows are shown.
    """

    title: str
    column: str
    note: str
    largest: str
    meaning: str
    advice: str
    texts: tuple[str, ...]
    rows: int


def text(scored: Any, words: Words) -> str:
    """The report for a terminal."""
    values, lines = _values(scored, words.column), []
    if not values:
        return f"No row has a score. Reasons: {_reasons(scored, words)}"
    lines.append(f"{words.column} of {len(values)} rows, {len(scored) - len(values)} without{_reasons(scored, words)}")
    lines.append("  ".join(f"{int(100 * q)}%: {value:.4g}" for q, value in quantiles(values)))
    counts = histogram(values)
    most = max(count for _, count in counts)
    lines += [f"{low:>10.4g} {'#' * round(_WIDTH * count / most):<{_WIDTH}} {count}" for low, count in counts]
    correlation = _with_length(scored, words)
    if correlation is not None:
        lines.append(f"Rank correlation of the score with the length of the texts: {correlation:+.2f}")
    lines.append(f"\nThe {words.largest}:")
    for i in _top(scored, words):
        lines.append(f"  row {i}, {scored[i][words.column]:.4g}: {_shown(scored[i], words, 90)}")
    return "\n".join([*lines, "", words.meaning, words.advice])


def page(folder: Path, scored: Any, words: Words) -> Path:
    """The report as `index.html` in a folder."""
    from alignext.demos.charts import Chart
    from alignext.demos.gallery import Section, Table, write_gallery

    values = _values(scored, words.column)
    names = [name for name in words.texts if name in scored.column_names]
    rows, low = (
        [[i, scored[i][words.column], *(_plain(scored[i][name]) for name in names)] for i in _top(scored, words, sign)]
        for sign in (1, -1)
    )
    section = Section(
        title=words.title,
        text=f"{words.meaning}\n\n{words.advice}\n\n{len(values)} rows have a score, {len(scored) - len(values)} have "
        f"none{_reasons(scored, words)}.",
        charts=[Chart("Histogram", words.column, "rows", {words.column: histogram(values)})] if values else [],
        tables=[
            Table(["quantile", words.column], [[f"{int(100 * q)} %", x] for q, x in quantiles(values)]),
            Table(["row", words.column, *names], rows, caption=f"The {words.largest} rows."),
            Table(["row", words.column, *names], low, caption="The rows with the lowest scores."),
        ],
    )
    return write_gallery(folder, [section], title=words.title)


def _values(scored: Any, column: str) -> list[float]:
    return [float(x) for x in scored[column] if x is not None and math.isfinite(x)]


def _reasons(scored: Any, words: Words) -> str:
    counts = Counter(note for note in scored[words.note] if note)
    return f" ({', '.join(f'{count}: {note}' for note, count in counts.most_common())})" if counts else ""


def _top(scored: Any, words: Words, sign: int = 1) -> list[int]:
    found = [(x, i) for i, x in enumerate(scored[words.column]) if x is not None and math.isfinite(x)]
    return [i for _, i in sorted(found, key=lambda pair: (-sign * pair[0], pair[1]))[: words.rows]]


def _with_length(scored: Any, words: Words) -> float | None:
    names = [name for name in words.texts if name in scored.column_names and name != "prompt"]
    if len(scored) > 20_000 or not names:
        return None
    pairs = [
        (float(row[words.column]), float(sum(len(_plain(row[name])) for name in names)))
        for row in scored
        if row[words.column] is not None and math.isfinite(row[words.column])
    ]
    return spearman(*map(list, zip(*pairs, strict=True))) if len(pairs) > 2 else None


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(turn.get("content", turn)) if isinstance(turn, dict) else str(turn) for turn in value)
    return value if isinstance(value, str) else json.dumps(value)


def _shown(row: dict[str, Any], words: Words, width: int) -> str:
    parts = [" ".join(_plain(row[name]).split()) for name in words.texts if row.get(name) is not None]
    return " | ".join(part if len(part) <= width else f"{part[: width - 3]}..." for part in parts)
