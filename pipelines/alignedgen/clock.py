# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Which step of which loop a call of the transformer belongs to."""

from typing import Any

import torch


class StepClock:
    """
    Tells step, number of steps and noise level of each call of the transformer, and where a loop begins.

    Args:
        scheduler (`SchedulerMixin`, *optional*): Of the loop; without one, `timestep` tells the steps.

    Attributes:
        step (`int`, *optional*): Index of the current step, if it is not to be found out; may be set at any time.
        num_inference_steps (`int`, *optional*): Number of steps, likewise.
        sigma (`float`, *optional*): Noise level of the current step, likewise.
    """

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.step: int | None = None
        self.num_inference_steps: int | None = None
        self.sigma: float | torch.Tensor | None = None
        self.calls_in_step = 0
        self.loop_begins = False  # with the call that was told last
        self._moment: tuple[int, Any] = (-1, None)  # step of the last call, and which loop it belongs to

    def tell(self, timestep: torch.Tensor) -> tuple[int, int | None, Any]:
        """Step, number of steps and noise level of the call with this `timestep`, which begins now."""
        scheduler, steps, sigma = self.scheduler, self.num_inference_steps, self.sigma
        # Pipelines set new timesteps at each call, a loop without scheduler a new timestep at each step.
        run: Any = self.step
        if scheduler is not None:
            run = scheduler.timesteps
        elif run is None:
            run = float(timestep.flatten()[0])
        before, ran = self._moment
        same_run = run is ran or (scheduler is None and run == ran)
        if self.step is not None:
            step = self.step
        elif scheduler is not None:
            step = scheduler.step_index  # None before the first step
            step = (scheduler.begin_index or 0) if step is None else step
        elif ran is not None and run > ran:
            step = 0  # noise only falls within a loop
        else:
            step = before + (not same_run)
        self.loop_begins = step < before or (scheduler is not None and not same_run)
        if not (same_run and step == before):
            self._moment, self.calls_in_step = (step, run), 0
        self.calls_in_step += 1
        if steps is None and scheduler is not None:
            steps = len(scheduler.timesteps)
        if sigma is None:
            sigma = timestep.flatten()[0] if scheduler is None else scheduler.sigmas[step]
        return step, steps, sigma
