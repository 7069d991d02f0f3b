# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The core of `DiffusionDPOTrainer`, `InversionDPOTrainer` and `SmPOTrainer`: pairs, prompts, margins, metrics."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from diffusers import DiffusionPipeline
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import DataCollator, TrainerCallback

from alignext.diffusion.denoiser import DenoiserForward, denoiser_name, get_denoiser
from alignext.diffusion.draws import Draws
from alignext.diffusion.latents import encode_images
from alignext.functional.diffusion_preference import (
    PreferenceErrors,
    implicit_rewards,
    preference_loss,
    preference_margin,
)
from alignext.training.diffusion import DiffusionTrainer

from .config import DiffusionDPOConfig
from .data import COLUMNS, PairCollator, prepare_pairs
from .precompute import precompute_latents


@dataclass
class PairBatch:
    """
    A batch of pairs in front of the denoiser; winners first.

    Attributes:
        x0 (`torch.Tensor` of shape `(2B, C, h, w)`): Clean latents, float32.
        conditioning (`dict[str, torch.Tensor]`): Tensors of `2B` rows.
        prompts (`list`): Text, or embeddings, of each pair, as the keys of kept inversions have it.
        factor (`float` or `torch.Tensor` of shape `(B,)`): Of the margins.
        draws ([`Draws`]): Their random numbers.
    """

    x0: torch.Tensor
    conditioning: dict[str, torch.Tensor]
    prompts: list[Any]
    factor: torch.Tensor | float
    draws: Draws


class DiffusionPreferenceTrainer(DiffusionTrainer):
    """What the three trainers have in common: pairs, prompts, margins and their metrics. A subclass defines
    [`errors`]."""

    _config: Any = DiffusionDPOConfig

    def __init__(
        self,
        model: str | os.PathLike | DiffusionPipeline,
        ref_model: DiffusionPipeline | torch.nn.Module | None = None,
        args: Any = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: LoraConfig | None = None,
        denoiser_forward: DenoiserForward | None = None,
        **kwargs: Any,
    ) -> None:
        pipe, args = self._door(model, args)
        self._check(pipe, args, ref_model)
        scale = getattr(pipe, "vae_scale_factor", 8)
        denoiser = get_denoiser(pipe)
        if data_collator is None:
            resolution = (
                args.resolution or (getattr(pipe, "default_sample_size", None) or denoiser.config.sample_size) * scale
            )
            # Transformers read patches of 2 x 2 latents.
            multiple = scale * (2 if denoiser_name(pipe) == "transformer" else 1)
            data_collator = PairCollator(resolution, multiple)
        if train_dataset is not None:
            train_dataset = self._prepared(train_dataset, args, "train_dataset")
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {
                name: self._prepared(dataset, args, f"eval_dataset[{name!r}]")
                for name, dataset in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = self._prepared(eval_dataset, args, "eval_dataset")
        super().__init__(
            pipe,
            args,
            ref_model=ref_model,
            peft_config=peft_config,
            denoiser_forward=denoiser_forward,
            init_noise=getattr(args, "init_noise", 0.0),
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        self._place_encoders()
        if self._precomputes:
            self._map_datasets(self._precompute)
            self._release()

    @property
    def _precomputes(self) -> bool:
        return self.args.precompute_latents

    def _check(self, pipe: DiffusionPipeline, args: Any, ref_model: Any) -> None:
        """Raise `ValueError` where settings and pipeline do not go together."""

    # Data

    def _prepared(self, dataset: Any, args: Any, name: str) -> Any:
        return prepare_pairs(dataset, order_by_score=False, name=name)

    def _place_encoders(self) -> None:
        """Put the VAE and the text encoders on the device if they are needed, and say so if they are missing."""
        columns: set[str] = set()

        def note(dataset: Any) -> Any:
            first = next(iter(dataset), None)
            if first is None:
                raise ValueError("A dataset has no rows. Look at how it was filtered or read.")
            columns.update(first)
            return dataset

        self._map_datasets(note)
        encoders = self._text_encoders()
        if not encoders and self.args.prompt_dropout and "prompt_embeds" in columns:
            raise ValueError(
                "`prompt_dropout` needs text encoders for the empty prompt, and the pipeline has none. Set it to 0."
            )
        for encoder in encoders:
            encoder.to(self.accelerator.device)
        if "image_chosen" in columns:
            if getattr(self.pipe, "vae", None) is None:
                raise ValueError("The pipeline has no `vae` to encode pictures with. Load one, or give latents.")
            self.pipe.vae.to(self.accelerator.device)
        elif self.args.random_flip and columns:
            raise ValueError("`random_flip` needs pictures, and the dataset has latents. Set it to False.")

    def _release(self) -> None:
        """Take off the device what training does not need any more."""
        if getattr(self.pipe, "vae", None) is not None:
            self.pipe.vae.to("cpu")

    def _precompute(self, dataset: Any) -> Any:
        """The dataset with its pictures encoded, where they are to be."""
        if isinstance(dataset, IterableDataset):
            raise ValueError("What is computed before training needs a `Dataset`, and a stream was given.")
        if "image_chosen" not in dataset.column_names:
            return dataset
        with self.args.main_process_first(desc="encoding pictures"):
            return precompute_latents(self.pipe, dataset, self.data_collator, self.args.vae_batch_size, self.args.seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            columns = set(next(iter(eval_dataset)))
            if "index" not in columns or not columns <= COLUMNS:  # it is none of those that are prepared already
                eval_dataset = self._prepared(eval_dataset, self.args, "eval_dataset")
                eval_dataset = self._precompute(eval_dataset) if self._precomputes else eval_dataset
        return super().get_eval_dataloader(eval_dataset)

    def get_batch(self, inputs: dict[str, Any], training: bool | None = None) -> PairBatch:
        """Latents, conditioning and random numbers of what the collator made."""
        training = self.model.training if training is None else training
        device = self.accelerator.device
        draws = Draws(self.args.seed, self.state.global_step if training else "eval", inputs["index"])
        x0 = inputs["latents"] if "latents" in inputs else self._encode(inputs["pixel_values"], draws, training)
        dropped = draws.uniform("dropout") < (self.args.prompt_dropout if training else 0)
        if "prompts" in inputs:
            prompts = self._captions(inputs["prompts"], draws, training)
            prompts = ["" if drop else p for p, drop in zip(prompts, dropped.tolist(), strict=True)]
            rows = self.prompts(prompts, device)
        else:
            rows = {name: inputs[name] for name in ("prompt_embeds", "pooled_prompt_embeds") if name in inputs}
            prompts = list(rows["prompt_embeds"])
            if dropped.any():
                empty = self.prompts([""], device)
                for name, value in rows.items():
                    rows[name] = torch.where(
                        dropped.to(device).view(-1, *(1,) * (value.dim() - 1)), empty[name].to(value), value
                    )
        conditioning = {name: torch.cat([value, value]) for name, value in rows.items()}
        return PairBatch(x0.to(device, torch.float32), conditioning, prompts, self.factor(inputs), draws)

    def _captions(self, prompts: list[str | list[str]], draws: Draws, training: bool) -> list[str]:
        """One caption of each pair: of several a random one in training, else the first."""
        u = draws.uniform("caption").tolist() if training else [0.0] * len(prompts)
        return [p if isinstance(p, str) else p[int(x * len(p))] for p, x in zip(prompts, u, strict=True)]

    def _encode(self, pixels: torch.Tensor, draws: Draws, training: bool) -> torch.Tensor:
        if training and self.args.random_flip:
            mirrored = (draws.uniform("flip") < 0.5).repeat(2).to(pixels.device)
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        generators = draws.generators("winner") + draws.generators("loser")
        return encode_images(self.pipe, pixels, self.args.vae_batch_size, generators)

    # Loss

    def factor(self, inputs: dict[str, Any]) -> torch.Tensor | float:
        """What margins are multiplied by: 1, or (B,)."""
        return 1.0

    def errors(self, model: torch.nn.Module, batch: PairBatch) -> PreferenceErrors:
        """How well the policy `model` and the reference do on a batch."""
        raise NotImplementedError

    def rewards(self, delta: torch.Tensor, batch: PairBatch) -> torch.Tensor:
        """Implicit rewards (2B,)."""
        return implicit_rewards(delta, self.args.beta, batch.factor)

    def losses(self, delta: torch.Tensor, batch: PairBatch) -> torch.Tensor:
        """The loss of each pair; their mean is minimised."""
        return preference_loss(preference_margin(self.rewards(delta, batch)))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        batch = self.get_batch(inputs)
        errors = self.errors(model, batch)
        loss = self.losses(errors.delta, batch).mean()
        self._note_errors(errors, batch)
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def _note_errors(self, errors: PreferenceErrors, batch: PairBatch) -> None:
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
