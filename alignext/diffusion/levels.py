# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The noise levels of a pipeline's scheduler: all of those it was trained on, and the grid of an inversion."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from alignext.diffusion.schedulers import rebuild_scheduler
from alignext.functional.inversion import Levels, ddim_levels, flow_levels
from alignext.functional.predictions import PREDICTION_TYPES


Schedules = Mapping[int | None, Mapping[str, Any]]


def prediction_type(scheduler: Any) -> str:
    """What the network of this scheduler predicts, in the words of `alignext.functional.predictions`.

    Raises:
        ValueError: if the scheduler has neither `alphas_cumprod` nor `sigmas`, or predicts something else.
    """
    if hasattr(scheduler, "alphas_cumprod"):
        kind = scheduler.config.prediction_type
        if kind not in PREDICTION_TYPES:
            raise ValueError(f"The scheduler's `prediction_type` is {kind!r}, none of {', '.join(PREDICTION_TYPES)}.")
        return kind
    if hasattr(scheduler, "sigmas"):
        return "flow_prediction"
    raise ValueError(
        f"{type(scheduler).__name__} has neither `alphas_cumprod` nor `sigmas` to take noise levels from."
    )


def training_levels(
    pipe: DiffusionPipeline, size: tuple[int, int] | None = None, schedules: Schedules | None = None
) -> Levels:
    """
    Every noise level of the scheduler as one chain; level 0 is the picture itself.

    Args:
        pipe (`DiffusionPipeline`): Its scheduler is read.
        size (`tuple[int, int]`, *optional*): Height and width of the latents, on which some flow schedules depend, as
            that of FLUX.1 does.
        schedules (`Mapping`, *optional*): In the place of `size`, for any family: what the pipeline's call tells
            `set_timesteps`, by number of steps, see [`~alignext.diffusion.conditions.Template`].
    """
    scheduler = pipe.scheduler
    T = scheduler.config.num_train_timesteps
    if prediction_type(scheduler) == "flow_prediction":
        if scheduler.config.get("use_dynamic_shifting", False) or scheduler.config.get("use_flow_sigmas", False):
            return flow_levels(_flow_sigmas(pipe, T, size, schedules), T)
        sigmas = rebuild_scheduler(scheduler).sigmas.double()
        return flow_levels(torch.cat([sigmas, sigmas.new_zeros(int(sigmas[-1] > 0))]), T)
    abar = scheduler.alphas_cumprod.double().cpu()
    abar = torch.cat([torch.ones_like(abar[:1]), abar])
    return Levels(torch.arange(T), abar.sqrt(), (1 - abar).sqrt())


def inversion_levels(
    pipe: DiffusionPipeline,
    num_steps: int,
    size: tuple[int, int] | None = None,
    schedules: Schedules | None = None,
) -> Levels:
    """The grid of an inversion of `num_steps` steps, that of sampling with the pipeline; arguments as above."""
    scheduler = pipe.scheduler
    T = scheduler.config.num_train_timesteps
    if prediction_type(scheduler) == "flow_prediction":
        return flow_levels(_flow_sigmas(pipe, num_steps, size, schedules), T)
    offset = scheduler.config.get("steps_offset", 0)
    return ddim_levels(scheduler.alphas_cumprod.double().cpu(), num_steps, offset=offset)


def _flow_sigmas(
    pipe: DiffusionPipeline, num_steps: int, size: tuple[int, int] | None, schedules: Schedules | None
) -> torch.Tensor:
    """As the pipeline sets them for sampling, 0 included."""
    scheduler = rebuild_scheduler(pipe.scheduler)  # the pipeline's own stays as it is
    config = scheduler.config
    given = dict((schedules or {}).get(num_steps, {"num_inference_steps": num_steps}))
    usual = (schedules or {}).get(None, {})
    if "mu" in usual:  # a shift that depends on the number of steps is that of the usual number
        given["mu"] = usual["mu"]
    if schedules is None and size is not None:  # as FLUX.1 and those after its example
        if config.get("use_dynamic_shifting", False):
            given["mu"] = calculate_shift(
                (size[0] // 2) * (size[1] // 2), config.base_image_seq_len, config.max_image_seq_len,
                config.base_shift, config.max_shift,
            )  # fmt: skip
        if "Flux" in type(pipe).__name__ and not config.get("use_flow_sigmas", False):
            given["sigmas"] = np.linspace(1.0, 1 / num_steps, num_steps)
    scheduler.set_timesteps(**given)
    return scheduler.sigmas.double()
