# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Looks at upstream names that we override or call, so that a new release of theirs fails in one readable place."""

import inspect
from importlib import import_module


def resolve(name: str) -> object:
    """The object behind a dotted name; raises `AttributeError` or `ImportError` where the name ends to exist."""
    parts = name.split(".")
    module, depth = import_module(parts[0]), 1
    while depth < len(parts) and inspect.ismodule(module):
        try:
            module = getattr(module, parts[depth])
        except AttributeError:
            module = import_module(".".join(parts[: depth + 1]))
        depth += 1
    for part in parts[depth:]:
        module = getattr(module, part)
    return module


def parameters(name: str) -> list[str]:
    """The names of a callable's parameters without `self` and `ctx`, `*` and `**` included."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(resolve(name)).parameters.values()
    return [stars.get(p.kind, "") + p.name for p in found if p.name not in ("self", "ctx")]
