# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Reward against diversity while a model trains on a reward."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignext.checks import check_counts
from alignext.evaluation.diversity import DiversityEvaluator
from alignext.evaluation.reward_watch import Watch, plot
from alignext.logs import log_beside, pipeline_logger


logger = pipeline_logger(__name__)
PREFIX = "hacking/"


class RewardHackingCallback(TrainerCallback):
    """
    Watches a training on a reward for the loss of diversity. Before training, every so many steps and at the end it
    draws the same prompts from the same seeds, logs reward, held-out rewards and diversity as `hacking/...`, and warns
    once when diversity has fallen by a given share. Draws no global random numbers, so that training does not notice.

    Args:
        trainer (`Trainer`): With `sample(prompts, seeds)`, as [`AlignPropTrainer`] and [`DDPOTrainer`] have it.
        prompts (`Sequence[str]`): What to draw; different ones.
        reward (`Callable`): The reward that is trained.
        evaluator ([`DiversityEvaluator`], *optional*): One of tones and duplicates by default.
        held_out (`Mapping[str, Callable]`, *optional*): Rewards that are not trained, by name.
        every (`int`, *optional*, defaults to 50): Steps between two measurements.
        num_images (`int`, *optional*, defaults to 4): Of each prompt, two or more.
        warn_share (`float`, *optional*, defaults to 0.2): Share of the first diversity whose loss is warned of.
        metric (`str`, *optional*): Which diversity that is; the evaluator's first by default.
        seed (`int`, *optional*, defaults to 0): Of the first picture of a prompt; the next has the next.

    Raises:
        ValueError: `every`, `num_images`, `warn_share` or `metric` is out of range, or the trainer cannot sample.

    Attributes:
        curves (`list[dict[str, float]]`): The measurements so far, each with its `step`.

    Example:

    ```python
    >>> trainer.add_callback(RewardHackingCallback(trainer, prompts, reward, DiversityEvaluator(reward.encode_image)))
    ```
    """

    def __init__(
        self,
        trainer: Any,
        prompts: Sequence[str],
        reward: Callable[..., Any],
        evaluator: DiversityEvaluator | None = None,
        *,
        held_out: Mapping[str, Callable[..., Any]] | None = None,
        every: int = 50,
        num_images: int = 4,
        warn_share: float = 0.2,
        metric: str | None = None,
        seed: int = 0,
    ) -> None:
        evaluator = DiversityEvaluator() if evaluator is None else evaluator
        self.metric = evaluator.metrics[0] if metric is None else metric
        check_counts(every=every)
        if not 0 < warn_share <= 1:
            raise ValueError(f"`warn_share` must be in (0, 1], received {warn_share}.")
        if self.metric not in evaluator.metrics or self.metric == "duplicates":
            raise ValueError(
                f"`metric` must be a diversity of the evaluator, {', '.join(evaluator.metrics)} but duplicates, "
                f"received {self.metric!r}."
            )
        if not hasattr(trainer, "sample"):
            raise ValueError(f"`trainer` must have `sample(prompts, seeds)`, received {type(trainer).__name__}.")
        self.trainer, self.every, self.warn_share = trainer, every, warn_share
        self.watch = Watch(prompts, reward, evaluator, held_out, num_images, seed)
        self.curves: list[dict[str, float]] = []
        self._warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # A training that goes on has its earlier measurements in its log.
        self.curves = [
            {"step": row["step"]} | {k.removeprefix(PREFIX): v for k, v in row.items() if k.startswith(PREFIX)}
            for row in state.log_history
            if any(name.startswith(PREFIX) for name in row)
        ]
        self._look(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step % self.every == 0:
            self._look(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._look(state, control)

    def _look(self, state: TrainerState, control: TrainerControl) -> None:
        if any(row["step"] == state.global_step for row in self.curves):
            return
        # Every process draws: a sharded model needs all of them. Only the first one's log is kept.
        found = self.watch(self.trainer.sample)
        self.curves.append({"step": state.global_step, **found})
        log_beside(self.trainer, control, {PREFIX + name: value for name, value in found.items()})
        before, now = self.curves[0][self.metric], found[self.metric]
        if not self._warned and now < (1 - self.warn_share) * before:
            self._warned = True
            logger.warning(
                f"Step {state.global_step}: the diversity ({self.metric}) of {len(self.watch.prompts)} prompts has "
                f"fallen from {before:.4g} to {now:.4g}, by {1 - now / before:.0%}, while the reward went from "
                f"{self.curves[0]['reward']:.4g} to {found['reward']:.4g}. Stop earlier, lower the weight of the LoRA "
                "(`reward_vs_scale` shows what that costs), or train with `kl_coef` or a `DirectionalReward`."
            )

    def plot(self, path: str | os.PathLike) -> None:
        """
        Draw diversity against reward, a point per measurement with its step beside it.

        Args:
            path (`str` or `Path`): A picture file, in a format of matplotlib.
        """
        plot(path, self.curves, self.metric, "step")
