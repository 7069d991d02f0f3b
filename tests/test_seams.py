# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Every private name of another library that the source uses stands in the table of seams, and nothing else does.

A name is private if it begins with one underscore. Which of ours are really another library's is read from the source
and from the classes themselves:

- what is taken from an object or imported, and never defined here;
- what a class of ours defines, or sets on itself, though a base class of another library has it;
- what is taken from an object that is not `self`, and is defined here and in a class of another library, too.
"""

import argparse
import ast
import dis
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from datasets import Dataset
from diffusers import DiffusionPipeline
from tqdm import tqdm
from transformers import PretrainedConfig

from . import seams


ROOT = Path(__file__).parents[1]
FOLDERS = {"alignext": "alignext", "pipelines": "alignext.pipelines", "trainers": "alignext.trainers"}
LIBRARIES = ("torch", "diffusers", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub", "tqdm")
PRIVATE = re.compile(r"_[A-Za-z]\w*")
# Of `collections.namedtuple`, where the underscore keeps clear of the fields: the documented interface.
DOCUMENTED = {"_asdict", "_replace"}
NAMING = ("getattr", "hasattr", "setattr", "delattr")  # functions that are told a name
KEYED = ("get", "pop", "setdefault")  # methods of `vars(thing)` and of configs that are


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Module name and tree of every file that ships and is imported by something."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            if not name.startswith("alignext.mini.recipe") and parts[-1] != "__main__":
                yield name, ast.parse(path.read_text(), str(path))


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def names_in(tree: ast.AST) -> tuple[set[str], set[str], set[str]]:
    """Private names that are taken from something, those of them not taken from `self`, those that are defined."""
    taken, foreign, defined = set(), set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name, ctx=context):
                taken.add(name)
                if not is_own(value):
                    foreign.add(name)
                elif isinstance(context, ast.Store):
                    defined.add(name)
            case ast.ImportFrom(module=module, names=imported) if not (module or "").startswith("alignext"):
                taken.update(alias.name for alias in imported)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                defined.add(name)
            case ast.Call(func=ast.Name(id=function), args=[thing, ast.Constant(value=str(name)), *_]):
                if function in NAMING:
                    taken.add(name)
                    foreign.update([name] if not is_own(thing) else [])
            case ast.Call(func=ast.Attribute(attr=method), args=[ast.Constant(value=str(name)), *_]):
                taken.update([name] if method in KEYED else [])
            case ast.Subscript(slice=ast.Constant(value=str(name))):
                taken.add(name)
            case ast.Compare(left=ast.Constant(value=str(name)), ops=[ast.In() | ast.NotIn()]):
                taken.add(name)
    return tuple({name for name in names if PRIVATE.fullmatch(name)} for names in (taken, foreign, defined))


def library(thing: object) -> str:
    return (getattr(thing, "__module__", None) or "").partition(".")[0]


def code_of(thing: object) -> CodeType | None:
    """The code of a method, a property or a class method, whatever is wrapped around it."""
    thing = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "__func__", None) or thing)
    return getattr(thing, "__code__", None)


@functools.cache
def set_by(cls: type) -> frozenset[str]:
    """Private names that a class of a library has: what it defines, and what its methods set on an object."""
    codes = filter(None, map(code_of, vars(cls).values()))
    stored = {step.argval for code in codes for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"}
    return frozenset(name for name in stored | set(vars(cls)) if PRIVATE.fullmatch(name))


def inherited(module: str, tree: ast.Module) -> dict[str, str]:
    """Private names that classes of a module share with a base class of a library: name -> that class."""
    found = {}
    loaded = importlib.import_module(module)
    for node in tree.body:
        cls = getattr(loaded, node.name, None) if isinstance(node, ast.ClassDef) else None
        if not isinstance(cls, type):
            continue
        taken, _, defined = names_in(node)
        for base in cls.__mro__[1:]:
            if library(base) in LIBRARIES:
                found |= dict.fromkeys(set_by(base) & (taken | defined), f"{base.__module__}.{base.__qualname__}")
    return found


@functools.cache
def collected() -> dict[str, str]:
    """Every private name of a library that we use -> where one of them was found."""
    trees = dict(sources())
    names = {module: names_in(tree) for module, tree in trees.items()}
    ours = set().union(*(defined for _, _, defined in names.values()))
    found = {}
    for module, (taken, _, _) in names.items():
        found |= dict.fromkeys(taken - ours, module)
    for module, tree in trees.items():
        found |= {name: f"{module}, as {base} has it" for name, base in inherited(module, tree).items()}
    classes = [
        cls
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in LIBRARIES and module is not None
        for cls in vars(module).values()
        if issubclass(type(cls), type) and library(cls) in LIBRARIES  # `isinstance` asks the object
    ]
    theirs = {name for cls in dict.fromkeys(classes) for name in vars(cls)}
    for module, (_, foreign, _) in names.items():
        found |= dict.fromkeys((foreign & theirs & ours) - found.keys(), module)
    return {name: where for name, where in found.items() if name not in DOCUMENTED | seams.OURS}


def tabled() -> set[str]:
    dotted = [*seams.REPLACED, *seams.CALLED, *seams.PRESENT]
    names = {part for name in dotted for part in name.split(".")}
    names |= {name for group in (seams.ATTRIBUTES, seams.SPELLED) for text in group.values() for name in text.split()}
    return {name for name in names if PRIVATE.fullmatch(name)}


def test_every_private_name_stands_in_the_table() -> None:
    missing = {name: where for name, where in collected().items() if name not in tabled()}
    assert not missing, "a private name of another library without a row in tests/seams.py"


def test_the_table_has_no_private_name_that_is_not_used() -> None:
    assert sorted(tabled() - collected().keys()) == []


def test_the_collection_sees_each_kind() -> None:
    tree = ast.parse(
        "from trl.utils import _imported\n"
        "thing._taken; getattr(thing, '_asked'); vars(thing).pop('_popped', None); vars(thing)['_keyed'] = 1\n"
        "'_contained' in vars(thing)\n"
        "class Own:\n    _set = 1\n    def _made(self): self._kept = self._taken_from_self\n"
        "print('_text', config.name)\n"
    )
    taken, foreign, defined = names_in(tree)
    assert taken == {
        "_imported", "_taken", "_asked", "_popped", "_keyed", "_contained", "_kept", "_taken_from_self"
    }  # fmt: skip
    assert foreign == {"_taken", "_asked"} and defined == {"_set", "_made", "_kept"}


# ------------------------------------------------------------------------------------------------- what is installed


@pytest.mark.parametrize("name", seams.REPLACED)
def test_replaced_signature_is_unchanged(name: str) -> None:
    assert seams.parameters(name) == seams.REPLACED[name].split()


@pytest.mark.parametrize("name", seams.CALLED)
def test_called_signature_takes_what_we_pass(name: str) -> None:
    found = seams.parameters(name)
    # A decorator that hides the signature, as that of diffusers 0.41 around VAEs, passes everything on.
    assert found == ["*args", "**kwargs"] or set(seams.CALLED[name].split()) <= set(found)


@pytest.mark.parametrize("name", seams.PRESENT)
def test_name_is_there(name: str) -> None:
    seams.resolve(name)


@pytest.mark.parametrize("name", seams.SPELLED)
def test_name_is_spelled(name: str) -> None:
    text = inspect.getsource(importlib.import_module(name))
    assert not [word for word in seams.SPELLED[name].split() if not re.search(rf"\b{word}\b", text)]


def shown_pipeline() -> DiffusionPipeline:
    pipe = DiffusionPipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


MAKERS = {
    "accelerate.hooks.add_hook_to_module": lambda: add_hook_to_module(torch.nn.Linear(1, 1), ModelHook()),
    "argparse.ArgumentParser": argparse.ArgumentParser,
    "argparse.ArgumentParser._optionals": lambda: argparse.ArgumentParser()._optionals,
    "datasets.Dataset": lambda: Dataset.from_dict({"a": [1]}),
    "diffusers.DiffusionPipeline.set_progress_bar_config": shown_pipeline,
    "torch.nn.Module": torch.nn.Module,
    "torch.compile": lambda: torch.compile(torch.nn.Linear(1, 1), backend="eager"),
    "tqdm.tqdm": lambda: tqdm(disable=True),
    "transformers.PretrainedConfig": PretrainedConfig,
}


@pytest.mark.parametrize("name", [name for name in seams.ATTRIBUTES if not name.startswith("trl.")])
def test_attributes_are_set(name: str) -> None:
    made = MAKERS[name]()
    assert not [word for word in seams.ATTRIBUTES[name].split() if not hasattr(made, word)]
