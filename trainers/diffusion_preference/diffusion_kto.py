# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`DiffusionKTOTrainer`: single pictures with a thumb up or down, in place of pairs."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from alignext.functional.diffusion_kto import UTILITIES, utility_loss
from alignext.functional.diffusion_preference import PreferenceErrors, implicit_rewards, preference_errors
from alignext.functional.predictions import add_noise, prediction_target
from alignext.methods import method
from alignext.training.reward_shift import RewardShift

from .collators import VoteCollator
from .config import PictureConfig
from .data import prepare_votes
from .pictures import PictureBatch, PictureTrainer


@dataclass
class DiffusionKTOConfig(PictureConfig):
    r"""
    Configuration class for the [`DiffusionKTOTrainer`].

    All fields of [`DiffusionDPOConfig`] but `soft_labels` hold here, too. `beta` is twice that of the release.

    Args:
        utility (`str`, *optional*, defaults to `"kahneman-tversky"`):
            What a gain is worth: `"kahneman-tversky"` (the paper's choice), `"loss-averse"` (the loss of BCO) or
            `"risk-seeking"`.
        reward_shift (`str`, *optional*, defaults to `"divergence"`):
            What a gain is counted from, always taken from the updates before: `"divergence"` is the paper's reference
            point, the mean reward if that is positive, else 0; `"ema"` BCO's shift, halfway between the means of
            thumbs up and down; `"none"` 0.
        reward_shift_decay (`float`, *optional*, defaults to `0.99`):
            Factor of the past per update.
        desirable_weight (`float`, *optional*, defaults to `1.0`):
            Of thumbs up. Where one class is much larger, weights can make up for it.
        undesirable_weight (`float`, *optional*, defaults to `1.0`):
            Of thumbs down.
    """

    utility: str = field(
        default="kahneman-tversky", metadata={"help": "What a gain is worth.", "choices": list(UTILITIES)}
    )
    reward_shift: str = field(
        default="divergence",
        metadata={
            "help": "What a gain is counted from: the paper's `divergence`, BCO's `ema` of class means, or `none`.",
            "choices": ["divergence", "ema", "none"],
        },
    )
    reward_shift_decay: float = field(default=0.99, metadata={"help": "Factor of the past per update."})
    desirable_weight: float = field(default=1.0, metadata={"help": "Weight of thumbs up."})
    undesirable_weight: float = field(default=1.0, metadata={"help": "Weight of thumbs down."})

    def __post_init__(self):
        super().__post_init__()
        if self.utility not in UTILITIES:
            raise ValueError(f"`utility` must be one of {', '.join(UTILITIES)}, received {self.utility!r}.")
        if self.reward_shift not in ("divergence", "ema", "none"):
            raise ValueError(f"`reward_shift` must be 'divergence', 'ema' or 'none', received {self.reward_shift!r}.")
        if not 0 <= self.reward_shift_decay <= 1:
            raise ValueError(f"`reward_shift_decay` must be in [0, 1], received {self.reward_shift_decay}.")
        for name in ("desirable_weight", "undesirable_weight"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"`{name}` must be positive, received {value}.")


class DiffusionKTOTrainer(PictureTrainer):
    """
    Trainer for Diffusion-KTO: as [`DiffusionDPOTrainer`], but from single pictures that were liked or not, in place of
    pairs. The policy learns to denoise what was liked better than the initial model does, and the rest worse, up to
    where gains are not worth more.

    Example:

    ```python
    >>> from peft import LoraConfig
    >>> from alignext import DiffusionKTOTrainer

    >>> trainer = DiffusionKTOTrainer(
    ...     "stable-diffusion-v1-5/stable-diffusion-v1-5", train_dataset=dataset, peft_config=LoraConfig(r=16)
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `DiffusionPipeline`):
            As for [`DiffusionDPOTrainer`].
        args ([`DiffusionKTOConfig`], *optional*):
            The configuration. If not given: the defaults.
        train_dataset (`Dataset` or `IterableDataset`):
            Columns `prompt`, `image`, `label`; or pairs, which are taken apart.
        **kwargs:
            All other arguments of [`DiffusionDPOTrainer`].
    """

    _config = DiffusionKTOConfig
    _collator = VoteCollator
    _sides = 1
    _tag_names = ["trl", "alignext", "diffusion-kto"]
    _name = "Diffusion-KTO"
    _paper = method("Diffusion-KTO").paper

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(RewardShift())

    def _prepared(self, dataset: Any, args: Any, name: str) -> Any:
        return prepare_votes(dataset, name=name)

    @property
    def reward_shift(self) -> RewardShift:
        """The shift's state, also after resuming."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, RewardShift))

    def errors(self, model: torch.nn.Module, batch: PictureBatch) -> PreferenceErrors:
        """How well the policy `model` and the reference do on a batch."""
        levels = self.levels(batch.x0)
        k = self.drawn_steps(batch.draws, levels)[0].to(batch.x0.device)
        noise = batch.draws.normal("noise", tuple(batch.x0.shape[1:]), batch.x0.device)
        a, s = levels.a[k], levels.s[k]
        target = prediction_target(batch.x0, noise, a, s, self.prediction_type)
        x, t = add_noise(batch.x0, noise, a, s), levels.timesteps[k - 1]
        return preference_errors(model, self.reference(model), x, t, target, batch.conditioning, mask=batch.mask)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        parts = [self.get_batch(part) for part in inputs.get("parts", [inputs])]
        errors = [self.errors(model, batch) for batch in parts]
        rewards = implicit_rewards(torch.cat([e.delta for e in errors]), self.args.beta)
        labels = torch.cat([batch.inputs["labels"] for batch in parts]).to(rewards.device)
        shift = self.reward_shift
        z = shift.step(rewards, labels, self.args, self.accelerator) if self.model.training else shift.value(self.args)
        losses = utility_loss(
            rewards,
            labels,
            z,
            utility=self.args.utility,
            desirable_weight=self.args.desirable_weight,
            undesirable_weight=self.args.undesirable_weight,
        )
        known = rewards.detach()
        gains = torch.where(labels, known - z, z - known)
        metrics = {
            "rewards/accuracies": (gains.sign() + 1) / 2,
            "rewards/shift": torch.full_like(known, z),
            "mse/policy": torch.cat([e.policy for e in errors]),
            "mse/ref": torch.cat([e.reference for e in errors]),
        }
        mode = "train" if self.model.training else "eval"
        for name, rows in (("rewards/chosen", labels), ("rewards/rejected", ~labels)):
            self.sums.add(mode, name, known, rows.float())
        self.note(metrics if self.model.training else metrics | {"loss": losses})
        return (losses.mean(), {}) if return_outputs else losses.mean()
