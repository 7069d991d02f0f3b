# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Leaves a pipeline as it was where the constructor of its trainer fails."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline


def undone(constructor: Callable[..., None]) -> Callable[..., None]:
    """An `__init__` that, if it raises, leaves the pipelines and modules among its arguments as they were."""

    @functools.wraps(constructor)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        with unchanged_on_error([module for given in (*args, *kwargs.values()) for module in _modules_of(given)]):
            constructor(self, *args, **kwargs)

    return wrapped


@contextmanager
def unchanged_on_error(modules: Iterable[torch.nn.Module]) -> Generator[None]:
    """
    Put everything back into modules if what is done within raises: layers, weights with their kind and place, modes.
    Weights are not copied; they must be replaced within (`parameter.data = ...`), not written into.

    Args:
        modules (`Iterable[torch.nn.Module]`): With all that they are made of.
    """
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    of_parts = [(part, {name: (value, _content(value)) for name, value in vars(part).items()}) for part in parts]
    parameters = {id(p): p for part in parts for p in part.parameters(recurse=False)}.values()
    of_parameters = [(p, p.data, p.requires_grad) for p in parameters]
    try:
        yield
    except BaseException:
        for part, attributes in of_parts:
            for value, content in attributes.values():
                if content is not None:
                    value.clear()
                    value.extend(content) if isinstance(value, list) else value.update(content)
            vars(part).clear()
            vars(part).update({name: value for name, (value, _) in attributes.items()})
        for parameter, data, trained in of_parameters:
            parameter.data = data
            parameter.requires_grad_(trained)
        raise


def _modules_of(given: Any) -> list[torch.nn.Module]:
    if isinstance(given, DiffusionPipeline):
        given = list(vars(given).values())
    candidates = given if isinstance(given, list | tuple) else [given]
    return [module for module in candidates if isinstance(module, torch.nn.Module)]


def _content(value: Any) -> Any:
    """What is now in a container of a module, such as that of its parts or hooks. Frozen ones stay as they are."""
    return value.copy() if type(value) in (dict, OrderedDict, set, list) else None
