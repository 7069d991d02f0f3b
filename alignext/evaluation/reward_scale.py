# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Reward against diversity over the weight of a LoRA, after a training on a reward."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from alignext.diffusion.denoiser import adapter_scaled
from alignext.diffusion.drawing import draw
from alignext.evaluation.diversity import DiversityEvaluator
from alignext.evaluation.reward_watch import Watch, plot


@dataclass(frozen=True)
class RewardVsScale:
    """
    What [`reward_vs_scale`] measured; `print` shows it as a table.

    Attributes:
        rows (`list[dict[str, float]]`): For each scale its `scale`, `reward`, held-out rewards and diversity.
        metric (`str`): The diversity that `best` and `plot` look at.
    """

    rows: list[dict[str, float]]
    metric: str

    def best(self, keep: float = 0.9) -> float:
        """
        The scale of the highest reward among those that keep a share of the diversity at the smallest scale.

        Args:
            keep (`float`, *optional*, defaults to 0.9): That share.
        """
        floor = keep * min(self.rows, key=lambda row: row["scale"])[self.metric]
        return max((row for row in self.rows if row[self.metric] >= floor), key=lambda row: row["reward"])["scale"]

    def plot(self, path: str | os.PathLike) -> None:
        """
        Draw diversity against reward, a point per scale.

        Args:
            path (`str` or `Path`): A picture file, in a format of matplotlib.
        """
        plot(path, self.rows, self.metric, "scale")

    def __str__(self) -> str:
        names = list(self.rows[0])
        lines = ["  ".join(f"{name:>10}" for name in names)]
        lines += ["  ".join(f"{row[name]:>10.4g}" for name in names) for row in self.rows]
        return "\n".join(lines)


def reward_vs_scale(
    trainer_or_pipeline: Any,
    prompts: Sequence[str],
    reward: Callable[..., Any],
    evaluator: DiversityEvaluator | None = None,
    *,
    scales: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    held_out: Mapping[str, Callable[..., Any]] | None = None,
    num_images: int = 4,
    metric: str | None = None,
    seed: int = 0,
    **call: Any,
) -> RewardVsScale:
    """
    Reward and diversity at several weights of a LoRA, from the same prompts and seeds: what a smaller weight costs in
    reward and wins in diversity. The weight is restored afterwards.

    Args:
        trainer_or_pipeline (`Trainer` or `DiffusionPipeline`): With a LoRA: a trainer with `sample(prompts, seeds,
            scale)`, or a pipeline, whose active adapters are scaled.
        prompts (`Sequence[str]`): What to draw; different ones.
        reward (`Callable`): The reward that was trained.
        evaluator ([`DiversityEvaluator`], *optional*): As of [`RewardHackingCallback`].
        scales (`Sequence[float]`, *optional*, defaults to `(0, 0.25, 0.5, 0.75, 1)`): Weights; 1 as it was trained.
        held_out (`Mapping[str, Callable]`, *optional*): Rewards that were not trained, by name.
        num_images (`int`, *optional*, defaults to 4): Of each prompt, two or more.
        metric (`str`, *optional*): The diversity that `best` looks at; the evaluator's first by default.
        seed (`int`, *optional*, defaults to 0): Of the first picture of a prompt; the next has the next.
        call: Further arguments of the pipeline's call; a trainer has its own.

    Returns:
        [`RewardVsScale`]

    Raises:
        ValueError: There is no scale, no LoRA, or `call` is given with a trainer.

    Example:

    ```python
    >>> found = reward_vs_scale(trainer, prompts, reward, DiversityEvaluator(reward.encode_image))
    >>> print(found)
    >>> trainer.pipeline.set_adapters("default", found.best(keep=0.9))
    ```
    """
    evaluator = DiversityEvaluator() if evaluator is None else evaluator
    if not scales:
        raise ValueError("`scales` must have a weight, received none.")
    is_trainer = hasattr(trainer_or_pipeline, "sample")
    if is_trainer and call:
        raise ValueError(f"`{next(iter(call))}` is for a pipeline; a trainer draws as its own settings say.")
    watch = Watch(prompts, reward, evaluator, held_out, num_images, seed)
    rows = []
    for scale in scales:
        if is_trainer:
            found = watch(lambda texts, seeds, scale=scale: trainer_or_pipeline.sample(texts, seeds, scale))
        else:
            with _scaled(trainer_or_pipeline, scale):
                found = watch(lambda texts, seeds: draw(trainer_or_pipeline, texts, seeds, **call))
        rows.append({"scale": float(scale), **found})
    return RewardVsScale(rows, evaluator.metrics[0] if metric is None else metric)


@contextmanager
def _scaled(pipe: Any, scale: float) -> Generator[None]:
    """The pipeline with its active adapters at another weight."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    names = [
        {name for layer in part.modules() if isinstance(layer, BaseTunerLayer) for name in layer.active_adapters}
        for part in modules
    ]
    if not any(names):
        raise ValueError(f"`trainer_or_pipeline` must have a LoRA, and this {type(pipe).__name__} has none active.")
    with ExitStack() as stack:
        for part, adapters in zip(modules, names, strict=True):
            for adapter in sorted(adapters):
                stack.enter_context(adapter_scaled(part, adapter, scale))
        yield
