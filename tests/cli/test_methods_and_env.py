# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`alignext methods` and `alignext env`."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch

from alignext import cli
from alignext.cli import env
from alignext.methods import METHODS


def test_methods_lists_everything(capsys):
    assert cli.main(["methods"]) == 0
    text = capsys.readouterr().out
    for method in METHODS:
        for value in (method.name, method.title, method.arxiv, *method.classes, *method.parents, method.needs):
            assert value in text


@pytest.mark.parametrize("page", ["readme", "docs"])
def test_methods_as_markdown_is_a_table(page, capsys):
    assert cli.main(["methods", "--markdown", page]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(METHODS)
    assert len({line.count("|") for line in lines}) == 1


def test_env_tells_the_versions(capsys):
    assert cli.main(["env"]) == 0
    facts = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert facts["torch"] == metadata.version("torch")  # some builds leave out their +cu130
    assert facts["CUDA of torch"] == (torch.version.cuda or "none")
    for package in ("alignext", "diffusers", "trl"):
        assert facts[package] == metadata.version(package)
    assert facts["python"] == sys.version.split()[0]


def test_env_works_where_a_package_is_missing(monkeypatch):
    def version(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(env, "find_spec", lambda name: None)
    facts = env.facts()
    assert facts["torch"] == facts["CUDA of torch"] == "not installed"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda: subprocess.CompletedProcess([], 0, stdout="H, 1 MiB, 5\nH, 2 MiB, 5\n"), "H, 1 MiB, 5; H, 2 MiB, 5"),
        (lambda: subprocess.CompletedProcess([], 0, stdout=""), "none"),
        (lambda: (_ for _ in ()).throw(subprocess.TimeoutExpired("nvidia-smi", 10)), "nvidia-smi failed"),
    ],
    ids=["two", "none", "hangs"],
)
def test_env_asks_nvidia_smi(monkeypatch, answer, expected):
    monkeypatch.setattr(env.shutil, "which", lambda name: name)
    monkeypatch.setattr(env.subprocess, "run", lambda *args, **kwargs: answer())
    assert env.facts()["GPU"].startswith(expected)


def test_env_without_a_gpu(monkeypatch):
    monkeypatch.setattr(env.shutil, "which", lambda name: None)
    assert env.facts()["GPU"] == "no nvidia-smi"


def test_env_does_not_load_torch():
    code = "import sys; from alignext.cli import main; main(['env']); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("False\n")
