# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Samples of a policy that several updates train on, also over the end of a run."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alignext.files import replacing


@dataclass
class Trajectory:
    """
    The samples of a micro-batch with all that an update needs of them.

    Attributes:
        prompts (`list[str]`): A text for each of n samples.
        states (`torch.Tensor` of shape `(T + 1, n, ...)`): Latents before the first step to after the last, float32.
        log_probs (`torch.Tensor` of shape `(T, n)`): Of the steps, by the policy that took them; 0 where a step is
            deterministic.
        advantages (`torch.Tensor` of shape `(n,)`): Of the samples.
        schedule (`dict`): What the scheduler was told.
        dtype (`torch.dtype`): Of the latents in the loop.
    """

    prompts: list[str]
    states: torch.Tensor
    log_probs: torch.Tensor
    advantages: torch.Tensor
    schedule: dict[str, Any]
    dtype: torch.dtype


class Kept:
    """The trajectories that the updates of now are for, by the rows of their micro-batch."""

    def __init__(self) -> None:
        self.update: int | None = None
        self.of_rows: dict[tuple[int, ...], Trajectory] = {}

    def at(self, update: int) -> dict[tuple[int, ...], Trajectory]:
        """Those of an update; those of another one go."""
        if self.update != update:
            self.update, self.of_rows = update, {}
        return self.of_rows

    def save(self, file: Path) -> None:
        """Into a checkpoint."""
        held = {rows: asdict(trajectory) for rows, trajectory in self.of_rows.items()}
        with replacing(file) as part:
            torch.save({"update": self.update, "of_rows": held}, part)

    def load(self, file: Path, device: torch.device) -> None:
        """From a checkpoint; where it has none, the samples are drawn anew."""
        if file.is_file():
            held = torch.load(file, map_location=device, weights_only=True)
            self.update = held["update"]
            self.of_rows = {rows: Trajectory(**values) for rows, values in held["of_rows"].items()}
