# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Samples of all processes, and what f-DPG makes of them."""

from dataclasses import dataclass

import torch


@dataclass
class Samples:
    """Samples of all processes: `n` of them, on the CPU, float64. Only `completions` are those of this process."""

    log_q: torch.Tensor  # (n,) under the proposal that sampled
    log_ref: torch.Tensor  # (n,) under the initial model
    log_pi: torch.Tensor  # (n,) under the policy
    rewards: torch.Tensor  # (n, number of reward functions); NaN where a function gave None
    keys: list[str]  # of the contexts
    known_log_z: torch.Tensor | None  # (n,) with `z_estimator="fixed"`
    completions: list  # texts or messages

    def contexts(self) -> dict[str, torch.Tensor]:
        """The rows of each context."""
        rows: dict[str, list[int]] = {}
        for i, key in enumerate(self.keys):
            rows.setdefault(key, []).append(i)
        return {key: torch.tensor(of_key) for key, of_key in rows.items()}


@dataclass
class Estimates:
    """Estimates from samples: float64 of shape `(n,)` each."""

    score: torch.Tensor  # log P - log a; NaN without a score
    log_p: torch.Tensor  # log P
    log_z: torch.Tensor  # the one that a sample is scored with
    full_log_z: torch.Tensor  # the one with all samples in it, for metrics; NaN where nothing else is known
    baseline: torch.Tensor
    pseudo_rewards: torch.Tensor
    advantages: torch.Tensor

    @property
    def scored(self) -> torch.Tensor:
        return ~self.log_p.isnan()
