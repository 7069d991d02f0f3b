# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Who survives, by the settings' strategy: from rewards `[P, n]` to `parents [P, n]`. The equations are in
[`alignext.functional.latent_search`]."""

import torch

from alignext.functional.latent_search import (
    beam_parents,
    effective_sample_size,
    local_parents,
    smc_gain,
    smc_weights,
    systematic_resample,
)
from alignext.search.config import SearchConfig


def select(config: SearchConfig, rewards: torch.Tensor) -> torch.Tensor:
    """Parents by the settings' strategy, for all strategies without a state of their own (all but SMC)."""
    num_beams, _ = config.shape
    if config.strategy == "local":
        return local_parents(rewards, num_beams)
    return beam_parents(rewards, num_beams, config.max_children_per_beam)


class SMC:
    r"""
    Feynman-Kac steering (arXiv 2501.06848): n particles with log-weights `G`, which grow at every scored node, see
    [`~alignext.functional.latent_search.smc_gain`]. When `1 / sum W^2 < tau n`, parents are drawn by
    [`~alignext.functional.latent_search.systematic_resample`], `G := 0`, and what is remembered of rewards follows the
    parents; otherwise every particle keeps its weight. A particle with reward `-inf` has weight 0 until it is
    resampled (with `max`: it counts with the reward handed on).

    Args:
        scale (`float`): `lambda`, the weight of the reward.
        potential (`str`): `"diff"`, `"max"`, `"add"` or `"rt"`.
        threshold (`float`): `tau` in [0, 1].

    Attributes:
        log_weights (`torch.Tensor` of shape `(P, n)`): `G`.
    """

    def __init__(self, scale: float, potential: str, threshold: float) -> None:
        self.scale, self.potential, self.threshold = scale, potential, threshold
        self.log_weights = self._previous = self._total = torch.zeros(())

    def select(self, rewards: torch.Tensor, u: torch.Tensor, last: bool = False) -> torch.Tensor:
        """
        Args:
            rewards (`torch.Tensor` of shape `(P, n)`): `R`, finite or `-inf`; at the last node `r(x0)`.
            u (`torch.Tensor` of shape `(P,)`): Uniform in [0, 1), used if there is resampling.
            last (`bool`, *optional*, defaults to `False`): Whether this is the last node.

        Returns:
            `torch.Tensor` of shape `(P, n)`, int64: the parents, `0..n-1` where nothing is resampled.
        """
        R = rewards.double()
        previous, total = (x.to(R).expand_as(R) for x in (self._previous, self._total))
        gain, R = smc_gain(self.potential, R, previous, total, self.scale, last)
        G = self.log_weights.to(R) + gain
        # A dead particle keeps the last finite sums: its weight is 0 already, and inf - inf would be NaN.
        previous = torch.where(R.isfinite(), R, previous)
        total = total + torch.where(gain.isfinite(), gain, torch.zeros_like(gain))

        # Equal weights have a size of n but for rounding: they are never resampled.
        resample = (effective_sample_size(G) < self.threshold * R.shape[1] * (1 - 1e-9))[:, None]
        keep = torch.arange(R.shape[1], device=R.device).expand_as(G)
        parents = torch.where(resample, systematic_resample(smc_weights(G), u), keep)
        # The last population stays as it is, with its weights; the parents then only say what resampling would give.
        self.log_weights = G if last else torch.where(resample, torch.zeros_like(G), G)
        self._previous, self._total = previous.gather(1, parents), total.gather(1, parents)
        return parents
