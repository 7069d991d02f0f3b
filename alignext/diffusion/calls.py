# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The arguments of a stock pipeline call, row by row of its batch."""

from collections.abc import Sequence
from typing import Any

import torch


def number_of_prompts(call: dict[str, Any]) -> int:
    """
    P, from `prompt`, or from the rows of `prompt_embeds` without one.

    Raises:
        ValueError: If the call has neither.
    """
    prompt = call.get("prompt")
    if isinstance(prompt, str):
        return 1
    if isinstance(prompt, (list, tuple)):
        return len(prompt)
    if isinstance(call.get("prompt_embeds"), (torch.Tensor, list, tuple)):
        return len(call["prompt_embeds"])
    raise ValueError(f"`prompt` must be a string or a list, or `prompt_embeds` be given, received {prompt!r}.")


def number_of_outputs(call: dict[str, Any]) -> int:
    """How many images or videos the stock call makes: for each prompt as many as its own argument says."""
    return number_of_prompts(call) * (call.get("num_images_per_prompt") or call.get("num_videos_per_prompt") or 1)


def take(call: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """
    The call for the prompts `rows` (with repeats), one output each. Texts and tensors with a row per prompt are
    indexed; single texts are repeated; everything else stays.

    Pipelines have a count argument of their own, but some ignore it, and some do not repeat given embeddings.
    """
    P, taken = number_of_prompts(call), dict(call)
    for name, value in call.items():
        if "prompt" in name and isinstance(value, str):
            taken[name] = [value] * len(rows)
        elif "prompt" in name and isinstance(value, (list, tuple)) and len(value) == P:
            taken[name] = [value[row] for row in rows]
        elif ("embeds" in name or "mask" in name) and isinstance(value, torch.Tensor):
            taken[name] = value[torch.tensor(rows, device=value.device)] if len(value) == P else value
    for name in ("num_images_per_prompt", "num_videos_per_prompt"):
        if name in taken:
            taken[name] = 1
    return taken
