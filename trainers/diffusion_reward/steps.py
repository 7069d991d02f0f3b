# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Schedulers that a stock loop takes in place of its own: Gaussian steps that are noted, and steps that are given."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from alignext.diffusion.levels import prediction_type
from alignext.diffusion.schedulers import SchedulerShell, rebuild_scheduler
from alignext.functional.ddpo import ddim_deviation, flow_sde_step


class ForcedScheduler(SchedulerShell):
    """
    Leads a stock loop through given states, and keeps what it was handed at each of them.

    Args:
        base (`SchedulerMixin`): The pipeline's.
        timesteps (`torch.Tensor` of shape `(k,)`): In its units.
        states (`Sequence[torch.Tensor]`): k times the latents of all samples.

    Attributes:
        predictions (`list[torch.Tensor]`): The first argument of each step.
    """

    def __init__(self, base: Any, timesteps: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        super().__init__(base)
        self._given, self.states = timesteps, list(states)
        self.predictions: list[torch.Tensor] = []

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, timesteps=None, mu=None) -> None:
        self.timesteps = self._given.to(device)
        self.sigmas = torch.cat([self.timesteps.float() / 1000, self.timesteps.new_zeros(1).float()])
        self.num_inference_steps = len(self.timesteps)

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.predictions.append(model_output)
        self._index = len(self.predictions)
        more = self._index < len(self.states)
        return SchedulerOutput(prev_sample=self.states[self._index].to(sample) if more else sample)  # also a tuple


class PolicyScheduler(SchedulerShell):
    """
    Sampling as a policy: each step draws from a Gaussian, and all of them are noted. Models of diffusion step as DDIM
    with `eta` does, whatever scheduler the pipeline has; flows as the SDE of Flow-GRPO does, on their own schedule.
    States are kept in float32, so that their log-probabilities are not those of rounded numbers.

    Args:
        base (`SchedulerMixin`): The pipeline's.
        eta (`float`): Of models of diffusion.
        noise_level (`float`): Of flows.
        generators (`list[torch.Generator]`, *optional*): Of the noise, one for each sample.

    Attributes:
        states (`list[torch.Tensor]`): T + 1 times the latents of all samples, float32.
        means (`list[torch.Tensor]`): Of the T steps.
        schedule (`dict`): What `set_timesteps` was told, in numbers and lists.
    """

    def __init__(
        self, base: Any, *, eta: float, noise_level: float, generators: list[torch.Generator] | None = None
    ) -> None:
        self.flow = prediction_type(base) == "flow_prediction"
        if self.flow:
            stepping = rebuild_scheduler(base)
        else:
            bare = {} if "clip_sample" in base.config else {"clip_sample": False}  # what DDIM's own default would do
            stepping = rebuild_scheduler(base, DDIMScheduler, **bare)
        super().__init__(stepping)
        self.eta, self.noise_level, self.generators = eta, noise_level, generators
        self.states: list[torch.Tensor] = []
        self.means: list[torch.Tensor] = []
        self.schedule: dict[str, Any] = {}

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, timesteps=None, mu=None) -> None:
        given = {"num_inference_steps": num_inference_steps, "sigmas": sigmas, "timesteps": timesteps, "mu": mu}
        known = inspect.signature(self.base.set_timesteps).parameters
        told = {name: value for name, value in given.items() if value is not None and name in known}
        self.schedule = {name: getattr(value, "tolist", lambda v=value: v)() for name, value in told.items()}
        self.base.set_timesteps(**told, **({"device": device} if "device" in known else {}))
        self.timesteps, self.num_inference_steps = self.base.timesteps, len(self.base.timesteps)
        if self.flow:
            self.sigmas = self.base.sigmas

    def deviation(self, index: int) -> float:
        """Of the noise of a step; 0 where it is deterministic, as DDIM's last one is."""
        if self.flow:
            one = torch.ones(1)
            return float(flow_sde_step(one, one, *self._sigmas(index))[1])
        t, then = self._steps(index)
        abar = self.base.alphas_cumprod
        end = abar[then] if then >= 0 else self.base.final_alpha_cumprod
        return float(ddim_deviation(abar[t].double(), end.double(), self.eta))

    def mean(self, index: int, x: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """
        Of a step's Gaussian, float32.

        Args:
            index (`int`): Number of the step, from 0.
            x (`torch.Tensor` of shape `(n, ...)`): The state before it.
            prediction (`torch.Tensor` of shape `(n, ...)`): What the loop hands to the scheduler.
        """
        x, prediction = x.float(), prediction.float()
        if self.flow:
            return flow_sde_step(x, prediction, *self._sigmas(index))[0]
        t = self._steps(index)[0]
        still = torch.zeros_like(x)
        return self.base.step(prediction, t, x, eta=self.eta, variance_noise=still, return_dict=False)[0]

    def _sigmas(self, index: int) -> tuple[float, float, float, float]:
        sigmas = [float(sigma) for sigma in self.sigmas]
        return sigmas[index], sigmas[index + 1], self.noise_level, sigmas[1]

    def _steps(self, index: int) -> tuple[int, int]:
        t = int(self.timesteps[index])
        return t, t - self.base.config.num_train_timesteps // self.base.num_inference_steps

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.states:
            self.states.append(sample.float())
        i, x = self._index, self.states[-1]
        mean, sd = self.mean(i, x, model_output), self.deviation(i)
        if sd > 0:
            if self.generators is None:
                raise ValueError("`generators` must be given to draw a step's noise.")
            noise = [torch.randn(x.shape[1:], generator=generator) for generator in self.generators]
            x = mean + sd * torch.stack(noise).to(x.device)
        else:
            x = mean
        self.means.append(mean)
        self.states.append(x)
        self._index += 1
        return SchedulerOutput(prev_sample=x.to(sample.dtype))  # also a tuple
