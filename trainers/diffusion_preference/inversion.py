# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`InversionDPOTrainer` and `SmPOTrainer`: the noise of each picture is that of its own inversion."""

from typing import Any

import torch

from alignext.functional.diffusion_preference import implicit_rewards, label_factor, preference_probability
from alignext.methods import method

from .core import check_soft_labels
from .data import prepare_pairs
from .inversion_config import InversionDPOConfig, SmPOConfig
from .inversion_core import InversionTrainer
from .pictures import PictureBatch


class InversionDPOTrainer(InversionTrainer):
    """
    Trainer for Inversion-DPO: as [`DiffusionDPOTrainer`], but each picture is taken along the noise that the frozen
    model itself inverts it to, rather than along random noise. The policy learns to stay on the reference's trajectory
    of the winner, relative to that of the loser. All else is inherited.

    What the published objective (`target="reference"`, the default) does not do: its gradient is exactly zero where
    the policy is the reference, so that training starts from a small random displacement (`init_noise`), and it says
    that the policy should differ from the reference on losers, but not in which direction. A large margin hence says
    little about new pictures. `target="recovered"` with `inversion_model="policy"` is InPO, which has neither
    property.

    Example:

    ```python
    >>> from peft import LoraConfig
    >>> from alignext import InversionDPOTrainer

    >>> trainer = InversionDPOTrainer(
    ...     "stabilityai/stable-diffusion-xl-base-1.0", train_dataset=dataset, peft_config=LoraConfig(r=16)
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `DiffusionPipeline`):
            As for [`DiffusionDPOTrainer`].
        ref_model (`DiffusionPipeline` or `torch.nn.Module`, *optional*):
            The reference. If not given: the initial model.
        args ([`InversionDPOConfig`], *optional*):
            The configuration. If not given: the defaults.
        **kwargs:
            All other arguments of [`DiffusionDPOTrainer`].
    """

    _config = InversionDPOConfig
    _tag_names = ["trl", "alignext", "inversion-dpo"]
    _name = "Inversion-DPO"
    _paper = method("Inversion-DPO").paper

    def rewards(self, delta: torch.Tensor, batch: PictureBatch) -> torch.Tensor:
        return implicit_rewards(delta, self.args.beta, self.factor(batch.inputs), self.args.reverse_sign)


class SmPOTrainer(InversionTrainer):
    """
    Trainer for SmPO-Diffusion: as [`DiffusionDPOTrainer`], but the noise of a picture is the one that the current
    policy inverts it to, with a round of re-noising, and margins are scaled by how sure the preference is. InPO is the
    same without both, see [`SmPOConfig`]. All else is inherited.

    Example:

    ```python
    >>> from peft import LoraConfig
    >>> from alignext import SmPOTrainer

    >>> trainer = SmPOTrainer(
    ...     "stable-diffusion-v1-5/stable-diffusion-v1-5", train_dataset=dataset, peft_config=LoraConfig(r=16)
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `DiffusionPipeline`):
            As for [`DiffusionDPOTrainer`].
        ref_model (`DiffusionPipeline` or `torch.nn.Module`, *optional*):
            The reference. If not given: the initial model.
        args ([`SmPOConfig`], *optional*):
            The configuration. If not given: the defaults.
        **kwargs:
            All other arguments of [`DiffusionDPOTrainer`]. Datasets need columns `score_chosen` and `score_rejected`,
            or `preference_prob`, unless `label_sharpness` is `None`; the picture with the higher score is the winner.
    """

    _config = SmPOConfig
    _tag_names = ["trl", "alignext", "smpo"]
    _name = "SmPO"
    _paper = method("SmPO").paper

    def _prepared(self, dataset: Any, args: Any, name: str) -> Any:
        if args.label_sharpness is None:
            return super()._prepared(dataset, args, name)
        dataset = check_soft_labels(prepare_pairs(dataset, name=name), args, name)
        columns = set(next(iter(dataset)))
        if not ({"score_chosen", "score_rejected"} <= columns or "preference_prob" in columns):
            raise ValueError(
                f"The dataset has no scores: found {', '.join(sorted(columns))}, expected `score_chosen` and "
                "`score_rejected`, or `preference_prob`. `label_sharpness=None` does without (InPO)."
            )
        return dataset

    def factor(self, inputs: dict[str, Any]) -> torch.Tensor | float:
        if self.args.label_sharpness is None:
            return 1.0
        if "preference_prob" in inputs:
            probability = inputs["preference_prob"]
        else:
            chosen, rejected = inputs["scores"].unbind(1)
            probability = preference_probability(chosen, rejected, self.args.score_min, self.args.score_max)
        return label_factor(probability, self.args.label_sharpness)
