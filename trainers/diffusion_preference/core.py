# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The core of `DiffusionDPOTrainer`, `InversionDPOTrainer` and `SmPOTrainer`: margins of pairs and their metrics."""

from typing import Any

import torch

from alignext.functional.diffusion_preference import (
    PreferenceErrors,
    implicit_rewards,
    preference_loss,
    preference_margin,
)

from .columns import VOTES, column_names
from .config import DiffusionDPOConfig
from .pictures import PictureBatch, PictureTrainer


def check_soft_labels(dataset: Any, args: Any, name: str) -> Any:
    """The dataset as it is. Raises `ValueError` if `soft_labels` is set and nothing in it is soft."""
    columns = column_names(dataset)
    if args.soft_labels and not ({"preference_prob"} <= set(columns) or set(VOTES) <= set(columns)):
        raise ValueError(
            f"`soft_labels` is True, but `{name}` has neither `votes_chosen` and `votes_rejected` nor "
            f"`preference_prob`: found {', '.join(sorted(columns))}. Add them, or leave `soft_labels` at False."
        )
    return dataset


class DiffusionPreferenceTrainer(PictureTrainer):
    """What the three trainers of pairs have in common: margins and their metrics. A subclass defines [`errors`]."""

    _config: Any = DiffusionDPOConfig

    def _prepared(self, dataset: Any, args: Any, name: str) -> Any:
        return check_soft_labels(super()._prepared(dataset, args, name), args, name)

    def factor(self, inputs: dict[str, Any]) -> torch.Tensor | float:
        """What margins are multiplied by: 1, or (B,)."""
        return 1.0

    def errors(self, model: torch.nn.Module, batch: PictureBatch) -> PreferenceErrors:
        """How well the policy `model` and the reference do on a batch."""
        raise NotImplementedError

    def rewards(self, delta: torch.Tensor, batch: PictureBatch) -> torch.Tensor:
        """Implicit rewards (2B,)."""
        return implicit_rewards(delta, self.args.beta, self.factor(batch.inputs))

    def losses(self, delta: torch.Tensor, batch: PictureBatch) -> torch.Tensor:
        """The loss of each pair; their mean is minimised."""
        probability = batch.inputs.get("preference_prob") if self.args.soft_labels else None
        return preference_loss(preference_margin(self.rewards(delta, batch)), probability)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        losses = []
        for part in inputs.get("parts", [inputs]):
            batch = self.get_batch(part)
            errors = self.errors(model, batch)
            losses.append(self.losses(errors.delta, batch))
            self._note_errors(errors, batch)
        loss = torch.cat(losses).mean()
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def _note_errors(self, errors: PreferenceErrors, batch: PictureBatch) -> None:
        rewards = self.rewards(errors.delta, batch)
        chosen, rejected = rewards.chunk(2)
        margins = preference_margin(rewards)
        metrics = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": margins,
            "rewards/accuracies": (margins.sign() + 1) / 2,
            "mse/policy": errors.policy.view(2, -1).mean(0),
            "mse/ref": errors.reference.view(2, -1).mean(0),
        }
        if not self.model.training:
            # Trainer's own is wrong where the last batch of several processes is filled up.
            metrics["loss"] = self.losses(errors.delta, batch)
        self.note(metrics)
