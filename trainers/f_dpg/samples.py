# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Samples of all processes, and what f-DPG makes of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from alignext.functional.f_dpg import group_advantages
from alignext.functional.target_estimates import estimate_log_z

from .config import FDPGConfig
from .state import FDPGState


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


def estimate(
    samples: Samples,
    score: torch.Tensor,
    f_prime: Callable[[torch.Tensor], torch.Tensor],
    args: FDPGConfig,
    state: FDPGState,
) -> Estimates:
    """`Z`, baselines and advantages of samples with the scores `log P - log a`, context by context."""
    window = state.window
    baseline = (sum(window) / len(window) if window else 0.0) if args.baseline == "window" else args.baseline
    log_p = samples.log_ref + score
    found = torch.zeros(5, len(log_p), dtype=torch.float64)
    for key, rows in samples.contexts().items():
        log_sum, count = state.history(key) if args.z_estimator == "running" else (-math.inf, 0)
        known = None if samples.known_log_z is None else samples.known_log_z[rows]
        group = group_advantages(
            f_prime,
            samples.log_pi[rows],
            log_p[rows],
            samples.log_q[rows],
            log_z=known,
            log_sum=log_sum,
            count=count,
            baseline=baseline,
            reward_clip=args.pseudo_reward_clip,
        )
        log_w = log_p[rows] - samples.log_q[rows]
        full = estimate_log_z(log_w, log_sum=log_sum, count=count, leave_one_out=False)
        if known is not None:
            full = known
        elif count + (~log_w.isnan()).sum() < 2:  # nothing but the sample itself
            full = torch.full_like(log_w, math.nan)
        found[:, rows] = torch.stack([group.log_z, full, group.baseline, group.pseudo_rewards, group.advantages])
    return Estimates(score, log_p, *found)
