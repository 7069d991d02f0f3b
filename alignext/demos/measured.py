# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Methods whose effect a short run does not show: what their long ones came to, as the benchmarks left it."""

import json
from importlib.resources import files

from alignext.demos.charts import Chart
from alignext.demos.gallery import Section, Table, print_table


def demo(*, seed: int, steps: int | None) -> list[Section]:
    """What was measured earlier, read from a file; nothing runs, so that neither `seed` nor `steps` changes it."""
    rows = _shipped()["rows"]
    told = [row for row in rows if abs(row["distance"]) > 1]
    rest = [row for row in rows if row not in told]
    table = Table(
        ["method", "what was measured", "came out", "distance from nothing"],
        [[row[key] for key in ("method", "what", "effect", "distance")] for row in rows],
        caption="In brackets the 95 % interval, of the change where there is one, and behind ± half of it. The "
        "distance is in such halves: beyond 1 and -1 there is an effect.",
        verdict=f"Beyond the error: {_listed(told)}. Within it, nothing could be told: {_listed(rest)}.",
    )
    print_table(table)
    groups = {"beyond the error": told, "within it": rest}
    return [
        Section(
            "Longer runs, read from their results",
            "Nothing was run for this part. A run of these methods that could show something takes from minutes to "
            "hours. Here is what the benchmarks found on the same embedded models. Minus is what was wanted of "
            "Concept DAS and CHES: less dialogue, and scores that tell a fall.",
            charts=[
                Chart(
                    "How far from nothing",
                    "difference, in halves of its 95 % interval",
                    "line of the table",
                    {name: [(row["distance"], rows.index(row) + 1) for row in some] for name, some in groups.items()},
                    labels={name: [row["method"] for row in some] for name, some in groups.items()},
                    lines=False,
                )
            ],
            tables=[table],
            commands=[
                f"{command}  # in a clone, for {', '.join(row['method'] for row in rows if row['command'] == command)}"
                for command in dict.fromkeys(row["command"] for row in rows)
            ],
        )
    ]


def quoted(name: str) -> str:
    """What a longer run came to: a difference with its 95 % interval."""
    return _shipped()["quoted"][name]


def _shipped() -> dict:
    return json.loads(files("alignext.demos").joinpath("measured.json").read_text(encoding="utf-8"))


def _listed(rows: list[dict]) -> str:
    return ", ".join(f"{row['method']} ({row['distance']:+.1f})" for row in rows) or "none"
