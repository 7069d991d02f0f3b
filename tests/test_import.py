# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What `import alignext` does and does not do, and what the installed package contains."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import alignext


ROOT = Path(__file__).parents[1]
PUBLIC = sorted(set(alignext.__all__) - {"__version__"})


def imported_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after running the code."""
    code += "\nimport json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return set(json.loads(answer.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import alignext", "import alignext; dir(alignext); alignext.__version__"])
def test_import_loads_nothing_heavy(code):
    heavy = {"torch", "numpy", "diffusers", "transformers", "trl", "peft", "accelerate", "datasets", "PIL"}
    assert imported_by(code) & heavy == set()


def test_unknown_name_is_a_plain_attribute_error():
    with pytest.raises(AttributeError, match="module 'alignext' has no attribute 'Nonsense'"):
        alignext.Nonsense  # noqa: B018 the access is the test
    with pytest.raises(ImportError, match="cannot import name 'Nonsense'"):
        from alignext import Nonsense  # noqa: F401
    assert not hasattr(alignext, "__wrapped__")


def test_public_names_agree():
    """The table, `__all__`, `dir` and what type checkers see are one list."""
    assert sorted(alignext._MODULES) == PUBLIC
    assert sorted(dir(alignext)) == sorted(alignext.__all__)
    tree = ast.parse((ROOT / "alignext" / "__init__.py").read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == alignext._MODULES


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_loads_and_is_documented(name):
    value = getattr(alignext, name)
    assert value is getattr(importlib.import_module(alignext._MODULES[name]), name)
    assert value.__doc__ and value.__doc__.strip(), f"{name} has no docstring"


def test_version_stands_in_one_place():
    installed = metadata.version("alignext")
    assert installed == alignext.__version__, "the version changed: run `pip install -e . --no-deps` again"
    assert f"## {alignext.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_folder_is_installed():
    """setuptools gets the packages as a list, since it cannot find them through the package-dir mapping."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"alignext": "alignext", "pipelines": "alignext.pipelines", "trainers": "alignext.trainers"}
    found = set()
    for folder, package in folders.items():
        for file in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *file.parent.relative_to(ROOT / folder).parts]))
    assert set(settings["packages"]) == found


def test_tools_have_one_version_each():
    """The hooks format as CI does, and what is tested is what the ranges of the package allow."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    hooks = re.findall(r"(\w+)==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks and all(pins[name] == version for name, version in hooks)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for dependency in project["dependencies"]:
        requirement = Requirement(dependency)
        assert requirement.specifier.contains(pins[requirement.name]), f"constraints.txt is outside {dependency}"


@pytest.mark.slow
def test_wheel_works_elsewhere(tmp_path):
    """Build the wheel from a clean copy, install it into a fresh environment, load what a user loads."""
    source = tmp_path / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("alignext-*.whl")
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, cwd=tmp_path)

    # The dependencies come from this environment; its editable alignext does not, since that is a .pth file, which is
    # read in site folders only.
    dependencies = Path(pytest.__file__).parents[1]
    paths = [str(target), str(dependencies)]
    code = f"""
import sys
sys.path[:0] = {paths!r}
from alignext import RIVALPipeline, mini
import alignext
assert alignext.__file__.startswith({str(target)!r}), alignext.__file__
from transformers import AutoModelForCausalLM, AutoTokenizer
pipe = RIVALPipeline.from_pretrained(mini.path("sd"))
AutoModelForCausalLM.from_pretrained(mini.path("lm"))
AutoTokenizer.from_pretrained(mini.path("lm"))
print(type(pipe).__mro__[2].__name__)
"""
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(fresh)], check=True)
    python = fresh / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert (target / "alignext" / "py.typed").exists()
