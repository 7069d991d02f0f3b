# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext methods`: what there is, which paper it comes from and what it plugs into."""

import argparse

from alignext.methods import METHODS


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `alignext methods`."""
    parser = subparsers.add_parser("methods", help="list the methods, their papers, classes, commands and needs")
    parser.add_argument(
        "--markdown", choices=("readme", "docs"), help="print the table as the README or docs/methods.md shows it"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    print({None: as_text, "readme": as_readme, "docs": as_docs}[args.markdown]())


def as_readme() -> str:
    """The table of methods in the README: what for, and what it takes."""
    rows: list[tuple[str, ...]] = [
        (f"[{row.name}](docs/{row.page}.md)", row.task, _code(row.classes[:1]), row.needs, _code(row.commands[:1]))
        for row in METHODS
    ]
    return _table(("method", "what for", "class", "what it needs", "command"), rows)


def as_docs() -> str:
    """The table of methods in the documentation: papers, all classes and their parents."""
    rows: list[tuple[str, ...]] = [
        (
            f"[{row.name}]({row.page}.md)",
            f"[{row.arxiv}](https://arxiv.org/abs/{row.arxiv})",
            row.task,
            _code(row.classes),
            _code(row.parents).replace("`any diffusers pipeline`", "any diffusers pipeline"),
            row.needs,
        )
        for row in METHODS
    ]
    return _table(("method", "paper", "what for", "class", "parent class", "what it needs"), rows)


def as_text() -> str:
    """The table of methods for a terminal: one block per method, since no terminal is wide enough for the row."""
    blocks = []
    for row in METHODS:
        facts = {
            "paper": f"{row.title}, arXiv {row.arxiv}",
            "class": ", ".join(row.classes),
            "parent": ", ".join(row.parents),
            "needs": row.needs,
            "command": ", ".join(f"alignext {name}" for name in row.commands),
        }
        blocks.append("\n".join([f"{row.name}: {row.task}", *(f"  {key:<8}{value}" for key, value in facts.items())]))
    return "\n\n".join(blocks)


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(head + ["| " + " | ".join(row) + " |" for row in rows])
