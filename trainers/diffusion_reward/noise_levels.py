# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Noise levels `(a, s)` of a scheduler whose timesteps are set, by timestep and by place in its schedule."""

from typing import Any

import torch

from alignext.diffusion.levels import prediction_type


Level = tuple[float, float]


def level_of(scheduler: Any, t: torch.Tensor) -> Level:
    """The level of one of a schedule's timesteps."""
    if prediction_type(scheduler) == "flow_prediction":
        sigma = float(scheduler.sigmas[int((scheduler.timesteps == t).nonzero()[-1])])
        return 1 - sigma, sigma
    abar = float(scheduler.alphas_cumprod[int(t)])
    return abar**0.5, (1 - abar) ** 0.5


def level_at(scheduler: Any, place: float) -> tuple[torch.Tensor, Level]:
    """
    Timestep and level at a place in a schedule.

    Args:
        scheduler (`SchedulerMixin`): Its timesteps are set. Of a flow this is the schedule of sampling, shifted as it
            is.
        place (`float`): 0 is clean, 1 all noise; below 0 is clean, too.
    """
    T = scheduler.config.num_train_timesteps
    if place <= 0:
        return torch.zeros(()), (1.0, 0.0)
    if prediction_type(scheduler) == "flow_prediction":
        sigmas = scheduler.sigmas.double().cpu().flip(0)
        at = place * (len(sigmas) - 1)
        low = min(int(at), len(sigmas) - 2)
        sigma = float(torch.lerp(sigmas[low], sigmas[low + 1], at - low))
        return torch.tensor(sigma * T, dtype=torch.float32), (1 - sigma, sigma)
    t = torch.tensor(round(place * (T - 1)))
    return t, level_of(scheduler, t)
