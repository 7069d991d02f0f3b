# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Running a denoiser in chunks of its batch, and only once for rows that are equal."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from alignext.wrapping import wrapped


# The first argument of denoisers that are called by names.
_LATENTS = ("hidden_states", "sample", "x")
# Position tables: their length can be the batch size, or a multiple of it, by chance.
_NEVER = {"img_ids", "txt_ids", "image_rotary_emb"}
# One row per frame for some video models, so a multiple of the batch.
_MULTIPLE = {"encoder_hidden_states", "encoder_hidden_states_image", "image_embeds"}
# A batch for each of several layers: what a ControlNet adds.
_LAYERS = ("residual", "controlnet")


def take_rows(value: Any, rows: torch.Tensor, batch: int, name: str = "", lists: bool = False) -> Any:
    """
    Rows of a denoiser argument that has one per row of the batch; anything else as it is.

    Args:
        value: The argument.
        rows (`torch.Tensor`): Numbers of the rows.
        batch (`int`): How many there are.
        name (`str`, *optional*): Name of the argument.
        lists (`bool`, *optional*, defaults to `False`): Whether this denoiser takes its batch as a list of tensors, as
            Z-Image's does.
    """
    if isinstance(value, dict):
        return {key: take_rows(item, rows, batch, key, lists) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and any(part in name for part in _LAYERS):
        return type(value)(take_rows(item, rows, batch) for item in value)
    if lists and isinstance(value, list) and len(value) == batch:
        return [value[row] for row in rows.tolist()]
    if name in _NEVER or not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    if len(value) == batch:
        return value[rows.to(value.device)]
    if name in _MULTIPLE and len(value) % batch == 0:
        return value.unflatten(0, (batch, -1))[rows.to(value.device)].flatten(0, 1)
    return value


def _concatenate(outputs: Sequence[Any], back: torch.Tensor, lists: bool) -> Any:
    """Outputs of all chunks as one of the same type, rows in their order `back`."""
    first = outputs[0]
    if lists and isinstance(first, list):
        rows = [row for output in outputs for row in output]
        return [rows[i] for i in back.tolist()]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs))[back.to(first.device)]
    if isinstance(first, dict):  # model outputs are dictionaries
        return type(first)(**{key: _concatenate([o[key] for o in outputs], back, lists) for key in first})
    if isinstance(first, (tuple, list)):
        return type(first)(_concatenate(parts, back, lists) for parts in zip(*outputs, strict=True))
    return first


@contextmanager
def in_chunks(
    modules: Sequence[torch.nn.Module],
    size: int | None,
    rows: Callable[[int], torch.Tensor | None] = lambda batch: None,
) -> Generator[None]:
    """
    Within it, the modules see at most `size` rows at once, and equal rows once.

    Args:
        modules (`Sequence[torch.nn.Module]`): The denoisers; their first argument is the latent batch.
        size (`int`, *optional*): Rows per call; all by default.
        rows (`Callable`): For a batch size, for each row the one it is equal to, or None where all differ.
    """

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        def chunked(*args: Any, **kwargs: Any) -> Any:
            latents = args[0] if args else next(kwargs[name] for name in _LATENTS if name in kwargs)
            batch, lists = len(latents), isinstance(latents, list)
            same = rows(batch)
            if same is None and (size is None or batch <= size):
                return forward(*args, **kwargs)
            kept, back = torch.unique(torch.arange(batch) if same is None else same, return_inverse=True)
            outputs = [
                forward(
                    *(take_rows(value, part, batch, lists=lists) for value in args),
                    **take_rows(kwargs, part, batch, lists=lists),
                )
                for part in kept.split(size or batch)
            ]
            return _concatenate(outputs, back, lists)

        return chunked

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(wrapped(module, wrap))
        yield
