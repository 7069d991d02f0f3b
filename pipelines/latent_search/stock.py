# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The stock call of a pipeline: its arguments, and its outputs."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from alignext.signatures import check_names


def _stock_method(pipe: Any) -> Callable[..., Any]:
    """The `__call__` below ours, if the pipeline is one of ours."""
    for cls in type(pipe).__mro__:
        if "__call__" in vars(cls) and issubclass(cls, DiffusionPipeline) and not hasattr(cls, "_is_search"):
            return vars(cls)["__call__"]
    raise TypeError(f"`pipe` must be a diffusers pipeline, received {type(pipe).__name__}.")


def stock_call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
    """The call of the pipeline without ours."""
    return _stock_method(pipe)(pipe, *args, **kwargs)


def is_custom(pipe: Any) -> bool:
    """Whether the call below ours is not one of diffusers' own."""
    return not _stock_method(pipe).__module__.startswith("diffusers.")


def bind(pipe: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    All arguments of a stock call by name, with its defaults.

    Raises:
        TypeError: For a misspelt argument, with the nearest right one, also where the stock class swallows it.
    """
    signature = inspect.signature(_stock_method(pipe))
    check_names(kwargs, [*signature.parameters, "noise_sampler", "uniform_sampler"], f"{type(pipe).__name__}.__call__")
    bound = signature.bind(pipe, *args, **kwargs)
    bound.apply_defaults()
    call = dict(bound.arguments)
    call.pop("self")
    return call | call.pop("kwargs", {})


def count_of(call: dict[str, Any]) -> int:
    """How many samples of each prompt are asked for."""
    return call.get("num_images_per_prompt") or call.get("num_videos_per_prompt") or 1


def texts_of(call: dict[str, Any]) -> list[str] | None:
    """The prompts, or None where only embeddings are given."""
    prompt = call.get("prompt")
    return [prompt] if isinstance(prompt, str) else None if prompt is None else list(prompt)


def extended(output: Any, extra: dict[str, Any]) -> Any:
    """The stock output, an ordered dictionary with attributes, with our fields after its own."""
    if isinstance(output, tuple):
        return (*output, *extra.values())
    for name, value in extra.items():
        output[name] = value
    output["interrupted"] = extra.get("interrupted", False)
    return output


def as_unit_tensor(samples: Any) -> torch.Tensor:
    """Images or videos as pipelines return them (PIL, NumPy, tensors) as `(n, [F,] 3, H, W)`, float32 in [0, 1]."""
    if isinstance(samples, torch.Tensor):
        return samples.float()
    if isinstance(samples, np.ndarray):
        return torch.from_numpy(samples).float().movedim(-1, -3)
    if isinstance(samples[0], (list, torch.Tensor, np.ndarray)):
        return torch.stack([as_unit_tensor(frames) for frames in samples])
    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in samples]
    return torch.from_numpy(np.stack(arrays)).movedim(-1, -3)
