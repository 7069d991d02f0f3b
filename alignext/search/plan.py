# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The schedule of a search: the levels of a stock scheduler, and the evaluations at them, in order."""

import inspect
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffusers import CogVideoXDDIMScheduler, DDIMScheduler

from alignext.diffusion.schedulers import rebuild_scheduler
from alignext.search.config import SearchConfig


_FLOW = ("FlowMatchEulerDiscreteScheduler", "LTXEulerAncestralRFScheduler")
_DISTILLED = ("LCMScheduler", "TCDScheduler")


class Level(NamedTuple):
    """A timestep of the model and its levels, `z = alpha x0 + sigma eps`."""

    timestep: float
    alpha: float
    sigma: float


class Point(NamedTuple):
    """A model evaluation: its node, timestep, levels, and whether it only looks ahead."""

    node: int
    timestep: float
    alpha: float
    sigma: float
    is_lookahead: bool


@dataclass
class Node:
    """A step of the schedule: the evaluation of its samples, then those that look ahead from there."""

    points: list[Point]
    scored: bool


class Levels:
    """
    What a search reads from a stock scheduler: which timesteps there are, and how much noise they have.

    Args:
        scheduler (scheduler): See [`level_source`]. It is not changed.

    Attributes:
        source (scheduler): The fresh scheduler that is read.
        is_flow (`bool`): Flow model, `alpha = 1 - sigma`; otherwise variance-preserving.
        inverted (`bool`): A flow model whose time runs the other way, as Mochi's.
        prediction (`str`): What the model predicts.
        is_distilled (`bool`): Whether the scheduler is one for consistency-distilled models.
    """

    def __init__(self, scheduler: Any) -> None:
        self.source = level_source(scheduler)
        self.config = self.source.config
        self.is_flow = not hasattr(self.source, "alphas_cumprod") or bool(self.config.get("use_flow_sigmas"))
        self.inverted = self.is_flow and bool(self.config.get("invert_sigmas"))
        self.prediction = "flow_prediction" if self.is_flow else self.config.get("prediction_type", "epsilon")
        self.is_distilled = type(self.source).__name__ in _DISTILLED

    def nodes(self, num_inference_steps: int | None, device: Any, **given: Any) -> list[Level]:
        """
        The levels of a schedule, noisiest first.

        Args:
            num_inference_steps (`int`, *optional*): Their number.
            device (`torch.device`, *optional*): As stock schedulers take it.
            given: `sigmas`, `timesteps` or `mu`, as stock schedulers take them; None counts as not given.

        Raises:
            ValueError: If the scheduler does not take one of them, or its schedule starts where a model that predicts
                noise says nothing.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if given.keys() == {"timesteps"} and not self.is_flow:
            levels = [self.at(int(t)) for t in given["timesteps"]]
        else:
            accepted = inspect.signature(self.source.set_timesteps).parameters
            if missing := ", ".join(sorted(given.keys() - accepted.keys())):
                raise ValueError(f"{type(self.source).__name__}.set_timesteps takes no `{missing}`. Leave it out.")
            self.source.set_timesteps(num_inference_steps, device=device, **given)
            steps = self.source.timesteps.tolist()
            if self.is_flow:
                sigmas = self.source.sigmas.double().tolist()[: len(steps)]
                levels = [self._flow(t, sigma) for t, sigma in zip(steps, sigmas, strict=True)]
            else:
                levels = [self.at(int(t)) for t in steps]
        if not self.is_flow and levels[0].alpha == 0 and self.prediction == "epsilon":
            raise ValueError("A model that predicts epsilon says nothing at zero SNR; its schedule starts there.")
        return levels

    def at(self, t: int) -> Level:
        """The level of a timestep of a variance-preserving model."""
        abar = float(self.source.alphas_cumprod[t])
        return Level(t, math.sqrt(abar), math.sqrt(1 - abar))

    def _flow(self, t: float, sigma: float) -> Level:
        return Level(t, sigma, 1 - sigma) if self.inverted else Level(t, 1 - sigma, sigma)

    def ahead(self, level: Level, steps: int) -> list[Level]:
        """
        The points that look ahead from a level, itself first: at `j / T'` of the way to the noisy end, `j = T'..1`.

        Args:
            level ([`Level`]): Where the sample is.
            steps (`int`): `T'`. For variance-preserving models timesteps are `floor(t j / T')`, some perhaps equal.
        """
        if not self.is_flow:
            return [self.at(int(level.timestep) * j // steps) for j in range(steps, 0, -1)]
        points = [level]
        for j in range(steps - 1, 0, -1):
            s = level.sigma * j / steps
            t = self.config.num_train_timesteps * (1 - s) if self.inverted else level.timestep * j / steps
            points.append(Level(t, 1 - s, s))
        return points


def make_plan(levels: Levels, nodes: list[Level], search: SearchConfig) -> list[Node]:
    """
    Which nodes are scored, and the evaluations at each.

    Args:
        levels ([`Levels`]): For the points in between.
        nodes (`list[Level]`): The schedule.
        search ([`SearchConfig`]): The settings.
    """
    T, (lo, hi) = len(nodes), search.search_range
    smc, prunes = search.strategy == "smc", search.shape[1] > 1
    plan = []
    for i, level in enumerate(nodes):
        scored = i % search.score_every == 0 and lo <= i / T < hi and (i > 0 or search.init_selection)
        # SMC weighs the last node by the final sample itself.
        scored = (scored and (prunes or smc)) or (smc and i == T - 1)
        steps = search.lookahead_steps if scored and not (smc and i == T - 1) and T > 1 else 1
        grid = dict.fromkeys(levels.ahead(level, steps))  # a repeated point would be evaluated for nothing
        plan.append(Node([Point(i, *p, is_lookahead=j > 0) for j, p in enumerate(grid)], scored))
    return plan


def level_source(scheduler: Any) -> Any:
    """
    A fresh scheduler of the same levels that the search can read: flow schedulers (`FlowMatchEulerDiscreteScheduler`,
    `LTXEulerAncestralRFScheduler`, or any with `use_flow_sigmas=True`, such as UniPC), `CogVideoXDDIMScheduler`, LCM
    and TCD as they are, and `DDIMScheduler` for all others that convert to it.

    Raises:
        ValueError: For any other scheduler.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    compatible = getattr(scheduler, "_compatibles", [])
    if name in (*_FLOW, *_DISTILLED) or config.get("use_flow_sigmas"):
        return rebuild_scheduler(scheduler)
    if name in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):
        # CogVideoX's stock step reads `clip_sample`, which is on by default, and clips nothing.
        return rebuild_scheduler(scheduler, CogVideoXDDIMScheduler, clip_sample=False)
    if name == "DDIMScheduler" or "DDIMScheduler" in compatible:
        # Schedulers without `clip_sample` do not clip; DDIM's default does.
        return rebuild_scheduler(scheduler, DDIMScheduler, clip_sample=bool(config.get("clip_sample", False)))
    raise ValueError(
        f"The search cannot read the levels of {name}. Use DDIMScheduler or a scheduler that converts to it, "
        f"CogVideoXDDIMScheduler, {', '.join((*_FLOW, *_DISTILLED))}, or one with `use_flow_sigmas=True`."
    )
