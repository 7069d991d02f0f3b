# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The command as a whole: help, exit codes, errors."""

import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from alignext import __version__, cli


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


def test_an_error_stands_below_what_progress_was_made(monkeypatch, capsys):
    def func(args):
        for _ in tqdm(range(2)):
            raise ValueError("It does not fit.")

    fake_command(monkeypatch, func)
    assert cli.main(["fake"]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert "0/2" in progress[-1] and error == "alignext fake: error: It does not fit."


def test_an_error_of_the_user_is_one_line(monkeypatch, capsys):
    def func(args):
        raise ValueError("--size 7 is odd.\nPass an even one.")

    fake_command(monkeypatch, func)
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == "alignext fake: error: --size 7 is odd. Pass an even one.\n"
    assert cli.main(["fake", "--debug"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("alignext fake: error: --size 7 is odd. Pass an even one.\n")


def test_an_error_of_ours_says_so(monkeypatch, capsys):
    def func(args):
        return args.nonsense

    fake_command(monkeypatch, func)
    assert cli.main(["fake"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "unexpected AttributeError" in error and "--debug" in error


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
