# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The settings that all trainers of preferences have, and those of `DiffusionDPOTrainer`."""

import math
from dataclasses import dataclass, field

from alignext.training.diffusion_arguments import DiffusionTrainingArguments


@dataclass
class PictureConfig(DiffusionTrainingArguments):
    r"""
    What the trainers of pairs and of votes have in common.

    Fields of [`~transformers.TrainingArguments`] are taken as well, but those that are about texts or classes. Other
    defaults than there have `learning_rate`, `lr_scheduler_type` (`"constant_with_warmup"`),
    `activation_checkpointing` (on), `remove_unused_columns` (off), `label_names` (none),
    `ddp_find_unused_parameters` and `dispatch_batches` (off).

    Args:
        learning_rate (`float`, *optional*, defaults to `1e-5`):
            For a LoRA, or for full training with about 1,000 pairs per update. It scales with the number of pairs.
        beta (`float`, *optional*, defaults to `2000.0`):
            Strength of the tie to the reference: 2,000 for Stable Diffusion 1.5, 5,000 for XL. Errors are means over
            pixels, hence the size.
        resolution (`int`, *optional*):
            Side of the pictures in pixels; if not given, that of the pipeline.
        prompt_dropout (`float`, *optional*, defaults to `0.2`):
            Share of pairs that are trained with the empty prompt.
        random_flip (`bool`, *optional*, defaults to `False`):
            Mirror half of the pairs, both pictures alike. Not with latents computed beforehand.
        buckets (`bool`, *optional*, defaults to `False`):
            Keep about the shape of each pair's pictures, with about as many pixels as the square of `resolution`. Not
            with latents computed beforehand.
        precompute_latents (`bool`, *optional*, defaults to `False`):
            Encode all pictures once, before training, and take the VAE off the device.
        precompute_prompts (`bool`, *optional*, defaults to `False`):
            Encode all prompts, and pictures that are edited, once before training, keep them in memory and take the
            text encoders off the device. With `precompute_latents` the denoiser alone stays there.
        vae_batch_size (`int`, *optional*, defaults to `8`):
            Pictures that the VAE encodes at once.
        max_sequence_length (`int`, *optional*):
            Tokens for the T5 encoder of SD3 and Flux; if not given, the pipeline's.
        embedded_guidance (`float`, *optional*):
            The guidance that a distilled denoiser (Flux dev, FLUX.2 dev) is told; if not given, the pipeline's.
        save_full_pipeline (`bool`, *optional*, defaults to `False`):
            After full training, save the whole pipeline and not the denoiser alone; checkpoints stay small.
    """

    beta: float = field(
        default=2000.0, metadata={"help": "Strength of the tie to the reference: 2000 for SD 1.5, 5000 for SDXL."}
    )
    prompt_dropout: float = field(
        default=0.2, metadata={"help": "Share of pairs that are trained with the empty prompt."}
    )
    random_flip: bool = field(default=False, metadata={"help": "Mirror half of the pairs, both pictures alike."})
    buckets: bool = field(default=False, metadata={"help": "Keep about the shape of each pair's pictures."})
    precompute_latents: bool = field(
        default=False, metadata={"help": "Encode all pictures once, before training; the VAE then leaves the device."}
    )
    precompute_prompts: bool = field(
        default=False, metadata={"help": "Encode all prompts once; the text encoders then leave the device."}
    )
    vae_batch_size: int = field(default=8, metadata={"help": "Pictures that the VAE encodes at once."})

    def __post_init__(self):
        super().__post_init__()
        if self.accelerator_config.dispatch_batches:
            raise ValueError("`dispatch_batches` would cut batches in two, winners from losers. Leave it off.")
        self.accelerator_config.dispatch_batches = False  # unset, it is on for streams
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise ValueError(f"`beta` is {self.beta}, but it must be positive; 2000 suits Stable Diffusion 1.5.")
        if not 0 <= self.prompt_dropout <= 1:
            raise ValueError(f"`prompt_dropout` is {self.prompt_dropout}, but it is a share in [0, 1].")
        if self.vae_batch_size < 1:
            raise ValueError(f"`vae_batch_size` is {self.vae_batch_size}, but it must be at least 1.")
        for name in ("precompute_latents", "precompute_prompts"):
            if self.buckets and getattr(self, name):
                raise ValueError(f"`buckets` and `{name}` are both set, but what is kept has one size.")
        if self.random_flip and self.precompute_latents:
            raise ValueError(
                "`random_flip` and `precompute_latents` are both set, but a flipped picture has other latents."
            )


@dataclass
class DiffusionDPOConfig(PictureConfig):
    r"""
    Configuration class for the [`DiffusionDPOTrainer`].

    All fields of [`~alignext.trainers.diffusion_preference.config.PictureConfig`] hold here, too.

    Args:
        soft_labels (`bool`, *optional*, defaults to `False`):
            Take `votes_chosen` and `votes_rejected`, or `preference_prob`, for shares of those who prefer each
            picture: the loss is the mean over all votes. Otherwise the one with more of them wins for sure.
    """

    soft_labels: bool = field(
        default=False, metadata={"help": "Take votes of a pair, or `preference_prob`, for shares and not a winner."}
    )
