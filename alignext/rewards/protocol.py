# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The protocol of rewards: `reward(images_or_videos, prompts)`, one number per sample, larger is better."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils import logging


logger = logging.get_logger(__name__)


def call(function: Callable[..., Any], *args: Any, **optional: Any) -> Any:
    """
    Call with those of the optional keyword arguments that the function takes and `args` do not fill already.

    Raises:
        ValueError: If the function cannot be called so.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters
    filled = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD][: len(args)]
    optional = {name: value for name, value in optional.items() if name not in filled}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        optional = {name: value for name, value in optional.items() if name in parameters}
    try:
        signature.bind(*args, **optional)
    except TypeError as error:
        raise ValueError(
            f"`reward` takes {signature} and is called with {len(args)} argument(s), `reward(images, prompts)` with "
            f"pictures: {error}."
        ) from error
    return function(*args, **optional)


def as_rewards(values: Any, count: int) -> torch.Tensor:
    """
    What a reward returned, as a float tensor of shape `(count,)`; NaN and `-inf` become `-inf`, which ranks last.

    Raises:
        ValueError: If it returned None, if these are not `count` real numbers, or one is `+inf`.
    """
    if values is None:
        raise ValueError("`reward` returned None: it must return one number per sample.")
    try:
        values = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`reward` must return numbers, received {values!r}.") from error
    if values.is_complex() or values.numel() != count or values.ndim > 2:
        raise ValueError(
            f"`reward` must return {count} real numbers, one per sample, received shape {tuple(values.shape)} of "
            f"{values.dtype}."
        )
    values = values.flatten().to(torch.promote_types(values.dtype, torch.float32))
    if (values == math.inf).any():
        raise ValueError("`reward` returned +inf, which nothing can be compared with.")
    if not values.isfinite().all():
        logger.warning("`reward` returned NaN or -inf for some samples; they rank last.")
        values = torch.where(values.isfinite(), values, torch.full_like(values, -math.inf))
    return values


def by_prompt(rewards: torch.Tensor, num_prompts: int) -> torch.Tensor:
    """
    Checked rewards `[P * m]`, prompt-major, as `[P, m]`.

    Raises:
        ValueError: If a prompt has no finite one, so that there is no best.
    """
    rewards = rewards.unflatten(0, (num_prompts, -1))
    if not rewards.isfinite().any(1).all():
        raise ValueError("`reward` returned no finite number for any sample of a prompt.")
    return rewards
