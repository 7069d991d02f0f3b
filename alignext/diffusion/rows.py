# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Where the rows of a batch are in the arguments of a denoiser's call, and calls of single rows put together."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from alignext.diffusion.digests import digest


ROWS, SHARED, ONE_AT_A_TIME = "rows", "shared", "one at a time"


def row_pattern(one: Any, two: Any) -> Any:
    """
    Compare the arguments of a call of one sample with those of the same sample twice: what grew twice as long has
    rows, all else is shared.

    Args:
        one, two (`Any`): Nested tuples, lists and dictionaries with tensors and plain values.

    Returns:
        `Any`: Of the same nesting, with `"rows"` and `"shared"`; `"one at a time"` where twice the first does not give
        the second.
    """
    pattern = _pattern(one, two)
    return pattern if _same(join(pattern, [one, one]), two) else ONE_AT_A_TIME


def _pattern(one: Any, two: Any) -> Any:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        doubled = one.ndim and two.ndim == one.ndim and len(two) == 2 * len(one) and one.shape[1:] == two.shape[1:]
        return ROWS if doubled and len(one) else SHARED
    if isinstance(one, list | tuple) and type(one) is type(two):
        if one and len(two) == 2 * len(one):
            return ROWS
        return type(one)(_pattern(a, b) for a, b in zip(one, two, strict=False))
    if isinstance(one, dict) and isinstance(two, dict):
        return {name: _pattern(value, two.get(name)) for name, value in one.items()}
    return SHARED


def join(pattern: Any, calls: Sequence[Any]) -> Any:
    """The arguments for all samples from those of each, see [`row_pattern`]."""
    if pattern in (SHARED, ONE_AT_A_TIME) or len(calls) == 1:
        return calls[0]
    if isinstance(pattern, str):
        first = calls[0]
        return torch.cat(list(calls)) if isinstance(first, torch.Tensor) else type(first)(x for c in calls for x in c)
    if isinstance(pattern, dict):
        return {name: join(inner, [call[name] for call in calls]) for name, inner in pattern.items()}
    return type(pattern)(join(inner, [call[i] for call in calls]) for i, inner in enumerate(pattern))


def nesting(call: Any) -> str:
    """How tensors and plain values are nested in the arguments of a call."""
    if isinstance(call, torch.Tensor):
        return f"tensor {call.ndim}"
    if isinstance(call, list | tuple):
        return f"[{', '.join(nesting(value) for value in call)}]"
    if isinstance(call, dict):
        return f"{{{', '.join(f'{name}: {nesting(value)}' for name, value in call.items())}}}"
    return "none" if call is None else "value"


def key(pattern: Any, call: Any) -> Hashable:
    """What must be the same of two samples for [`join`] to put them together."""
    if isinstance(pattern, dict):
        return tuple(key(inner, call[name]) for name, inner in pattern.items())
    if isinstance(pattern, list | tuple):
        return tuple(key(inner, call[i]) for i, inner in enumerate(pattern))
    if isinstance(call, torch.Tensor):
        return (str(call.dtype), *call.shape[int(pattern == ROWS) :], "" if pattern == ROWS else digest(call))
    if isinstance(call, list | tuple) and any(isinstance(value, torch.Tensor) for value in call):
        return None  # the network takes rows of any length
    return digest(call) if isinstance(call, dict | list | tuple) else repr(call)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        # Text encoders round a row otherwise beside another one.
        close = 0.02 * a.abs().max().item() if a.is_floating_point() and a.numel() else 0
        return torch.equal(a, b) or ((a - b).abs() <= close).all().item()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return a is b or a == b
