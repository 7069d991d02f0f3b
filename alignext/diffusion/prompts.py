# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The text encoders of a pipeline, and what its `encode_prompt` gave, kept."""

import inspect
from typing import Any

import torch

from alignext.diffusion.recorded_call import mapped


TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")


def text_encoders(pipe: Any) -> list[Any]:
    """Those that a pipeline has."""
    return [encoder for name in TEXT_ENCODERS if (encoder := getattr(pipe, name, None)) is not None]


class KeptPrompts:
    """
    What `encode_prompt` of a pipeline gave, for a stock call without text encoders later.

    Args:
        pipe (`DiffusionPipeline`): Whose `encode_prompt` is asked, once for each call of this with other arguments.
    """

    def __init__(self, pipe: Any) -> None:
        self._encode = pipe.encode_prompt
        self._signature = inspect.signature(self._encode)
        self._kept: dict[str, Any] = {}

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs).arguments
        device = bound.pop("device", None)
        name = repr(sorted((k, v) for k, v in bound.items() if not isinstance(v, torch.Tensor)))
        if name not in self._kept:
            self._kept[name] = mapped(self._encode(*args, **kwargs), torch.Tensor.cpu)
        return mapped(self._kept[name], lambda value: value.to(device or "cpu"))
