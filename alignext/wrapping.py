# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""States of a module that last for a while: code of ours around its forward, evaluation."""

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def wrapped(module: torch.nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Generator[None]:
    """
    Within it, `wrap(forward)` runs in the place of the module's forward, and outside of what `torch.compile` made of
    the module: the wrapper may do what does not compile.

    Args:
        module (`torch.nn.Module`): Any module, also one that `torch.compile` returned, or `module.compile()` changed.
        wrap (`Callable`): Makes the wrapper of what is called without it.
    """
    name = "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
    own, absent = vars(module), object()
    previous = own.get(name, absent)  # hooks of accelerate and diffusers are kept there, too
    inner = getattr(module, name)
    wrapper = functools.wraps(inner)(wrap(inner))
    try:
        setattr(module, name, wrapper)
        yield
    finally:
        # Offloading renews its hooks at the end of a pipeline call; what it then put in place stays.
        if own.get(name) is wrapper:
            if previous is absent:
                delattr(module, name)
            else:
                setattr(module, name, previous)


@contextmanager
def evaluating(module: torch.nn.Module) -> Generator[None]:
    """
    Within it the module and all in it evaluate: no dropout. Each part is put back to what it was.

    Args:
        module (`torch.nn.Module`): Any module.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
