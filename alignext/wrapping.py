# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Code of ours around a module's forward, for a while."""

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
