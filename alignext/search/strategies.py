# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Who survives: at each scored node a strategy turns rewards `[P, n]` into `parents [P, n]`, the slot that each slot
of the next population descends from. `P` prompts, `n = B * K` slots, slot = beam * K + candidate."""

import torch

from alignext.search.config import SearchConfig


def beam_parents(rewards: torch.Tensor, num_beams: int, cap: int | None = None) -> torch.Tensor:
    """
    The B best of all n candidates, pooled, best first, each in K slots. Ties keep the lower index; one beam may take
    all places.

    Args:
        rewards (`torch.Tensor` of shape `(P, n)`): Larger is better.
        num_beams (`int`): B, which divides n.
        cap (`int`, *optional*): No beam of the last population keeps more than so many of its K candidates.

    Returns:
        `torch.Tensor` of shape `(P, n)`, int64.
    """
    n = rewards.shape[1]
    candidates = n // num_beams
    order = rewards.sort(dim=1, descending=True, stable=True).indices
    if cap is not None:
        beams = order // candidates
        # How many better candidates of the same beam there are: those with `cap` or more of them go to the end.
        better = (beams[:, :, None] == beams[:, None, :]).tril(-1).sum(2)
        order = order.gather(1, (better >= cap).to(torch.int8).sort(dim=1, stable=True).indices)
    return order[:, :num_beams].repeat_interleave(candidates, dim=1)


def local_parents(rewards: torch.Tensor, num_beams: int) -> torch.Tensor:
    """
    The best of each beam's own K candidates, in K slots: no competition between beams (SVDD, arXiv 2408.08252).
    Arguments and result as in [`beam_parents`].
    """
    groups = rewards.unflatten(1, (num_beams, -1))
    candidates = groups.shape[2]
    best = groups.sort(dim=2, descending=True, stable=True).indices[:, :, 0]
    best = best + torch.arange(num_beams, device=rewards.device) * candidates
    return best.repeat_interleave(candidates, dim=1)


def systematic_resample(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """
    Systematic resampling, `searchsorted(cumsum W, (u + k) / n, right)`: slot i gets floor or ceil of `n W_i` copies.

    Args:
        weights (`torch.Tensor` of shape `(P, n)`): `W`, rows sum to 1.
        u (`torch.Tensor` of shape `(P,)`): Uniform in [0, 1).

    Returns:
        `torch.Tensor` of shape `(P, n)`, int64, ascending: the parents.
    """
    n = weights.shape[1]
    points = (u.to(weights)[:, None] + torch.arange(n, device=weights.device)) / n
    parents = torch.searchsorted(weights.cumsum(1), points.contiguous(), right=True)
    # The sum of the weights may fall short of 1 by rounding: the last slot that has weight takes what is beyond.
    last = n - 1 - (weights.flip(1) > 0).to(torch.int8).argmax(1, keepdim=True)
    return torch.minimum(parents, last)


class SMC:
    r"""
    Feynman-Kac steering (arXiv 2501.06848): n particles with log-weights `G`, aimed at `p(x) exp(lambda r(x))`. With
    the reward `R` of a node, `R_prev` (0 at first) that of the ancestor:

        diff  G += lambda (R - R_prev)
        max   R := max(R, R_prev);  G += lambda R
        add   R := R + R_prev;      G += lambda R
        rt                          G += lambda R

    At the last node, all but `diff` add `lambda r(x0) - L` instead, `L` the sum of what was added before, so that the
    product is `exp(lambda r(x0))`. When `1 / sum W^2 < tau n`, parents are drawn by [`systematic_resample`], `G := 0`,
    and `R_prev` and `L` follow the parents; otherwise every particle keeps its weight. A particle with reward `-inf`
    has weight 0 until it is resampled (with `max`: it counts with `R_prev`).

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
        previous = self._previous.to(R).expand_as(R)
        if not last and self.potential == "max":
            R = torch.maximum(R, previous)
        elif not last and self.potential == "add":
            R = R + previous
        base = previous if self.potential == "diff" else self._total.to(R) / (self.scale or 1) if last else 0
        gain = self.scale * (R - base) if self.scale else torch.zeros_like(R)
        G = self.log_weights.to(R) + gain
        # A dead particle keeps the last finite sums: its weight is 0 already, and inf - inf would be NaN.
        previous = torch.where(R.isfinite(), R, previous)
        total = self._total.to(R) + torch.where(gain.isfinite(), gain, torch.zeros_like(gain))

        W = torch.where(G.isfinite().any(1, keepdim=True), G, torch.zeros_like(G)).softmax(1)
        # Equal weights have a size of n but for rounding: they are never resampled.
        resample = (1 / W.square().sum(1) < self.threshold * R.shape[1] * (1 - 1e-9))[:, None]
        keep = torch.arange(R.shape[1], device=R.device).expand_as(G)
        parents = torch.where(resample, systematic_resample(W, u), keep)
        # The last population stays as it is, with its weights; the parents then only say what resampling would give.
        self.log_weights = G if last else torch.where(resample, torch.zeros_like(G), G)
        self._previous, self._total = previous.gather(1, parents), total.gather(1, parents)
        return parents


def select(config: SearchConfig, rewards: torch.Tensor) -> torch.Tensor:
    """Parents by the settings' strategy, for all strategies without a state of their own (all but SMC)."""
    num_beams, _ = config.shape
    if config.strategy == "local":
        return local_parents(rewards, num_beams)
    return beam_parents(rewards, num_beams, config.max_children_per_beam)
