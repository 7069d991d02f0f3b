# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Schedulers that a stock denoising loop takes in place of its own."""

from typing import Any

import torch


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
