# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`InversionDPOTrainer` and `SmPOTrainer`: the noise of each picture is that of its own inversion."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from diffusers import DiffusionPipeline
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.digests import weights_digest
from alignext.diffusion.inversions import InversionCache, inversion_identity
from alignext.diffusion.levels import inversion_levels
from alignext.diffusion.prompts import encode_unconditional
from alignext.functional.diffusion_preference import (
    PreferenceErrors,
    implicit_rewards,
    inversion_errors,
    label_factor,
    preference_probability,
    two_pass_backward,
)
from alignext.functional.inversion import InversionPoints, Levels, inversion_points, invert
from alignext.functional.predictions import Denoiser, guide
from alignext.methods import method

from .config import InversionDPOConfig, SmPOConfig
from .core import DiffusionPreferenceTrainer, Draws, PairBatch
from .data import prepare_pairs


logger = logging.get_logger(__name__)


class _InversionTrainer(DiffusionPreferenceTrainer):
    """Errors at points of the inversion of each picture, made as training goes or beforehand."""

    _cache: InversionCache | None = None
    _unconditional: dict[str, torch.Tensor] | None = None

    def _check(self, pipe: DiffusionPipeline, args: Any, ref_model: Any) -> None:
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

    def _make_levels(self, size: tuple[int, int]) -> Levels:
        return inversion_levels(self.pipe, self.args.num_inversion_steps, size)

    def _guided(self, denoiser: Denoiser, batch: PairBatch) -> Denoiser:
        if self.args.guidance_scale == 1:
            return denoiser
        if self._unconditional is None:
            if self._text_encoders():
                found = encode_unconditional(self.pipe, 1, self.args.max_sequence_length)
            elif self.pipe.config.get("force_zeros_for_empty_prompt", False):
                found = {name: torch.zeros_like(value[:1]) for name, value in batch.conditioning.items()}
            else:
                raise ValueError(
                    "`guidance_scale` needs text encoders for the empty prompt, and there are none. Set it to 1."
                )
            self._unconditional = {name: value.to(self.accelerator.device) for name, value in found.items()}
        return guide(denoiser, self._unconditional, self.args.guidance_scale)

    def _invert(self, denoiser: Denoiser, batch: PairBatch, k: torch.Tensor) -> InversionPoints:
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

    def _points(self, model: torch.nn.Module, batch: PairBatch) -> InversionPoints:
        """The points a batch is trained at, the same of both pictures of a pair."""
        if self._cache is not None:
            return self._kept_points(self._cache, batch)
        N, count = self.args.num_inversion_steps, self.args.num_train_steps_per_pair
        k = 1 + batch.draws.points("time", N if count is None else count, N)
        inverter = self.reference(model) if self.args.inversion_model == "ref" else self.without_grad(model)
        return self._invert(inverter, batch, k.repeat(1, 2).to(batch.x0.device))

    # Inversions computed beforehand

    @property
    def _precomputes(self) -> bool:
        return self.args.precompute_latents or self.args.precompute_inversion

    def _precompute(self, dataset: Any) -> Any:
        dataset = super()._precompute(dataset)
        if not self.args.precompute_inversion:
            return dataset
        cache = self._cache or self._open_cache()
        reference = self.reference(self.model)
        mine = dataset.select(range(self.args.process_index, len(dataset), self.args.world_size))
        loader = DataLoader(mine, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.data_collator)
        for inputs in tqdm(loader, desc="Inverting pictures", disable=self.args.disable_tqdm):
            batch = self.get_batch(inputs, training=False)
            keys = self._keys(cache, batch)
            if all(key in cache for key in keys):
                continue
            # Drawn by the pair, as the key is made, and not by its row: both pictures have the same points and noise,
            # wherever else one of them, or the pair, is.
            pairs = zip(keys, keys[len(keys) // 2 :], strict=False)
            batch.draws = Draws(self.args.seed, "kept", torch.tensor([int(min(pair)[:8], 16) for pair in pairs]))
            k = 1 + batch.draws.points("time", self.args.num_cached_points, self.args.num_inversion_steps)
            points = self._invert(reference, batch, k.sort(0).values.repeat(1, 2).to(batch.x0.device))
            names = ("x",) if self.args.target == "recovered" else ("source", "prediction", "x")
            for row, key in enumerate(keys):
                tensors = {name: getattr(points, name).unflatten(0, points.k.shape)[:, row] for name in names}
                cache.save(key, {"k": points.k[:, row], **tensors})
        self.accelerator.wait_for_everyone()
        self._cache = cache
        return dataset

    def _release(self) -> None:
        super()._release()
        if self.args.precompute_inversion:
            for encoder in self._text_encoders():
                encoder.to("cpu")
            if self.args.target == "reference":
                self.ref_denoiser = None

    def _open_cache(self) -> InversionCache:
        denoiser = self.denoiser if self.ref_denoiser is None else self.ref_denoiser.denoiser
        names = ("num_inversion_steps", "guidance_scale", "embedded_guidance", "num_renoise_steps", "inversion_eta")
        names += ("num_cached_points", "target", "seed", "max_sequence_length")
        settings = {name: getattr(self.args, name) for name in names}
        settings["precision"] = self.accelerator.mixed_precision
        settings["text_encoders"] = [weights_digest(encoder) for encoder in self._text_encoders()]
        folder = self.args.inversion_cache or Path(self.args.output_dir, "inversions")
        return InversionCache(folder, inversion_identity(denoiser, self.pipe.scheduler, **settings))

    def _captions(self, prompts: list[str | list[str]], draws: Draws, training: bool) -> list[str]:
        # A picture that was inverted beforehand was so with one of its captions.
        return super()._captions(prompts, draws, training and not self.args.precompute_inversion)

    @staticmethod
    def _keys(cache: InversionCache, batch: PairBatch) -> list[str]:
        """Of each picture beside the other one of its pair, as the points that are kept are those of the pair."""
        beside = torch.stack([batch.x0, batch.x0.roll(len(batch.x0) // 2, 0)], dim=1)
        return [cache.key(prompt, both) for prompt, both in zip(batch.prompts * 2, beside, strict=True)]

    def _kept_points(self, cache: InversionCache, batch: PairBatch) -> InversionPoints:
        kept = cache.load(self._keys(cache, batch), batch.x0.device)
        count = self.args.num_train_steps_per_pair or self.args.num_cached_points
        chosen = batch.draws.points("time", count, self.args.num_cached_points).repeat(1, 2).to(batch.x0.device)
        rows = torch.arange(len(batch.x0), device=batch.x0.device)
        found = {name: value[rows, chosen] for name, value in kept.items()}  # (K, 2B, ...)
        x = found["x"].flatten(0, 1)
        source, prediction = (found[n].flatten(0, 1) if n in found else x for n in ("source", "prediction"))
        return InversionPoints(found["k"], source, prediction, x)

    # Loss

    def _errors_at(self, model: Any, batch: PairBatch, points: InversionPoints) -> PreferenceErrors:
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
        )

    def errors(self, model: torch.nn.Module, batch: PairBatch) -> PreferenceErrors:
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


class InversionDPOTrainer(_InversionTrainer):
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

    def rewards(self, delta: torch.Tensor, batch: PairBatch) -> torch.Tensor:
        return implicit_rewards(delta, self.args.beta, batch.factor, self.args.reverse_sign)


class SmPOTrainer(_InversionTrainer):
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
        dataset = prepare_pairs(dataset, name=name)
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
