# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the hooks of steering share: a switch, a handle, and what a layer's call tells them."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from alignext.steering.layers import watch_hooks


_OFF: list[bool] = []


@contextmanager
def steering_off() -> Generator[None]:
    """Within a `with` block, no vector steers: the plain model, without taking anything off it."""
    _OFF.append(True)
    try:
        yield
    finally:
        _OFF.pop()


class Attached:
    """Steering that is on, also in compiled models, until `remove()`."""

    def __init__(self, handle: torch.utils.hooks.RemovableHandle) -> None:
        self._handle = handle
        watch_hooks()

    def remove(self) -> None:
        """End it. A second time does nothing."""
        self._handle.remove()
        watch_hooks()


def positions_of(kwargs: dict[str, Any], name: str) -> torch.Tensor:
    """Positions `(1 or B, L)` of the tokens in a layer's call."""
    positions = kwargs.get("position_ids")
    if positions is None:
        raise NotImplementedError(
            f"{name} is not told the positions of its tokens, which `position='response'` and `exclude_first` need. "
            "Use `position='all'` and `exclude_first=0`."
        )
    return positions


def is_off() -> bool:
    """Whether vectors are told not to steer."""
    return bool(_OFF)


def had_tokens(kwargs: dict[str, Any], length: int, layer: int) -> bool:
    """Whether the cache held tokens before this call. The layer has added its own already."""
    cache = kwargs.get("past_key_values")
    return cache is not None and int(cache.get_seq_length(layer)) > length
