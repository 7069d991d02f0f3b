# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The samples of a batch: prompts, columns and random numbers of each, and how far they are from each other."""

from dataclasses import dataclass
from typing import Any

import torch

from alignext.diffusion.draws import Draws


@dataclass
class RewardBatch:
    """
    Samples to draw, prompt after prompt.

    Attributes:
        prompts (`list[str]`): A text for each sample.
        columns (`dict[str, list]`): The other columns, for the rewards.
        rows (`tuple[int, ...]`): Numbers of the rows of the dataset.
        draws (`list[Draws]`): Random numbers of each sample of a prompt, for all prompts.
    """

    prompts: list[str]
    columns: dict[str, list[Any]]
    rows: tuple[int, ...]
    draws: list[Draws]

    @property
    def group(self) -> int:
        """Samples of a prompt."""
        return len(self.draws)

    def generators(self, what: str) -> list[torch.Generator]:
        """One for each sample."""
        drawn = [draws.generators(f"{what} {j}") for j, draws in enumerate(self.draws)]
        return [generator for of_prompt in zip(*drawn, strict=True) for generator in of_prompt]

    def normal(self, what: str, like: torch.Tensor) -> torch.Tensor:
        """Standard normal, float32, of the shape of `like`."""
        noise = [torch.randn(like.shape[1:], generator=generator) for generator in self.generators(what)]
        return torch.stack(noise).to(like.device)


def diversity(images: torch.Tensor, group: int) -> torch.Tensor:
    """The root mean square distance of each picture from the others of its prompt, in pixels, `(n,)`."""
    groups = images.detach().float().view(-1, group, images[0].numel())
    distances = torch.cdist(groups, groups) / groups.shape[-1] ** 0.5
    return (distances.sum(-1) / (group - 1)).flatten()
