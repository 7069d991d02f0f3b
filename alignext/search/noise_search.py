# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Outer search: over the initial noise of an unchanged sampler, which is run again for every try."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from alignext.checks import check_counts
from alignext.functional.latent_search import neighbor


@dataclass(frozen=True, kw_only=True)
class RandomNoiseSearch:
    """
    The best of growing pools of fresh noise: round r tries `2^r` of them (r = 1..rounds), the best of all rounds wins.

    Args:
        rounds (`int`, *optional*, defaults to 4): R.
    """

    rounds: int = 4

    def __post_init__(self) -> None:
        check_counts(rounds=self.rounds)

    def pool(self, i: int, best: torch.Tensor | None, improved: bool, draw: Callable[[int], torch.Tensor]):
        """The initial latents that round `i` tries."""
        return draw(2 ** (i + 1))


@dataclass(frozen=True, kw_only=True)
class ZeroOrderNoiseSearch:
    """
    Hill climbing from one noise: each round tries neighbours of the best one so far, see
    [`~alignext.functional.latent_search.neighbor`], and starts again from fresh noise when none improves.

    Args:
        rounds (`int`, *optional*, defaults to 4): R.
        neighbors (`int`, *optional*, defaults to 4): Tries per round.
        threshold (`float`, *optional*, defaults to 0.95): Cosine of a neighbour to its centre, in [0, 1).
    """

    rounds: int = 4
    neighbors: int = 4
    threshold: float = 0.95

    def __post_init__(self) -> None:
        check_counts(rounds=self.rounds, neighbors=self.neighbors)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"`threshold` must be in [0, 1), received {self.threshold!r}.")

    def pool(self, i: int, best: torch.Tensor | None, improved: bool, draw: Callable[[int], torch.Tensor]):
        """The initial latents that round `i` tries: one and its neighbours, or neighbours of the best."""
        fresh = best is None or not improved
        center = draw(1) if fresh else best[None]
        near = neighbor(center.expand(self.neighbors, *center.shape[1:]), draw(self.neighbors), self.threshold)
        return torch.cat([center, near]) if fresh else near


def search_noise(
    method: RandomNoiseSearch | ZeroOrderNoiseSearch,
    evaluate: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    shape: torch.Size | tuple[int, ...],
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor, list[dict]]:
    """
    Run an outer search.

    Args:
        method ([`RandomNoiseSearch`] or [`ZeroOrderNoiseSearch`]): What to try.
        evaluate (`Callable`): Initial latents `[k, ...]` to samples `[k, ...]` and their rewards `[k]`.
        shape (`tuple[int, ...]`): Shape of one initial latent.
        generator (`torch.Generator`, *optional*): For every draw.
        device (`torch.device`, *optional*): Where the latents live.

    Returns:
        `tuple`: The best sample, its reward, and the history: per round `round` and `rewards`.
    """

    def draw(count: int) -> torch.Tensor:
        return randn_tensor((count, *shape), generator, device or torch.device("cpu"), torch.float32)

    sample: Any = None
    reward: Any = None
    center = around = None
    improved, history = True, []
    for i in range(method.rounds):
        noise = method.pool(i, center, improved, draw)
        samples, rewards = evaluate(noise)
        history.append({"round": i, "rewards": rewards.cpu()})
        k = int(rewards.argmax())
        # Climbing is from the last centre; what is returned is the best of all.
        improved = around is None or not improved or bool(rewards[k] > around)
        if improved:
            center, around = noise[k], rewards[k]
        if reward is None or rewards[k] > reward:
            sample, reward = samples[k], rewards[k]
    return sample, reward, history
