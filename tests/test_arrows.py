# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The arrows between the layers: pipelines and trainers import alignext, never the other way, and never each other."""

import ast
import functools
import sys
from collections.abc import Callable
from importlib.util import resolve_name
from pathlib import Path

import pytest

import alignext


ROOT = Path(__file__).parents[1]
HUGGING_FACE = {"diffusers", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub", "safetensors"}
# The lazy public names are the one place where alignext may point at pipelines and trainers.
LAZY = ROOT / "alignext" / "__init__.py"


@functools.cache
def imports_of(source: str, *, package: str = "", resolve: bool = True) -> frozenset[str]:
    """Full names of all that the code of a module in `package` imports, wherever in it.

    With `resolve`, a public name imported from `alignext` counts as the module that defines it.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                public = resolve and module == "alignext" and alias.name in alignext._MODULES
                found.add(alignext._MODULES[alias.name] if public else f"{module}.{alias.name}")
    return frozenset(found)


def package_of(path: Path) -> str:
    """Name of the package that the file is in, once installed."""
    parts = path.parent.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "alignext" else ("alignext", *parts))


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def offenders(paths: list[Path], forbidden: Callable[[str], bool], *, resolve: bool = True) -> list[str]:
    """Every import in the files for which `forbidden(name)` holds, as "file imports name"."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in sorted(imports_of(path.read_text(), package=package_of(path), resolve=resolve))
        if forbidden(name)
    ]


def test_the_walk_sees_every_form_of_import():
    source = """
import a.b as c
def f():
    from d.e import g
from . import h
from alignext import RIVALPipeline, mini
"""
    package = "alignext.trainers.x"
    expected = {"a.b", "d.e.g", "alignext.trainers.x.h", "alignext.pipelines.rival", "alignext.mini"}
    assert imports_of(source, package=package) == expected
    assert imports_of(source, package=package, resolve=False) >= {"alignext.RIVALPipeline", "alignext.mini"}
    assert package_of(ROOT / "trainers" / "x" / "y.py") == package


def test_there_is_something_to_walk():
    assert all(files(folder) for folder in ("alignext", "alignext/functional", "pipelines", "trainers"))


def upward(name: str) -> bool:
    return under(name, "alignext.pipelines", "alignext.trainers", "pipelines", "trainers")


def test_alignext_imports_neither_pipelines_nor_trainers():
    assert offenders([path for path in files("alignext") if path != LAZY], upward, resolve=False) == []


def test_only_commands_use_the_lazy_public_names():
    """Commands and demos are users of the library; the machinery below them is not."""
    machinery = [path for path in files("alignext") if path != LAZY and path.parent.name not in ("cli", "demos")]
    assert offenders(machinery, upward) == []


def test_nothing_imports_the_command_but_the_command():
    """Nor the demos, but for their gallery, which commands write as well."""
    others = [path for top in ("alignext", "pipelines", "trainers") for path in files(top)]
    others = [path for path in others if path.parent.name != "cli" and path.name != "__main__.py"]
    scripts = [*files("examples"), *files("benchmarks")]
    assert offenders([*others, *scripts], lambda name: under(name, "alignext.cli"), resolve=False) == []
    below = [path for path in others if path.parent.name != "demos"]
    assert offenders(below, lambda name: under(name, "alignext.demos"), resolve=False) == []


@pytest.mark.parametrize(("folder", "other"), [("pipelines", "trainers"), ("trainers", "pipelines")])
def test_pipelines_and_trainers_never_import_each_other(folder, other):
    assert offenders(files(folder), lambda name: under(name, f"alignext.{other}", other)) == []


def test_nothing_imports_the_integrations():
    """They are users of the library, and not part of the package."""
    others = [path for top in ("alignext", "pipelines", "trainers", "examples", "benchmarks") for path in files(top)]
    assert offenders(others, lambda name: under(name, "integrations", "alignext.integrations")) == []
    assert files("integrations")


@pytest.mark.parametrize("folder", ["pipelines", "trainers"])
def test_imports_are_by_the_installed_name(folder):
    assert offenders(files(folder), lambda name: under(name, "pipelines", "trainers")) == []


def test_pipelines_import_absolutely():
    """A folder of pipelines is also a diffusers community pipeline, and diffusers copies its file elsewhere."""
    relative = [
        path.relative_to(ROOT)
        for path in files("pipelines")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_functional_imports_no_hugging_face_library():
    assert offenders(files("alignext/functional"), lambda name: under(name, *HUGGING_FACE)) == []


def test_functional_imports_only_torch_and_itself():
    def foreign(name: str) -> bool:
        return not (under(name, "torch", "alignext.functional") or name.split(".")[0] in sys.stdlib_module_names)

    assert offenders(files("alignext/functional"), foreign) == []
