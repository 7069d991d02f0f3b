# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What `InversionDPOTrainer` and `SmPOTrainer` have in common: each picture's noise is that of its inversion."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from diffusers import DiffusionPipeline
from transformers.utils import logging

from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.levels import Schedules, inversion_levels
from alignext.diffusion.sizes import size_of_latents
from alignext.functional.diffusion_preference import (
    PreferenceErrors,
    inversion_errors,
    two_pass_backward,
)
from alignext.functional.inversion import InversionPoints, Levels, inversion_points, invert
from alignext.functional.predictions import Denoiser, guide

from .kept_inversions import KeptInversions
from .pictures import PictureBatch


logger = logging.get_logger(__name__)


class InversionTrainer(KeptInversions):
    """Errors at points of the inversion of each picture, made as training goes or beforehand."""

    _same_calls = False  # an inversion goes as far as the deepest point that was drawn

    def _check(self, pipe: DiffusionPipeline, args: Any, ref_model: Any) -> None:
        if getattr(pipe, "transformer_2", None) is not None:
            raise NotImplementedError(
                f"{self._name} inverts with one denoiser, and {type(pipe).__name__} has two. Use Diffusion-DPO."
            )
        config, timesteps = get_denoiser(pipe).config, pipe.scheduler.config.num_train_timesteps
        if args.guidance_scale != 1 and config.get("guidance_embeds", False):
            raise ValueError(
                f"`guidance_scale` is {args.guidance_scale}, but the denoiser is distilled to guide itself. Set it to "
                "1; what the denoiser is told is `embedded_guidance`."
            )
        if args.num_inversion_steps > timesteps:
            raise ValueError(
                f"`num_inversion_steps` is {args.num_inversion_steps}, but there are {timesteps} timesteps."
            )
        if args.target == "reference" and not args.init_noise and ref_model is None:
            logger.warning(
                "`target='reference'` with `init_noise=0` trains nothing: its gradient is zero where the policy is "
                "the reference. Leave `init_noise` at its default, or choose another `target`."
            )

    # Inversion

    def _grids(self, args: Any) -> tuple[int, ...]:
        return (args.num_inversion_steps,)

    def _make_levels(self, schedules: Schedules | None) -> Levels:
        return inversion_levels(self.pipe, self.args.num_inversion_steps, schedules=schedules)

    def _guided(self, denoiser: Denoiser, batch: PictureBatch) -> Denoiser:
        if self.args.guidance_scale == 1:
            return denoiser
        size = size_of_latents(self.pipe, batch.x0.shape[1:])
        told = batch.conditioning["conditions"].tolist()
        nothing = self.conditions([self.conditions.unconditional(sample) for sample in batch.samples], size).tolist()
        of = dict(zip(told, nothing * 2, strict=True))

        def guided(x: torch.Tensor, t: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
            without = conditions.new_tensor([of[number] for number in conditions.tolist()])
            both = guide(denoiser, {"conditions": without}, self.args.guidance_scale)
            return both(x, t, conditions=conditions)

        return guided

    def _invert(self, denoiser: Denoiser, batch: PictureBatch, k: torch.Tensor) -> InversionPoints:
        """The points `k` (K, 2B) of the inversion of each picture."""

        def noise(step: int) -> torch.Tensor:  # both pictures alike, or the same picture twice would have a winner
            shared = batch.draws.normal(f"inversion {step}", tuple(batch.x0.shape[1:]), batch.x0.device)
            return torch.cat([shared, shared])

        steps = invert(
            self._guided(denoiser, batch),
            batch.x0,
            self.levels(batch.x0),
            batch.conditioning,
            prediction_type=self.prediction_type,
            num_renoise_steps=self.args.num_renoise_steps,
            last=k.amax(0),
            eta=self.args.inversion_eta,
            noise=noise,
        )
        return inversion_points(steps, k)

    def _points(self, model: torch.nn.Module, batch: PictureBatch) -> InversionPoints:
        """The points a batch is trained at, the same of both pictures of a pair."""
        if self._cache is not None:
            return self._kept_points(self._cache, batch)
        N, count = self.args.num_inversion_steps, self.args.num_train_steps_per_pair
        k = 1 + batch.draws.points("time", N if count is None else count, N)
        inverter = self.reference(model) if self.args.inversion_model == "ref" else self.without_grad(model)
        return self._invert(inverter, batch, k.repeat(1, 2).to(batch.x0.device))

    # Loss

    def _errors_at(self, model: Any, batch: PictureBatch, points: InversionPoints) -> PreferenceErrors:
        target = self.args.target
        policy, reference = model, None if target == "reference" else self.reference(model)
        if target != "recovered":  # what leads from point to point is a guided prediction
            policy = self._guided(policy, batch)
            reference = None if reference is None else self._guided(reference, batch)
        return inversion_errors(
            policy,
            reference,
            batch.x0,
            points,
            self.levels(batch.x0),
            batch.conditioning,
            target=target,
            prediction_type=self.prediction_type,
            mask=batch.mask,
        )

    def errors(self, model: torch.nn.Module, batch: PictureBatch) -> PreferenceErrors:
        points = self._points(model, batch)
        if self.args.num_train_steps_per_pair is not None:
            return self._errors_at(model, batch, points)
        return _mean([self._errors_at(model, batch, points[i]) for i in range(len(points.k))])

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        if self.args.num_train_steps_per_pair is not None:
            return super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise NotImplementedError("DeepSpeed takes one backward pass per step. Set `num_train_steps_per_pair`.")
        if "parts" in inputs:
            raise NotImplementedError("`buckets` need `num_train_steps_per_pair`: all steps are taken of one size.")
        model.train()
        batch = self.get_batch(self._prepare_inputs(inputs))
        points = self._points(model, batch)
        count, parts = len(points.k), self.current_gradient_accumulation_steps
        seen: list[PreferenceErrors] = []

        def delta(i: int) -> torch.Tensor:
            errors = self._errors_at(model, batch, points[i])
            if not torch.is_grad_enabled():
                seen.append(errors)
            return errors.delta / count

        def context(last: bool) -> AbstractContextManager:  # processes add up their gradients once
            return nullcontext() if last else self.accelerator.no_sync(model)

        loss = two_pass_backward(
            delta,
            count,
            lambda total: self.losses(total, batch).mean() / parts,
            self.accelerator.backward,
            context,
        )
        self._note_errors(_mean(seen), batch)
        return loss


def _mean(errors: list[PreferenceErrors]) -> PreferenceErrors:
    names = ("policy", "reference", "delta")
    return PreferenceErrors(*(torch.stack([getattr(e, name) for e in errors]).mean(0) for name in names))
