# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The decoder layers of a causal language model, and what one of them returns."""

import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from alignext.loaded import check_loaded


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """
    The list of decoder layers: the one `ModuleList` with as many members as the model has hidden layers. Models inside
    of PEFT's are found, too.

    Raises:
        ValueError: If there is none, or there are several, as in an encoder-decoder; or the model is not loaded.
    """
    check_loaded(model)
    config = model.config.get_text_config(decoder=True)
    found = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == config.num_hidden_layers]
    # Lists inside of a layer, such as one expert per hidden layer, are not lists of layers.
    found = [m for m in found if not any(m in list(other.modules())[1:] for other in found)]
    if len(found) != 1:
        raise ValueError(
            f"`model` must have one list of {config.num_hidden_layers} decoder layers, but {type(model).__name__} has "
            f"{len(found)}."
        )
    return found[0]


def states_of(output: Any) -> torch.Tensor:
    """The hidden states `(B, L, d)` in a layer's output: the output itself, or its first part."""
    return output if isinstance(output, torch.Tensor) else output[0]


@contextmanager
def states_seen(layers: Sequence[torch.nn.Module]) -> Generator[dict[int, torch.Tensor]]:
    """Within it, the hidden states `(B, L, d)` that each layer gave last are in the result, by the layer's place."""
    seen: dict[int, torch.Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda module, args, output, i=i: seen.__setitem__(i, states_of(output)))
        for i, layer in enumerate(layers)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def with_states(output: Any, states: torch.Tensor) -> Any:
    """A layer's output with other hidden states."""
    return states if isinstance(output, torch.Tensor) else (states, *output[1:])


def parse_layers(layers: int | str | list[int], count: int) -> list[int]:
    """
    Indices of layers.

    Args:
        layers (`int`, `str` or `list[int]`): An index, indices, or a depth such as `"50%"` or `"25%-60%"`.
        count (`int`): Number of layers.

    Raises:
        ValueError: If an index is out of range, or the text is no such range.
    """
    if isinstance(layers, str) and layers.strip().isdigit():  # an index, as a command line has it
        layers = int(layers)
    if isinstance(layers, str):
        low, high = _depths(layers)
        return [i for i in range(count) if low <= i / max(count - 1, 1) <= high] or [round(low * (count - 1))]
    indices = list(layers) if isinstance(layers, Iterable) else [layers]
    wrong = [i for i in indices if not isinstance(i, int) or not 0 <= i < count]
    if wrong or not indices:
        raise ValueError(f"`layers` must be within 0 and {count - 1}, or a depth such as '50%', received {layers!r}.")
    return indices


def _depths(layers: str) -> tuple[float, float]:
    """The ends of a range of depths, both the same for a single one."""
    parts = [part.strip() for part in layers.split("-")]
    try:
        if len(parts) > 2 or not all(part.endswith("%") for part in parts[-1:]):
            raise ValueError(layers)
        low, high = (float(parts[i].removesuffix("%")) / 100 for i in (0, -1))
        if not 0 <= low <= high <= 1:
            raise ValueError(layers)
    except ValueError as error:
        raise ValueError(
            "`layers` must be an index, or a depth or range within 0% and 100%, the lower end first, such as '50%' or "
            f"'25%-60%', received {layers!r}."
        ) from error
    return low, high


def watch_hooks() -> None:
    """
    Let compiled code notice hooks that come and go: by torch's default it keeps those that it was compiled with, and
    no others. Code that was compiled under the default is forgotten, once in a process.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.config.skip_nnmodule_hook_guards:
        dynamo.config.skip_nnmodule_hook_guards = False
        dynamo.reset()
