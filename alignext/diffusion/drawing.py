# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a pipeline from given seeds, as tensors."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from alignext.diffusion.calls import quiet_copy, take


@torch.no_grad()
def draw(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int = 8,
    progress: bool = False,
    **call: Any,
) -> torch.Tensor:
    """
    One picture or video of each prompt by the stock call. A picture depends on its own seed, not on its neighbours.

    Args:
        pipe (`DiffusionPipeline`): Stays as it is.
        prompts (`Sequence[str]`): What to draw.
        seeds (`Sequence[int]`): Of the noise of each.
        batch_size (`int`, *optional*, defaults to 8): Pictures per call.
        progress (`bool`, *optional*, defaults to `False`): Show the pipeline's own bars.
        call: Further arguments of the pipeline's call.

    Returns:
        `torch.Tensor`: `(n, 3, H, W)`, of videos `(n, F, 3, H, W)`; float32, in [0, 1], on the CPU.

    Raises:
        ValueError: There is no prompt, or not a seed for each.
    """
    if not prompts or len(prompts) != len(seeds):
        raise ValueError(f"`seeds` must be one for each prompt, received {len(seeds)} for {len(prompts)} prompts.")
    twin = copy.copy(pipe) if progress else quiet_copy(pipe)
    twin.scheduler = copy.deepcopy(pipe.scheduler)
    known = inspect.signature(type(pipe).__call__).parameters
    settings = {"output_type": "pt", "return_dict": False}
    whole = {"prompt": list(prompts), **call} | {name: value for name, value in settings.items() if name in known}
    drawn = []
    for start in range(0, len(prompts), batch_size):
        rows = range(start, min(start + batch_size, len(prompts)))
        generators = [torch.Generator().manual_seed(seeds[row]) for row in rows]
        drawn.append(twin(**take(whole, rows), generator=generators)[0].float().cpu().clamp(0, 1))
    return torch.cat(drawn)
