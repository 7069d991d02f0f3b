# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The command as a whole: help, exit codes, errors."""

import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from alignext import __version__, cli
from alignext.cli import errors
from alignext.rewards.by_name import function_of


NAMES = list(cli.make_parser()._subparsers._group_actions[0].choices)


def run(*arguments, code=""):
    """Run the command in a fresh interpreter."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "alignext", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def fake_command(monkeypatch, func):
    """Make `alignext fake` a command that runs the function."""

    def register(subparsers):
        subparsers.add_parser("fake").set_defaults(func=func)

    monkeypatch.setattr(cli, "COMMANDS", (SimpleNamespace(register=register),))


@pytest.mark.parametrize("name", NAMES)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: alignext {name}" in capsys.readouterr().out


def test_help_names_every_command():
    answer = run("--help")
    assert answer.returncode == 0
    assert all(name in answer.stdout for name in NAMES)
    assert run("--version").stdout == f"alignext {__version__}\n"


def test_building_the_parsers_loads_nothing_heavy():
    code = """
import sys
from alignext.cli import make_parser
make_parser().format_help()
loaded = {name.split(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "numpy", "diffusers", "transformers", "trl", "PIL"}))
"""
    assert run(code=code).stdout == "[]\n"


def test_console_script_is_the_same_function():
    (script,) = metadata.entry_points(group="console_scripts", name="alignext")
    assert script.load() is cli.main


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def of_ours(source, name="alignext.somewhere"):
    """The function `f` of a source, as if it stood in a module of ours, or in another one."""
    module = {"__name__": name}
    exec(compile(source, f"<{name}>", "exec"), module)
    return module["f"]


def test_an_error_stands_below_what_progress_was_made(monkeypatch, capsys):
    source = "def f(args):\n for _ in tqdm(range(2)):\n  raise ValueError('It does not fit.')"
    func = of_ours(source)
    func.__globals__["tqdm"] = tqdm
    fake_command(monkeypatch, func)
    assert cli.main(["fake"]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert "0/2" in progress[-1] and error == "alignext fake: error: It does not fit."


def test_an_error_of_the_user_is_one_line(monkeypatch, capsys):
    fake_command(monkeypatch, of_ours("def f(args):\n raise ValueError('--size 7 is odd.\\nPass an even one.')"))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == "alignext fake: error: --size 7 is odd. Pass an even one.\n"
    assert cli.main(["fake", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("alignext fake: error: --size 7 is odd. Pass an even one.\n")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("def f(args): raise TypeError('must be a list')", 2),  # meant, whatever its type
        ("def f(args): args.nonsense", 1),
        ("def f(args): {}['a']", 1),
        ("def f(args): list(zip([1], [], strict=True))", 1),  # a ValueError that nobody meant
        ("def f(args): open('/no/such/file')", 2),
        ("def f(args): import no_such_package", 2),
        ("def f(args): b'\\xe9'.decode()", 2),
        ("import json\ndef f(args): json.loads('{')", 2),  # a library on a value
        ("import json\ndef f(args): json.loads(None)", 1),  # a library that we called wrongly
        ("import decimal\ndef f(args): decimal.Decimal([])", 1),
    ],
)
def test_whose_mistake_it_is_depends_on_where_it_was_raised(source, code, monkeypatch, capsys):
    fake_command(monkeypatch, of_ours(source))
    assert cli.main(["fake"]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (" unexpected " in error and "--debug" in error) == (code == 1)


def test_a_function_of_the_user_is_named(monkeypatch, capsys):
    """Though the error is one of those that would be ours."""

    def mine(args):
        return args.nonsense

    fake_command(monkeypatch, mine)
    assert cli.main(["fake"]) == 2
    assert "error: test_main.py:" in (error := capsys.readouterr().err) and "in mine: AttributeError" in error


def test_the_row_of_a_function_of_the_user_is_named(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def length(completions, prompts=None, **kwargs):\n"
        "    return [len(c) / len(p) for c, p in zip(completions, prompts)]\n"
        "def broken(completions):\n"
        "    return nothing\n"
    )
    length = function_of(f"{tmp_path}/mine.py:length", name="--reward")
    assert length(["ab"], prompts=["a"]) == [2.0] and length.__name__ == "length"
    with pytest.raises(ValueError, match=r"mine.py:length failed on row 1 of 2, at line 2: ZeroDivisionError"):
        length(["ab", "c"], prompts=["a", ""])
    with pytest.raises(ValueError, match=r"mine.py:broken failed on row 0 of 1, at line 4: NameError"):
        function_of(f"{tmp_path}/mine.py:broken", name="--reward")(["a"])
    with pytest.raises(ValueError, match=r"no function 'lenght'. Did you mean length\?"):
        function_of(f"{tmp_path}/mine.py:lenght", name="--reward")


def test_errors_speak_of_options():
    found = errors.in_words("`mask_image` and `t_align=7`, not `pipe`", ["--t-align", "-n"], {"mask_image": "--mask"})
    assert found == "--mask and --t-align 7, not `pipe`"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["methods", "--markdwn", "docs"], "there is no option --markdwn. Did you mean --markdown?"),
        (["methods", "--mark", "docs"], "there is no option --mark. Did you mean --markdown?"),  # no abbreviations
        (["metods"], "Did you mean methods?"),
        (["methods", "--markdown", "reedme"], "Did you mean readme?"),
        (["env", "more"], "'more' belongs to no option"),
    ],
)
def test_the_nearest_word_is_named(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_interruption_is_quiet(monkeypatch, capsys):
    def func(args):
        raise KeyboardInterrupt

    fake_command(monkeypatch, func)
    assert cli.main(["fake"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error():
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'alignext', 'methods'], "
    code += (
        "stdout=subprocess.PIPE, stderr=subprocess.PIPE); p.stdout.close(); e = p.stderr.read(); print(p.wait(), e)"
    )
    assert run(code=code).stdout == "0 b''\n"
