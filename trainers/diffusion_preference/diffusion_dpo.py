# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`DiffusionDPOTrainer`: the same random noise for both pictures of a pair."""

import torch

from alignext.functional.diffusion_preference import PreferenceErrors, diffusion_dpo_errors
from alignext.methods import method

from .core import DiffusionPreferenceTrainer
from .pictures import PictureBatch


class DiffusionDPOTrainer(DiffusionPreferenceTrainer):
    """
    Trainer for Diffusion-DPO: fine-tunes the denoiser of a text-to-image pipeline, by a LoRA or as a whole, on pairs
    of pictures of which one is preferred. Both pictures of a pair are noised alike; the policy learns to denoise the
    winner better, relative to the loser and to the initial model, than before.

    Example:

    ```python
    >>> from peft import LoraConfig
    >>> from alignext import DiffusionDPOTrainer

    >>> trainer = DiffusionDPOTrainer(
    ...     "stable-diffusion-v1-5/stable-diffusion-v1-5", train_dataset=dataset, peft_config=LoraConfig(r=16)
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or `DiffusionPipeline`):
            A text-to-image, editing or text-to-video pipeline of diffusers, or where to load one from. Its denoiser is
            trained in place.
        ref_model (`DiffusionPipeline` or `torch.nn.Module`, *optional*):
            The reference, a pipeline or a denoiser. If not given: the initial model, which costs no memory with a
            `peft_config`.
        args ([`DiffusionDPOConfig`], *optional*):
            The configuration. If not given: the defaults.
        data_collator (`DataCollator`, *optional*):
            Makes batches as `PairCollator`, which is the default.
        train_dataset (`Dataset` or `IterableDataset`):
            Columns `prompt`, `image_chosen`, `image_rejected`, or those of Pick-a-Pic.
        eval_dataset (`Dataset` or `IterableDataset` or `dict`, *optional*):
            The same. Noise and timesteps are the same at every evaluation.
        callbacks (`list[TrainerCallback]`, *optional*):
            As for [`~transformers.Trainer`].
        optimizers (`tuple`, *optional*):
            As for [`~transformers.Trainer`].
        peft_config (`LoraConfig`, *optional*):
            Train this LoRA beside the pipeline's frozen adapters. If not given: train all weights of the denoiser.
            `target_modules` of `None` are the attention projections.
        **kwargs:
            All other arguments of [`~transformers.Trainer`], but `compute_metrics` and `compute_loss_func`.
    """

    _tag_names = ["trl", "alignext", "diffusion-dpo"]
    _name = "Diffusion-DPO"
    _paper = method("Diffusion-DPO").paper

    def errors(self, model: torch.nn.Module, batch: PictureBatch) -> PreferenceErrors:
        levels = self.levels(batch.x0)
        k = self.drawn_steps(batch.draws, levels)[0].to(batch.x0.device)
        noise = batch.draws.normal("noise", tuple(batch.x0.shape[1:]), batch.x0.device)
        return diffusion_dpo_errors(
            model,
            self.reference(model),
            batch.x0,
            noise,
            levels.timesteps[k - 1],
            levels.a[k],
            levels.s[k],
            batch.conditioning,
            prediction_type=self.prediction_type,
            mask=batch.mask,
        )
