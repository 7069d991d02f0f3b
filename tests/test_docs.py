# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The documentation says what the code says."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

import alignext
from alignext.methods import METHODS

from . import support


ROOT = Path(__file__).parents[1]
PUBLIC = sorted(alignext._MODULES)


def test_api_page_lists_everything_public():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE))
    names = {f"{alignext._MODULES[name]}.{name}" for name in PUBLIC}
    functional = {f"alignext.functional.{f.stem}" for f in (ROOT / "alignext/functional").glob("[!_]*.py")}
    assert names | functional <= listed


def public_values():
    """What is public, by name: the names of the package, and all that `alignext.functional` defines."""
    yield from ((name, getattr(alignext, name)) for name in PUBLIC)
    for file in sorted((ROOT / "alignext/functional").glob("[!_]*.py")):
        module = import_module(f"alignext.functional.{file.stem}")
        own = ((n, v) for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__)
        yield from ((f"{file.stem}.{n}", v) for n, v in own if not n.startswith("_"))


VALUES = list(public_values())


def documented_callables():
    """Public functions and methods of what is public, by name."""
    for name, value in VALUES:
        own = [(name, value)]
        if inspect.isclass(value):
            ours = [c for c in value.__mro__ if c.__module__.startswith("alignext.")]
            own = [
                (f"{name}.{n}", v)
                for c in ours
                for n, v in vars(c).items()
                if not n.startswith("_") or n == "__call__"
            ]
        yield from ((label, v) for label, v in own if inspect.isfunction(v) and v.__doc__)


@pytest.mark.parametrize(
    ("name", "function"), list(documented_callables()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_documented_arguments_exist(name, function):
    arguments = re.search(r"^( *)Args:\n(.*?)(?=^\1\w|\Z)", inspect.cleandoc(function.__doc__), flags=re.M | re.S)
    if arguments is None:
        return
    entries = re.findall(r"^    (\*{0,2}\w+(?:, \w+)*)(?: \(|:)", arguments[2], flags=re.MULTILINE)
    documented = {word.strip("* ") for entry in entries for word in entry.split(",")}
    assert documented, f"no argument found in the docstring of {name}"
    assert documented - set(inspect.signature(function).parameters) == set()


def own_arguments(value):
    """The arguments of a function, or those that our classes add to the stock class's."""
    if not inspect.isclass(value):
        return set(inspect.signature(value).parameters)
    ours = [c for c in value.__mro__ if c.__module__.startswith("alignext.")]
    if is_dataclass(value):
        return {name for c in ours for name in vars(c).get("__annotations__", {}) if not name.startswith("_")}
    makers = [vars(c)["__init__"] for c in ours if "__init__" in vars(c)]
    return set(inspect.signature(makers[0]).parameters) - {"self", "args", "kwargs"} if makers else set()


def docstrings(value):
    """The docstrings that tell of a public name's arguments: its own, its parents', and those of configs it names."""
    classes = value.__mro__ if inspect.isclass(value) else [value]
    found = [inspect.cleandoc(c.__doc__ or "") for c in classes if c.__module__.startswith("alignext.")]
    named = set(re.findall(r"\[`(\w+Config)`\]", found[0])) & set(PUBLIC) if is_dataclass(value) else ()
    return found + [inspect.cleandoc(getattr(alignext, name).__doc__) for name in named]


@pytest.mark.parametrize(("name", "value"), VALUES, ids=lambda v: v if isinstance(v, str) else "")
def test_public_names_document_their_arguments(name, value):
    if not callable(value):
        return
    docs = docstrings(value)
    assert docs[0], f"{name} has no docstring"
    told = "\n".join(docs)
    if not is_dataclass(value):
        told = "\n".join(re.findall(r"^Args:\n(.*?)(?=^\w|\Z)", told, flags=re.M | re.S))
    if "All other arguments of" not in told:
        assert {a for a in own_arguments(value) if not re.search(rf"\b{a}\b", told)} == set()


def test_support_page_is_the_one_of_its_cells():
    assert support.as_markdown() in support.PAGE.read_text(), "run `python tests/support.py`"


def test_tests_behind_the_support_matrix_exist():
    """With their parameters. A second pytest collects them, of modules that are mostly imported already."""
    wanted = {test for cell in support.cells() for test in cell.tests}
    found = set()

    class Recorder:
        def pytest_collection_finish(self, session):
            found.update(item.nodeid for item in session.items)

    files = sorted({test.partition("::")[0] for test in wanted})
    off = [f"-pno:{plugin}" for plugin in ("cacheprovider", "faulthandler", "logging", "xdist")]
    pytest.main(
        [f"--rootdir={ROOT}", "--collect-only", "-s", *off, *(str(ROOT / file) for file in files)], [Recorder()]
    )
    assert wanted - found == set()


def messages():
    """All texts of our source, without backticks, `...` in the place of what is filled in."""
    for file in sorted(f for top in ("alignext", "pipelines", "trainers") for f in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            if all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
                yield "".join(str(p.value) if isinstance(p, ast.Constant) else "..." for p in parts).replace("`", "")


def test_troubleshooting_quotes_what_is_said():
    page = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Nothing is said")[0]
    cells = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    quotes = {part.strip() for cell in cells for quote in re.findall(r"`(.*?)`", cell) for part in quote.split("...")}
    said = "\n".join(messages())
    assert {quote for quote in quotes if quote not in said} == set() and len(quotes) > 20


def test_docs_build_without_a_warning(tmp_path):
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    subprocess.run([make, "-s", "links"], cwd=ROOT, check=True)
    # Without --quiet, which silences the counter of warnings, too.
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    answer = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    pages = [page.read_text() for page in tmp_path.glob("api_*.html")]
    assert len(pages) > 5 and all(any(name in page for page in pages) for name in PUBLIC)
    for page in pages:  # types are rendered, and references lead somewhere or are plain names
        words = re.sub(r"<script.*?</script>|<pre>.*?</pre>", "", page, flags=re.DOTALL)
        assert not re.findall(r"<code>[^<]*`|\[<code>[^<]*</code>\]", words)
        assert not re.findall(r"<pre><span></span>- ", page)  # a list that is indented too far is taken for code


METHOD_PAGES = sorted({row.page for row in METHODS})
# How the headings of a method's page begin, in their order: what a user needs first. Others may stand between.
ORDER = [
    "Use",
    "(?:Data|What goes in)",
    "What is logged",
    "Cost",
    "Limits",
    "How",
    "(?:What it does, |What was )measured",
    "API",
]


@pytest.mark.parametrize("name", METHOD_PAGES)
def test_pages_of_methods_have_one_order(name):
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / f"{name}.md").read_text(), flags=re.MULTILINE)
    known = [k for heading in headings for k, pattern in enumerate(ORDER) if re.match(rf"{pattern}\b", heading)]
    assert known == sorted(known)
    assert {ORDER.index(must) for must in ("Use", "How", "Limits")} <= set(known)


def test_every_method_can_be_chosen():
    page = (ROOT / "docs" / "choosing.md").read_text()
    assert {row.name for row in METHODS if row.name.lower() not in page.lower()} == set()
    assert {row.page for row in METHODS if f"({row.page}.md" not in page} == set()


def test_relative_links_lead_to_files():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not re.match(r"https?://", link):
                assert (page.parent / link).exists(), f"{page.name} links to {link}, which does not exist"
