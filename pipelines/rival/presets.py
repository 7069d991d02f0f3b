# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL's tasks, as released, and the levers of one call."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from alignext.functional.rival import attention_mode
from alignext.logs import pipeline_logger


logger = pipeline_logger(__name__)


def _preset(guidance_scale: float, t_early: float, t_inject: float, reference_prompt: str | None, init: str) -> dict:
    return locals() | {"t_align": 600}


# The released configurations (50 steps). `reference_prompt` None: the generated row's own prompt.
PRESETS: dict[str, dict[str, Any]] = {
    "variation": _preset(5.0, 600, 1000, None, "shuffle"),
    "text2image": _preset(7.0, 600, 960, "", "shuffle"),
    "editing": _preset(7.0, 600, 900, "", "inverted"),
    "inpainting": _preset(7.0, 600, 1000, "", "shuffle"),
    "controlnet": _preset(7.0, 400, 1000, "", "shuffle"),
    "dreambooth": _preset(7.0, 600, 1000, "", "shuffle"),
}
INITS = ("shuffle", "gaussian", "inverted", "noise")


@dataclass(frozen=True)
class Levers:
    """The thresholds and strengths of one call, checked; see [`RIVALMixin.__call__`]."""

    t_align: float
    t_early: float
    t_inject: float
    adain_strength: float = 1.0
    reference_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, Real | torch.Tensor):
                raise ValueError(f"`{name}` must be a number, received {value!r}.")
        for name in ("t_align", "t_early", "t_inject"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"`{name}` must be finite (a timestep, 0..1000), received {getattr(self, name)}.")
        if not 0 <= self.adain_strength <= 1:
            raise ValueError(f"`adain_strength` must lie in [0, 1], received {self.adain_strength}.")
        if not (math.isfinite(self.reference_weight) and self.reference_weight >= 0):
            raise ValueError(f"`reference_weight` must be finite and not negative, received {self.reference_weight}.")
        if self.t_align > self.t_inject:
            logger.warning(
                f"`t_align` {self.t_align} is above `t_inject` {self.t_inject}: no step reads the reference's keys "
                "alone."
            )

    def mode(self, gate: float) -> str:
        """The kind of attention of a generated image at this gate value, see [`attention_mode`]."""
        return attention_mode(gate, self.t_align, self.t_inject)

    def aligns(self, t: int) -> bool:
        """True while the noise takes the reference's statistics."""
        return t > self.t_early and self.adain_strength > 0


def settle(task: str, init: str | None, strength: float, weight: float, **thresholds) -> tuple[dict[str, Any], Levers]:
    """The preset of a task, with `init` and the thresholds that are not None in their place, and its levers."""
    if task not in PRESETS:
        raise ValueError(f"`task` must be one of {list(PRESETS)}, received {task!r}.")
    given = {"init": init, **thresholds}
    preset = PRESETS[task] | {name: value for name, value in given.items() if value is not None}
    if preset["init"] not in INITS:
        raise ValueError(f"`init` must be one of {list(INITS)}, received {preset['init']!r}.")
    levels: dict[str, Any] = {name: preset[name] for name in ("t_align", "t_early", "t_inject")}
    return preset, Levers(**levels, adain_strength=strength, reference_weight=weight)
