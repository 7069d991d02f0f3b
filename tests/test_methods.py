# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""One table of methods: whatever else lists them says the same, and the public names are written in agreement."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import alignext
from alignext import cli
from alignext.cli.methods import as_docs, as_readme
from alignext.methods import METHODS, method

from . import support


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS = cli.make_parser()._subparsers._group_actions[0]
rows = pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
# Others are a choice of an option, such as `generate --method qalign`.
WHOLE = [row for row in METHODS if " " not in row.commands[0]]


def imported_for_type_checkers() -> dict[str, str]:
    """Public name -> module, as the block under TYPE_CHECKING has them."""
    tree = ast.parse((ROOT / "alignext" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_type_checkers_see_the_public_names():
    assert imported_for_type_checkers() == alignext._MODULES
    assert set(alignext.__all__) == {*alignext._MODULES, "__version__"}
    assert sum(len(names.split()) for names in alignext._NAMES.values()) == len(alignext._MODULES)


@rows
def test_classes_are_what_the_row_says(row):
    assert len(row.parents) in (1, len(row.classes))
    for name, parent in zip(row.classes, row.parents * (len(row.classes) // len(row.parents)), strict=True):
        value = getattr(alignext, name)
        module, _, parent_name = parent.rpartition(".")
        if module:  # else it is no subclass of one class: it takes any pipeline
            assert issubclass(value, getattr(import_module(module), parent_name))
        assert value._paper == row.paper


@rows
def test_citation_names_the_paper(row):
    words = " ".join(row.paper["citation"].split())
    assert row.title in words and words.count("{") == words.count("}")
    assert row.paper["citation"].startswith("@") and row.paper["citation"].endswith("}")


def test_names_are_found_and_others_refused():
    assert method("BCO").arxiv == "2404.04656"
    with pytest.raises(KeyError, match=r"`name` must be one of RIVAL, .*received 'rival'"):
        method("rival")
    assert len({row.name for row in METHODS}) == len(METHODS)


@rows
def test_commands_are_there_and_say_what_for(row):
    for command in row.commands:
        name, *option = command.split()
        assert name in COMMANDS.choices
        if option:
            (action,) = (a for a in COMMANDS.choices[name]._actions if option[0] in a.option_strings)
            assert option[1] in action.choices
    if row not in WHOLE:
        return
    (said,) = [action.help for action in COMMANDS._choices_actions if action.dest == row.commands[0]]
    assert said == row.task


def test_the_help_lists_the_methods_in_order():
    listed = [name for name in COMMANDS.choices if any(name == row.commands[0] for row in WHOLE)]
    assert listed == [row.commands[0] for row in WHOLE]


@rows
def test_documentation_has_the_method(row):
    assert (DOCS / f"{row.page}.md").is_file()
    (key,) = re.findall(r"@\w+\{(\w+),", row.citation)
    index = f"| {row.title} | [{row.arxiv}](https://arxiv.org/abs/{row.arxiv}) | `{key}` |"
    assert index in (DOCS / "papers.md").read_text()


def test_tables_are_those_of_the_command():
    assert as_readme() in (ROOT / "README.md").read_text(), "paste the output of `alignext methods --markdown readme`"
    assert as_docs() in (DOCS / "methods.md").read_text(), "paste the output of `alignext methods --markdown docs`"


def entries(nav: object) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in entries(part)]


def test_navigation_has_the_pages_in_order():
    listed = entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))
    pages = list(dict.fromkeys(f"{row.page}.md" for row in METHODS))
    assert [page for page in listed if page in pages] == pages


def test_support_matrix_has_every_method():
    found = {row.method for row in (*support.PIPELINES, *support.TRAINERS)}
    assert {row.name for row in METHODS} <= found
