# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards and diversity of a model's pictures, measured at once."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from alignext.checks import check_counts
from alignext.evaluation.diversity import DiversityEvaluator, by_prompt
from alignext.files import replacing
from alignext.rewards.protocol import CheckedReward


class Watch:
    """
    One measurement of a model: rewards and diversity of the same prompts and seeds.

    Args:
        prompts (`Sequence[str]`): Different ones.
        reward (`Callable`): The reward that is trained.
        evaluator ([`DiversityEvaluator`]): Of diversity.
        held_out (`Mapping[str, Callable]`): Further rewards, that are not trained.
        num_images (`int`): Pictures of each prompt.
        seed (`int`): Of the first picture of a prompt.

    Raises:
        ValueError: A prompt is there twice, or there are fewer than two pictures.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        reward: Callable[..., Any],
        evaluator: DiversityEvaluator,
        held_out: Mapping[str, Callable[..., Any]] | None,
        num_images: int,
        seed: int,
    ) -> None:
        check_counts(2, num_images=num_images)  # one picture has no diversity
        by_prompt(torch.empty(len(prompts)), prompts)
        self.prompts, self.num_images, self.evaluator = list(prompts), num_images, evaluator
        self.rewards = {name: CheckedReward.of(f) for name, f in {"reward": reward, **(held_out or {})}.items()}
        self.texts = [prompt for prompt in prompts for _ in range(num_images)]
        self.seeds = [seed + j for _ in prompts for j in range(num_images)]

    @torch.no_grad()
    def __call__(self, sample: Callable[..., torch.Tensor]) -> dict[str, float]:
        """The numbers of a model, by `sample(prompts, seeds)`."""
        images = sample(self.texts, self.seeds)
        found = {name: reward(images, self.texts).float().mean().item() for name, reward in self.rewards.items()}
        report = self.evaluator(by_prompt(images, self.prompts))
        return found | {name: value for name, value in report.values.items() if "/" not in name}


def plot(path: str | os.PathLike, rows: Sequence[dict[str, float]], metric: str, label: str) -> None:
    """Diversity against reward, a point per row with its `label` beside it."""
    from matplotlib.figure import Figure  # not at the top: most trainings draw none

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel="reward", ylabel=f"diversity ({metric})")
    points = [(row["reward"], row[metric]) for row in rows]
    axes.plot(*zip(*points, strict=True), "-o", markersize=4)
    for row, point in zip(rows, points, strict=True):
        axes.annotate(f"{row[label]:g}", point, xytext=(3, 4), textcoords="offset points")
    with replacing(path) as part:
        figure.savefig(part, format=os.path.splitext(path)[1].lstrip(".") or "png")
