# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a newcomer types first: the snippets of the README and the docs, their commands, the examples, the demo."""

import ast
import math
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image

from alignext import cli
from alignext.cli.demo import DEMOS
from alignext.demos.gallery import Section, write_gallery
from alignext.methods import METHODS
from tests import fresh_clone
from tests.browser import assert_sound, look


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def shell_lines() -> list[tuple[str, list[str]]]:
    """(page, words) of every shell line that the pages show, without comments."""
    found = []
    for page in PAGES:
        for block in (*blocks(page, "bash"), *blocks(page, "sh")):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, words) for words in (shlex.split(line, comments=True) for line in lines) if words]
    return found


def test_the_readme_shows_code_and_commands():
    assert blocks(ROOT / "README.md", "python")
    assert {words[0] for page, words in shell_lines() if page == "README.md"} >= {"make", "alignext"}


def test_the_first_own_picture_is_three_commands_away():
    """After `git clone` and `cd`; and the README stays short, the rows of its table aside."""
    words = [words for page, words in shell_lines() if page == "README.md"]
    assert [line[:2] for line in words[:3]] == [
        ["make", "demo"],
        ["source", ".venv/bin/activate"],
        ["alignext", "rival"],
    ]
    assert len((ROOT / "README.md").read_text().splitlines()) - len(METHODS) <= 113


# The tutorials' are parts of a walk, see tests/fresh_clone.py.
SNIPPETS = [page for page in PAGES if blocks(page, "python") and not page.name.startswith("start_")]
# These draw or train for two seconds and more.
LONG_PAGES = {
    f"{name}.md"
    for name in (
        "rival alignedgen migration ddpo alignprop d2_align latent_search process_reward f_dpg mini qalign mah_dpo "
        "mini-lm"
    ).split()
}


@pytest.mark.parametrize("page", [page for page in SNIPPETS if page.name in LONG_PAGES], ids=lambda page: page.name)
def test_snippets_import_what_there_is(page):
    """Where the whole snippet is slow."""
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        tree.body = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, page.name, "exec"), {})


# TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.name in LONG_PAGES), id=page.name) for page in SNIPPETS],
)
def test_python_snippets_run(page, tmp_path, monkeypatch):
    """All ```python blocks of a page, one after the other, as someone who pastes them does."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    if page.name == "README.md":
        assert len(namespace["images"]) == 4
        assert (tmp_path / "variation.png").exists()
        # The terminal's example takes the file that these lines have written.
        words = next(words for page, words in shell_lines() if page == "README.md" and words[0] == "alignext")
        assert (tmp_path / cli.make_parser().parse_args(words[1:]).picture[0]).is_file()


@pytest.mark.parametrize(
    ("page", "words"), shell_lines(), ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_commands_exist(page, words):
    if words[0] == "alignext" and "--from" in words:  # a picture's own words come first, and there is no picture here
        assert words[1] in cli.make_parser()._subparsers._group_actions[0].choices
    elif words[0] == "alignext":
        cli.make_parser().parse_args(words[1:])
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert all(re.search(rf"^{re.escape(target)}:", MAKEFILE, flags=re.MULTILINE) for target in targets)
    else:
        assert words[0] in {"pip", "python", "accelerate", "source", "mkdir"}, (
            f"{page} shows {words[0]}, which nobody has checked"
        )


def fake_python(folder: Path, script: str) -> Path:
    """An executable that answers as the shell script does."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        (None, "needs Python 3.11 or newer, and there is no"),
        ('[ "$1" = -V ] && echo Python 3.9.2 && exit; exit 1', "is Python 3.9.2"),
        (f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"', "apt install python3-venv"),
    ],
    ids=["missing", "old", "without venv"],
)
def test_make_says_what_python_lacks(script, answer, tmp_path):
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = fake_python(tmp_path, script) if script else "no-such-python"
    result = subprocess.run([make, f"PYTHON={python}", "demo"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    assert answer in result.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.slow
def test_a_fresh_clone_runs_every_block_as_printed():
    """README and tutorials, `make demo` first, in clean shells."""
    answer = subprocess.run([sys.executable, str(ROOT / "tests" / "fresh_clone.py")], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    assert all(f"{page}: ran" in answer.stdout for page in fresh_clone.PAGES)
    assert "you/better" in answer.stdout.splitlines()[-1]


def test_a_block_that_fails_stops_its_page(tmp_path):
    """And what stands before it has run, in order, each block as printed."""
    page = tmp_path / "page.md"
    page.write_text("""
```bash
mkdir here && cd here
```

```python
from pathlib import Path
Path("a $HOME `b`").write_text('"')
```

```sh
never
```

```bash
ls
false
touch never
```
""")
    answer = subprocess.run(
        ["bash", "-c", fresh_clone.script(page)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )
    assert answer.returncode != 0
    assert "a $HOME `b`" in answer.stdout and "block 3 (bash)" in answer.stdout
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["a $HOME `b`"]


@pytest.mark.parametrize("page", fresh_clone.PAGES)
def test_what_runs_in_a_clone_is_sound(page):
    """The cheap part of it: the blocks are there, and each is a program."""
    found = fresh_clone.blocks(ROOT / page)
    assert {language for language, _ in found} == {"bash", "python"}
    for language, text in found:
        if language == "python":
            compile(text, page, "exec")
        else:
            assert subprocess.run(["bash", "-n", "-c", text]).returncode == 0


EXAMPLES = pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda script: script.name)


# Those that let the language model write their data, or draw many pictures, take half a minute: these run as they are.
LONG = (
    "d2_align.py",
    "bco.py",
    "ddpo.py",
    "mah_dpo.py",
    "process_reward.py",
    "diffusion_preference.py",
    "steering.py",
    "qalign.py",
    "svdecode.py",
    "f_dpg.py",
    "ches.py",
    "gist.py",
)
SHORTER = {
    "alignprop.py": ["--steps", "1"],
    "fade.py": ["--num-samples", "2", "--max-new-tokens", "6"],
}


@pytest.mark.filterwarnings("default")  # as for someone who runs it
@pytest.mark.parametrize(
    "script",
    [script for script in sorted((ROOT / "examples").glob("*.py")) if script.name not in LONG],
    ids=lambda script: script.name,
)
def test_examples_run(script, tmp_path, monkeypatch):
    """Each copied out alone, with few steps."""
    shutil.copy(script, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script.name, *SHORTER.get(script.name, ["--steps", "4"])])
    runpy.run_path(script.name, run_name="__main__")


@pytest.mark.slow
@EXAMPLES
def test_examples_run_as_they_are(script, tmp_path):
    answer = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def assert_shows_what_it_measured(section, page):
    """Pictures or plots of something, and rows of numbers."""
    assert section.figures or section.charts
    for figure in section.figures:
        with Image.open(page.parent / figure.file) as picture:
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 1
    for chart in section.charts:
        points = [point for values in chart.series.values() for point in values]
        assert points and all(map(math.isfinite, sum(points, start=())))
    assert section.tables and all(table.rows for table in section.tables)
    numbers = [cell for row in section.tables[0].rows for cell in row if isinstance(cell, int | float)]
    assert numbers and all(map(math.isfinite, numbers))


@pytest.fixture
def written(monkeypatch):
    """The sections that reach the gallery."""
    found = []

    def write(folder, sections, **kwargs):
        found.extend(sections)
        return write_gallery(folder, sections, **kwargs)

    monkeypatch.setattr("alignext.demos.page.write_gallery", write)
    return found


@pytest.mark.slow
def test_demo_of_one_method(tmp_path, capsys, written):
    """Few steps: what the pictures look like is tested elsewhere. A second run may write over the first."""
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    for name in ("process-reward", "search"):
        written.clear()
        arguments = ["demo", name, "--out", str(tmp_path / "gallery"), "--steps", "2", "--seed", "1"]
        assert cli.main(arguments) == 0, capsys.readouterr().err
        page = tmp_path / "gallery" / "index.html"
        assert str(page.resolve()) in capsys.readouterr().out
        assert len(written) == (2 if name == "search" else 1)  # pictures, and clips
        for section in written:
            assert_shows_what_it_measured(section, page)
    assert torch.get_num_threads() == threads
    assert transformers.logging.get_verbosity() == verbosity


def test_demo_shows_every_method_in_order(tmp_path, monkeypatch, capsys, written):
    """With stand-ins for the methods: what the command makes of their sections."""

    def stand_in(name):
        def sections(seed, steps):
            return [Section(f"{name} {seed} {steps}"), Section("last", commands=["first"])]

        return SimpleNamespace(demo=sections)

    monkeypatch.setattr("alignext.demos.page.import_module", stand_in)
    assert cli.main(["demo", "--out", str(tmp_path / "gallery"), "--seed", "3"]) == 0
    assert [section.title for section in written[::2]] == [
        f"alignext.demos.{name.replace('-', '_')} 3 None" for name in DEMOS
    ]
    for name, section in zip(DEMOS, written[1::2], strict=True):
        first, again = section.commands
        assert first == "first"
        args = cli.make_parser().parse_args(shlex.split(again, comments=True)[1:])
        assert (args.name, args.seed, args.steps, str(args.out)) == (name, 3, None, f"alignext-{name}")


def test_demo_of_several_at_once_keeps_the_order(tmp_path, monkeypatch, capsys, written):
    """With stand-ins for the methods, and a thread for the processes, which are tried in the slow suite."""

    def stand_in(name):
        return SimpleNamespace(demo=lambda seed, steps: [Section(name)])

    monkeypatch.setattr("alignext.demos.page.import_module", stand_in)
    monkeypatch.setattr("alignext.demos.page.ProcessPoolExecutor", lambda *args, **kwargs: ThreadPoolExecutor(1))
    assert cli.main(["demo", "--out", str(tmp_path / "gallery"), "--processes", "2"]) == 0
    assert [section.title.rpartition(".")[2].replace("_", "-") for section in written] == DEMOS
    assert f"{len(DEMOS)} of {len(DEMOS)} done" in capsys.readouterr().out


def test_demo_that_is_interrupted_shows_what_was_done(tmp_path, monkeypatch, capsys):
    def interrupt(seed, steps):
        raise KeyboardInterrupt

    demos = iter([lambda seed, steps: [Section("first")], interrupt])
    monkeypatch.setattr("alignext.demos.page.import_module", lambda name: SimpleNamespace(demo=next(demos)))
    assert cli.main(["demo", "--out", str(tmp_path / "gallery")]) == 130
    assert "<h2>first</h2>" in (tmp_path / "gallery" / "index.html").read_text()
    assert f"1 of {len(DEMOS)} done" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_writes_a_gallery(tmp_path, capsys, written):
    """Every method, with few steps and in two processes, and the page in a browser."""
    arguments = ["demo", "--out", str(tmp_path / "gallery"), "--steps", "2", "--processes", "2"]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    page = tmp_path / "gallery" / "index.html"
    assert len(written) >= len(DEMOS)
    for section in written:
        assert_shows_what_it_measured(section, page)
    report = look(page, tmp_path / "browser")
    assert_sound(report)
    assert len(report["desktop"]["images"]) == sum(len(section.figures) for section in written)
    assert len(report["desktop"]["charts"]) == sum(len(section.charts) for section in written)


def test_demo_refuses_a_folder_of_others_before_it_starts(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
