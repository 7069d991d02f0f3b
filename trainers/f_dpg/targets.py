# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The targets of f-DPG: `s = log P - log a` from what the reward functions gave, and the fit of `lambda`."""

import math
from collections.abc import Sequence

import torch

from alignext.functional.moment_matching import fit_lambda
from alignext.functional.target_estimates import effective_sample_size
from alignext.training.logs import get_logger

from .config import FDPGConfig
from .samples import Samples


logger = get_logger(__name__)


class Target:
    """
    The target that a configuration asks for.

    Args:
        args ([`FDPGConfig`]): Its `target`, and what belongs to it.
        names (`Sequence[str]`): Of the reward functions, for messages.
        weights (`torch.Tensor` of shape `(K,)`): Of the rewards, for `"exponential"`.
    """

    def __init__(self, args: FDPGConfig, names: Sequence[str], weights: torch.Tensor) -> None:
        self.args, self.names, self.weights = args, names, weights
        moments = args.target_moments or []
        # Functions of a distributional target with a moment, and those that are constraints.
        self.soft = [k for k, value in enumerate(moments) if value is not None]
        self.hard = [k for k, value in enumerate(moments) if value is None]
        self.moments = [moments[k] for k in self.soft]

    @property
    def fitted(self) -> list[str]:
        """The names of the functions with a moment."""
        return [self.names[k] for k in self.soft]

    def log_scores(self, rewards: torch.Tensor, coefficients: Sequence[float] | None) -> torch.Tensor:
        """`s` of shape `(n,)` from rewards of shape `(n, K)`, see `FDPGTrainer.log_scores`."""
        if self.args.target == "exponential":
            score = self._exponential(rewards)
        elif self.args.target == "binary":
            score = self._log_binary(rewards, range(rewards.size(1)))
        else:
            assert coefficients is not None, "the coefficients are fitted before anything is scored"
            score = rewards[:, self.soft] @ torch.tensor(coefficients, dtype=rewards.dtype)
            score = score + self._log_binary(rewards, self.hard)
            score = torch.where(rewards.isnan().any(1), math.nan, score)
        if (score == math.inf).any():
            row = rewards[score == math.inf][0]
            k = int(row.nan_to_num(0.0).abs().argmax())
            raise ValueError(
                f"A reward is infinite: {self.names[k]!r} returned {row[k].item()}. Return finite numbers."
            )
        return score

    def _exponential(self, rewards: torch.Tensor) -> torch.Tensor:
        total = (rewards * self.weights.to(rewards)).nansum(1)
        if self.args.reward_clip_range:
            total = total.clamp(*self.args.reward_clip_range)
        return torch.where(rewards.isnan().all(1), math.nan, total / self.args.beta)

    def _log_binary(self, rewards: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
        """The sum of `log b` over the given functions."""
        values = rewards[:, list(columns)]
        wrong = (values != 0) & (values != 1) & ~values.isnan()
        if wrong.any():
            row, k = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"The reward function {self.names[columns[k]]!r} returned {values[row, k].item()} for row {row}, but "
                "a binary constraint must be 0 or 1. Return whether it holds, or use `target='exponential'`."
            )
        if self.args.binary_floor is not None:
            values = values.clamp(min=self.args.binary_floor)
        if not values.size(1):
            return rewards.new_zeros(len(rewards))
        return torch.where(values.isnan().all(1), math.nan, values.log().nansum(1))

    def fit(self, samples: Samples) -> list[float]:
        """`lambda` that has the moments under samples of the initial model; says so if they are hard to reach."""
        if samples.rewards.isnan().any(1).all():
            k = int(samples.rewards.isnan().sum(0).argmax())
            raise ValueError(
                f"None of {len(samples.rewards)} samples of the initial model has all rewards, so `lambda` cannot be "
                f"fitted: {self.names[k]!r} gave None most often. Return a number for every sample."
            )
        log_w = samples.log_ref - samples.log_q + self._log_binary(samples.rewards, self.hard)
        log_w = torch.where(samples.rewards.isnan().any(1), -math.inf, log_w)
        contexts = list(samples.contexts().values())
        # One row a context, filled up with samples that weigh nothing.
        padded = log_w.new_full((len(contexts), max(map(len, contexts))), -math.inf)
        phi = log_w.new_zeros(*padded.shape, len(self.soft))
        for c, rows in enumerate(contexts):
            padded[c, : len(rows)] = log_w[rows]
            values = samples.rewards[rows][:, self.soft]
            phi[c, : len(rows)] = torch.where(values.isnan(), 0.0, values)
        coefficients = fit_lambda(padded, phi, self.moments, names=self.fitted)
        size = effective_sample_size(padded + phi @ coefficients).sum().item() / len(log_w)
        logger.info(
            "lambda of %s: %s (effective sample size %.1f %%).", self.fitted, coefficients.tolist(), 100 * size
        )
        reach = (coefficients.abs() * (phi.flatten(0, 1).amax(0) - phi.flatten(0, 1).amin(0))).max().item()
        if reach > 12:
            logger.warning(
                "The moments %s are almost out of reach together: a sample may weigh exp(%.0f) times as much as "
                "another. Raise `moment_samples`, or ask for less.",
                self.moments,
                reach,
            )
        if size < 0.05:
            logger.warning(
                "The target is far from the initial model: only %.1f %% of the samples that fit `lambda` count. Raise "
                "`moment_samples`, or ask for less.",
                100 * size,
            )
        return coefficients.tolist()
