# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The diffusion loss of given latents under a pipeline's own conditioning, at chosen noise levels."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.levels import prediction_type, training_levels
from alignext.diffusion.recording import record_call
from alignext.functional.elbo import denoising_loss
from alignext.functional.inversion import Levels
from alignext.functional.predictions import add_noise
from alignext.wrapping import evaluating


def loop_form(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """
    Latents `(n, C, h, w)` as the stock loop holds them: packed for Flux, else as they are.

    Args:
        pipe (`DiffusionPipeline`): Its loop.
        latents (`torch.Tensor` of shape `(n, C, h, w)`): Scaled latents.
    """
    return pipe._pack_latents(latents, *latents.shape) if hasattr(pipe, "_pack_latents") else latents


def levels_at(levels: Levels, timesteps: Sequence[int], flow: bool) -> list[int]:
    """
    Numbers of the levels whose timestep in training is `t`: of a flow, the level `t / 1000` before its shift.

    Args:
        levels ([`Levels`]): All levels, of [`training_levels`].
        timesteps (`Sequence[int]`): In [1, N - 1].
        flow (`bool`): Whether level `k` belongs to `t = k` (flow) or `t = k - 1` (diffusion).

    Raises:
        ValueError: If one lies beyond.
    """
    found = [t + (not flow) for t in timesteps]
    if not found or min(found) < 1 or max(found) > levels.num_steps:
        raise ValueError(f"`timesteps` must be in [1, {levels.num_steps - 1}], received {list(timesteps)}.")
    return found


@torch.no_grad()
def diffusion_loss(
    pipe: Any,
    latents: torch.Tensor,
    prompts: Sequence[str],
    timesteps: Sequence[int],
    noise: torch.Tensor,
    *,
    batch_size: int = 16,
    progress: bool = False,
    **call: Any,
) -> torch.Tensor:
    """
    The loss that the denoiser was trained on, for one picture under several prompts: `mean (n - n_theta)^2`, for flow
    models `mean ((n - x0) - v_theta)^2`. Without guidance. All prompts see the same noise, so that their losses can be
    compared.

    Args:
        pipe (`DiffusionPipeline`): Any pipeline whose call [`record_call`] can read. It stays as it is.
        latents (`torch.Tensor` of shape `(C, h, w)`): Scaled latents of the picture.
        prompts (`Sequence[str]`): `P` prompts.
        timesteps (`Sequence[int]`): `T` noise levels, in [1, 999].
        noise (`torch.Tensor` of shape `(T, C, h, w)`): Standard normal.
        batch_size (`int`, *optional*, defaults to 16): Rows of a denoiser call; at least one per prompt.
        progress (`bool`, *optional*, defaults to `False`): Show a bar.
        call: Further arguments of the stock call, such as `height`, `width` and `max_sequence_length`.

    Returns:
        `torch.Tensor` of shape `(T, P)`, float32 or better.

    Raises:
        ValueError: If a timestep lies beyond, or the pipeline's call cannot be read.
    """
    denoiser, kind = get_denoiser(pipe), prediction_type(pipe.scheduler)
    levels = training_levels(pipe, (int(latents.shape[-2]), int(latents.shape[-1])))
    numbers = levels_at(levels, timesteps, kind == "flow_prediction")
    P, T = len(prompts), len(timesteps)
    together = max(k for k in range(1, T + 1) if T % k == 0 and (k == 1 or k * P <= batch_size))
    arguments: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), **call}
    recorded = record_call(pipe, prompt=list(prompts) * together, **arguments)
    x0 = latents.to(denoiser.device, torch.float32)
    losses = []
    with evaluating(denoiser):
        for start in tqdm(range(0, T, together), desc="Scoring prompts", disable=not progress):
            chosen = torch.tensor(numbers[start : start + together]).repeat_interleave(P)
            n = noise[start : start + together].to(x0).repeat_interleave(P, 0)
            a, s = (level[chosen].to(x0) for level in (levels.a, levels.s))
            rows = x0.expand(len(n), *x0.shape)
            x = add_noise(rows, n, a, s)
            t = levels.timesteps[chosen - 1].to(x0.device)
            prediction = recorded(denoiser, loop_form(pipe, x).to(recorded.dtype), t)
            rows, n = loop_form(pipe, rows), loop_form(pipe, n)
            losses.append(denoising_loss(prediction, rows, n, a, s, kind).view(-1, P))
    return torch.cat(losses)
