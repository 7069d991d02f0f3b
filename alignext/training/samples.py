# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pictures of the model in training, as files and in the trackers."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.prompts import TEXT_ENCODERS, KeptPrompts
from alignext.diffusion.recording import call_parameters, capture_call
from alignext.diffusion.sheets import contact_sheet
from alignext.files import replacing
from alignext.wrapping import evaluating


class SampleGridCallback(TrainerCallback):
    """
    Draws the same prompts from the same noise before training, at every evaluation (at every save, where there is
    none) and at the end. The sheets go to `samples/` in the output folder and to TensorBoard and W&B, where they are
    on. Draws no global random numbers, so that training does not notice.

    Args:
        trainer ([`DiffusionPreferenceTrainer`]): Whose pipeline, trackers and mixed precision are used.
        prompts (`Sequence[str]`): What to draw. They are encoded now; the text encoders may go afterwards.
        num_inference_steps (`int`, *optional*, defaults to 25): Denoising steps.
        guidance_scale (`float`, *optional*): The pipeline's default if not given.
        seed (`int`, *optional*, defaults to 0): Of the noise of the first prompt; each next one has the next seed.

    Example:

    ```python
    >>> trainer.add_callback(SampleGridCallback(trainer, ["a red fox", "a rocket"]))
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        prompts: Sequence[str],
        num_inference_steps: int = 25,
        guidance_scale: float | None = None,
        seed: int = 0,
    ) -> None:
        if trainer.is_fsdp_enabled:
            raise NotImplementedError(
                "SampleGridCallback draws in one process, and FSDP shares the weights over all of them. Leave it out."
            )
        self.trainer, self.prompts, self.seed = trainer, list(prompts), seed
        self.pipe: DiffusionPipeline = trainer.pipe
        side = trainer.args.resolution
        known = call_parameters(self.pipe)
        given = {"num_inference_steps": num_inference_steps, "height": side, "width": side}
        given |= {"guidance_scale": guidance_scale, "num_frames": getattr(trainer.args, "num_frames", None)}
        self.arguments = {k: v for k, v in given.items() if k in known and v is not None}
        self.encode = KeptPrompts(self.pipe)
        twin = copy.copy(self.pipe)
        twin.encode_prompt = self.encode
        capture_call(twin, guidance=True, prompt=self.prompts, **self.arguments, generator=self._generators())
        self._last_step = -1

    def _generators(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(self.seed + i) for i in range(len(self.prompts))]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._show(args, state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._show(args, state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if args.eval_strategy == "no":
            self._show(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._show(args, state)

    def _show(self, args: TrainingArguments, state: TrainerState) -> None:
        if not state.is_world_process_zero or state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        images = self.draw()
        folder = Path(args.output_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        sheet = contact_sheet([images], col_labels=self.prompts, cell=min(256, max(images[0].size)))
        with replacing(folder / f"step-{state.global_step:06d}.png") as part:
            sheet.save(part, format="PNG")
        for tracker in self.trainer.callback_handler.callbacks:
            name = type(tracker).__name__
            if name == "TensorBoardCallback" and tracker.tb_writer is not None:
                pixels = np.stack([np.asarray(image) for image in images])
                tracker.tb_writer.add_images("samples", pixels, state.global_step, dataformats="NHWC")
            elif name == "WandbCallback":
                shown = [tracker._wandb.Image(i, caption=p) for i, p in zip(images, self.prompts, strict=True)]
                tracker._wandb.log({"samples": shown, "train/global_step": state.global_step})

    @torch.no_grad()
    def draw(self) -> list[PIL.Image.Image]:
        """One picture of each prompt; of a video the one in the middle."""
        pipe = self.pipe
        denoiser = get_denoiser(pipe)
        # A pipeline of its own around the same weights: sampling sets timesteps on the scheduler, and takes the device
        # of the first component for that of all.
        parts: dict[str, Any] = pipe.components | {"scheduler": copy.deepcopy(pipe.scheduler)}
        for name in (*TEXT_ENCODERS, "safety_checker", "image_encoder"):
            if name in parts:
                parts[name] = None
        flags = ("requires_safety_checker", "force_zeros_for_empty_prompt", "is_distilled")
        parts |= {name: pipe.config[name] for name in flags if name in pipe.config}
        if "requires_safety_checker" in parts:
            parts["requires_safety_checker"] = False
        sampler = type(pipe)(**parts)
        sampler.set_progress_bar_config(disable=True)
        sampler.encode_prompt = self.encode
        vae_device = pipe.vae.device
        try:
            pipe.vae.to(denoiser.device)
            with evaluating(denoiser), self.trainer.accelerator.autocast():
                drawn = sampler(self.prompts, **self.arguments, generator=self._generators())[0]
            return [video[len(video) // 2] if isinstance(video, list) else video for video in drawn]
        finally:
            pipe.vae.to(vae_device)
