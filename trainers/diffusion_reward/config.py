# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings that trainers on rewards have in common: how pictures are drawn, and what rewards count for."""

import math
from dataclasses import dataclass, field

from alignext.training.diffusion_arguments import DiffusionTrainingArguments


@dataclass
class RewardConfig(DiffusionTrainingArguments):
    r"""
    What [`AlignPropTrainer`] and [`DDPOTrainer`] have in common.

    Fields of [`~transformers.TrainingArguments`] are taken as well, but those that are about texts or classes. Other
    defaults than there have `learning_rate`, `lr_scheduler_type` (`"constant_with_warmup"`), `max_steps` (100),
    `per_device_train_batch_size` (4), `weight_decay` (1e-4), `activation_checkpointing` (on), `remove_unused_columns`
    (off), `label_names` (none), `ddp_find_unused_parameters` and `dispatch_batches` (off).

    Args:
        num_inference_steps (`int`, *optional*):
            Steps of the pipeline's call; 50 if not given, 28 of flows.
        guidance_scale (`float`, *optional*):
            Guidance of the call; the pipeline's if not given.
        negative_prompt (`str`, *optional*):
            One for all prompts.
        num_images_per_prompt (`int`, *optional*, defaults to `1`):
            Samples of each prompt of a batch.
        reward_weights (`list[float]`, *optional*):
            One for each reward; 1 each if not given.
        step_checkpointing (`bool`, *optional*, defaults to `True`):
            Keep of each step of sampling its input, and make the rest again in the backward pass. Memory then hardly
            grows with the number of steps that are trained.
        vae_decode_batch_size (`int`, *optional*, defaults to `1`):
            Samples that the VAE decodes at once.
    """

    max_steps: int = field(default=100, metadata={"help": "Updates of the weights."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Prompts per device."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay of AdamW."})
    num_inference_steps: int | None = field(
        default=None, metadata={"help": "Steps of the pipeline's call; 50 if not given, 28 of flows."}
    )
    guidance_scale: float | None = field(
        default=None, metadata={"help": "Guidance of the call; the pipeline's if not given."}
    )
    negative_prompt: str | None = field(default=None, metadata={"help": "One for all prompts."})
    num_images_per_prompt: int = field(default=1, metadata={"help": "Samples of each prompt of a batch."})
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One for each reward; 1 each if not given."}
    )
    step_checkpointing: bool = field(
        default=True,
        metadata={"help": "Keep of each step of sampling its input, and make the rest again in the backward pass."},
    )
    vae_decode_batch_size: int = field(default=1, metadata={"help": "Samples that the VAE decodes at once."})

    def __post_init__(self):
        super().__post_init__()
        if self.accelerator_config.dispatch_batches:
            raise ValueError("`dispatch_batches` cannot send texts from process to process. Leave it off.")
        self.accelerator_config.dispatch_batches = False  # unset, it is on for streams
        for name in ("num_inference_steps", "num_images_per_prompt", "vae_decode_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, received {value}.")
        for name in ("guidance_scale", "eta", "kl_coef"):
            value = getattr(self, name, None)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"`{name}` must be 0 or more, received {value}.")
