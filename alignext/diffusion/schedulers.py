# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Schedulers that a stock denoising loop takes in place of its own."""

import inspect
from typing import Any

import torch


def rebuild_scheduler(scheduler: Any, cls: type | None = None, **changes: Any) -> Any:
    """
    A fresh scheduler with the values that `scheduler` works with now.

    `from_config` drops every key that the configuration file left out, and with it what a stock pipeline corrected
    afterwards (`steps_offset` and `clip_sample` of Stable Diffusion), so that the result would step elsewhere than the
    pipeline, and elsewhere again after saving and loading. Here every value counts that `cls` knows, and a shift that
    was set with `set_shift` is set again.

    Args:
        scheduler (`SchedulerMixin`): Stays as it is.
        cls (`type`, *optional*): Class of the result; that of `scheduler` if not given.
        changes: Values that replace those of `scheduler`.

    Returns:
        `SchedulerMixin`: A scheduler of class `cls` on which no timesteps are set.

    Raises:
        TypeError: If `cls` has no argument of the name of a change.
    """
    cls = cls or type(scheduler)
    known = inspect.signature(cls.__init__).parameters
    values = {name: value for name, value in scheduler.config.items() if name in known}
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise TypeError(f"`{unknown[0]}` is no argument of {cls.__name__}. Take one of {', '.join(list(known)[1:])}.")
    fresh = cls(**values | changes)
    if hasattr(scheduler, "set_shift") and hasattr(fresh, "set_shift") and "shift" not in changes:
        fresh.set_shift(scheduler.shift)  # it is kept beside the configuration
    return fresh


class SchedulerShell:
    """What stock loops read from a scheduler; whatever else they ask for is the base scheduler's."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, base: Any) -> None:
        self.base = base
        self.timesteps, self.sigmas = torch.zeros(0), torch.zeros(1)
        self.num_inference_steps: int | None = None
        self._index = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "base":
            raise AttributeError(name)
        return getattr(self.base, name)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        return sample

    def set_begin_index(self, begin_index: int = 0) -> None:
        if begin_index:
            raise ValueError(f"A search starts at the first step, received `begin_index={begin_index}`.")

    @property
    def step_index(self) -> int:
        return self._index

    def index_for_timestep(self, timestep: Any, schedule_timesteps: torch.Tensor | None = None) -> int:
        return self._index


class NoStepsScheduler(SchedulerShell):
    """A schedule without a step: the stock call with it only decodes `latents=`, or only draws the initial ones."""

    def set_timesteps(
        self, num_inference_steps=None, device=None, sigmas=None, timesteps=None, mu=None
    ) -> None:  # names as `retrieve_timesteps` looks for them
        self.timesteps, self.sigmas = torch.zeros(0, device=device), torch.zeros(1, device=device)
