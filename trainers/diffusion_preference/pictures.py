# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: hooks of one Trainer. Columns, collators and what is kept have files of their own.
"""What trainers of pairs and of votes have in common: pictures, prompts and random numbers of a batch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from diffusers import DiffusionPipeline
from peft import LoraConfig
from transformers import DataCollator, TrainerCallback
from transformers.utils import logging

from alignext.diffusion.denoiser import get_denoiser
from alignext.diffusion.draws import Draws
from alignext.diffusion.latents import encode_images
from alignext.diffusion.recording import call_parameters
from alignext.diffusion.sizes import Size, draws_videos, pixel_multiple, size_of_latents
from alignext.training.diffusion import DiffusionTrainer

from .collators import PairCollator
from .columns import COLUMNS, IMAGES, VIDEOS, is_embedding
from .config import PictureConfig
from .data import prepare_pairs
from .precompute import precompute_latents


logger = logging.get_logger(__name__)


@dataclass
class PictureBatch:
    """
    A batch in front of the denoiser. Of `B` pairs there are `R = 2B` rows, winners first; of votes `R = B`.

    Attributes:
        x0 (`torch.Tensor` of shape `(R, C, h, w)`): Clean latents, float32.
        conditioning (`dict[str, torch.Tensor]`): `conditions` of shape `(R,)`, the numbers that
            [`~alignext.diffusion.conditions.Conditions`] has for the samples.
        prompts (`list`): Text, or embeddings, of each of the `B`, as the keys of kept inversions have it.
        samples (`list[dict]`): Arguments of the stock call of each.
        mask (`torch.Tensor` of shape `(R, 1, h, w)`, *optional*): Where it is trained.
        inputs (`dict`): What the collator made.
        draws ([`Draws`]): Random numbers of each.
    """

    x0: torch.Tensor
    conditioning: dict[str, torch.Tensor]
    prompts: list[Any]
    samples: list[dict[str, Any]]
    mask: torch.Tensor | None
    inputs: dict[str, Any]
    draws: Draws


class PictureTrainer(DiffusionTrainer):
    """Pictures, prompts and random numbers of a batch. A subclass defines `compute_loss`."""

    _config: Any = PictureConfig
    _same_calls = True
    _collator: Any = PairCollator
    _sides = 2  # pictures of a row

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
        **kwargs: Any,
    ) -> None:
        pipe, args = self._door(model, args)
        self._check(pipe, args, ref_model)
        if data_collator is None:
            size = self._size(pipe, args)
            multiple = pixel_multiple(pipe, get_denoiser(pipe))
            data_collator = self._collator(size.height, multiple, args.buckets, args.num_frames)
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
            init_noise=getattr(args, "init_noise", 0.0),
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        self._place_encoders()
        self._rehearse()
        if self._precomputes:
            self._map_datasets(self._precompute)
            self._release()
        self.conditions.sealed = self.is_fsdp_enabled

    @property
    def _precomputes(self) -> bool:
        return self._keeps_latents or self.args.precompute_prompts

    @property
    def _keeps_latents(self) -> bool:
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
        self._edits = "source" in columns
        encoders = self._text_encoders()
        if not encoders and self.args.prompt_dropout and any(map(is_embedding, columns)):
            raise ValueError(
                "`prompt_dropout` needs text encoders for the empty prompt, and the pipeline has none. Set it to 0."
            )
        for encoder in encoders:
            encoder.to(self.accelerator.device)
        if columns & {"image", "video", *IMAGES, *VIDEOS}:
            if getattr(self.pipe, "vae", None) is None:
                raise ValueError("The pipeline has no `vae` to encode pictures with. Load one, or give latents.")
            self.pipe.vae.to(self.accelerator.device)
        elif self.args.random_flip and columns:
            raise ValueError("`random_flip` needs pictures, and the dataset has latents. Set it to False.")
        for name in ("source", "mask") if self._fills else ("source",):
            if self.args.random_flip and name in columns:
                raise ValueError(
                    f"`random_flip` would not flip the column `{name}` of what is edited. Set it to False."
                )

    def _release(self) -> None:
        """Take off the device what training does not need any more."""
        if self.args.precompute_prompts:
            for encoder in self._text_encoders():
                encoder.to("cpu")
        if self._keeps_latents and getattr(self.pipe, "vae", None) is not None:
            self.pipe.vae.to("cpu")

    def _precompute(self, dataset: Any) -> Any:
        """The dataset with its pictures encoded, where they are to be."""
        if isinstance(dataset, IterableDataset):
            raise ValueError("What is computed before training needs a `Dataset`, and a stream was given.")
        if self.args.precompute_prompts:
            self._fill_conditions(dataset)
        if not self._keeps_latents or not set(dataset.column_names) & {"image", "video", *IMAGES, *VIDEOS}:
            return dataset
        with self.args.main_process_first(desc="encoding pictures"):
            layout = self.conditions.template(self._batch_size(self.data_collator([next(iter(dataset))]))).layout
            return precompute_latents(
                self.pipe, dataset, self.data_collator, self.args.vae_batch_size, self.args.seed, layout
            )

    def _fill_conditions(self, dataset: Dataset) -> None:
        """Capture what each row tells the denoiser, with every one of its captions."""
        size = self._batch_size(self.data_collator([dataset[0]]))
        told = [name for name in dataset.column_names if name in ("index", "columns", "prompt", "source", "mask")]
        told += [name for name in dataset.column_names if is_embedding(name)]
        for row in dataset.select_columns(told):
            for prompt in row["prompt"] if isinstance(row.get("prompt"), list) else [row.get("prompt")]:
                inputs = self.data_collator.told([row | ({} if prompt is None else {"prompt": prompt})])
                (sample,) = self._samples(inputs, Draws(0, "kept", inputs["index"]), False)
                others = [self.conditions.empty(sample)] if self.args.prompt_dropout else []
                if getattr(self.args, "guidance_scale", 1) != 1:
                    others.append(self.conditions.unconditional(sample))
                self.conditions.fill([sample, *others], size)

    def _ready(self, dataset: Any, name: str) -> Any:
        columns = set(next(iter(dataset), ()))
        ours = {column for column in columns if not is_embedding(column)} <= COLUMNS
        if "index" in columns and ours:
            return dataset
        dataset = self._prepared(dataset, self.args, name)
        return self._precompute(dataset) if self._precomputes else dataset

    def get_batch(self, inputs: dict[str, Any], training: bool | None = None) -> PictureBatch:
        """Latents, conditioning and random numbers of what the collator made."""
        training = self.model.training if training is None else training
        device = self.accelerator.device
        draws = Draws(self.args.seed, self.state.global_step if training else "eval", inputs["index"])
        samples, size = self._samples(inputs, draws, training), self._batch_size(inputs)
        dropped = draws.uniform("dropout") < (self.args.prompt_dropout if training else 0)
        told = [
            self.conditions.empty(sample) if drop else sample
            for sample, drop in zip(samples, dropped.tolist(), strict=True)
        ]
        numbers = self.conditions(told, size)
        mirrored = draws.uniform("flip") < (0.5 if training and self.args.random_flip else 0)
        x0 = inputs["latents"] if "latents" in inputs else self._encode(inputs["pixel_values"], size, draws, mirrored)
        prompts = [sample["prompt"] if "prompt" in sample else sample["prompt_embeds"] for sample in told]
        mask = None if self._fills else inputs.get("mask")
        if mask is not None:
            mask = _flipped(mask, mirrored)
            mask = torch.nn.functional.adaptive_avg_pool2d(mask, (x0.shape[-2], x0.shape[-1]))
            mask = (
                mask.view(len(mask), *[1] * (x0.ndim - 3), *mask.shape[-2:])
                .to(device)
                .repeat(self._sides, *[1] * (x0.ndim - 1))
            )
        conditioning = {"conditions": numbers.repeat(self._sides).to(device)}
        return PictureBatch(x0.to(device, torch.float32), conditioning, prompts, samples, mask, inputs, draws)

    def _batch_size(self, inputs: dict[str, Any]) -> Size:
        """Of the pictures or videos of a batch."""
        if "latents" in inputs:
            return size_of_latents(self.pipe, inputs["latents"].shape[1:])
        pixels = inputs["pixel_values"]
        videos = draws_videos(self.pipe)
        if pixels.ndim == 5 and not videos:
            raise ValueError(f"The dataset has videos, and {type(self.pipe).__name__} draws pictures.")
        return Size(*pixels.shape[-2:], (pixels.shape[2] if pixels.ndim == 5 else 1) if videos else None)

    def _samples(self, inputs: dict[str, Any], draws: Draws, training: bool) -> list[dict[str, Any]]:
        """Arguments of the stock call for each row."""
        if "prompts" in inputs:
            samples: list[dict] = [{"prompt": p} for p in self._captions(inputs["prompts"], draws, training)]
        else:
            names = [name for name in inputs if is_embedding(name)]
            rows = zip(*(inputs[name] for name in names), strict=True)
            samples = [dict(zip(names, row, strict=True)) for row in rows]
        for sample, sources in zip(samples, inputs.get("sources", ()), strict=False):
            sample["image"] = sources[0] if len(sources) == 1 else sources
        if self._fills:
            for sample, mask in zip(samples, inputs.get("mask_images", ()), strict=False):
                sample["mask_image"] = mask
        return samples

    @property
    def _fills(self) -> bool:
        """Whether a mask is what the pipeline is told, and not where it is trained."""
        return "mask_image" in call_parameters(self.pipe)

    def _rehearse(self) -> None:
        """See on one row that the pipeline's call can be recorded, before anything is computed for all of them."""
        datasets = self.eval_dataset.values() if isinstance(self.eval_dataset, Mapping) else [self.eval_dataset]
        for dataset in (self.train_dataset, *datasets):
            if dataset is not None:
                self._rehearse_on(next(iter(dataset)))

    def _rehearse_on(self, row: dict[str, Any]) -> None:
        known = call_parameters(self.pipe)
        name = type(self.pipe).__name__
        if "source" in row and "image" not in known:
            raise ValueError(
                f"The dataset has a column `source` (or `image`), and {name} edits no picture. Remove it."
            )
        inputs = self.data_collator([row])
        sample = self._samples(inputs, Draws(self.args.seed, "rehearsal", inputs["index"]), False)
        try:
            self.conditions(sample, self._batch_size(inputs))
        except Exception as error:
            if "image" not in known or "source" in row:
                raise
            columns = ", ".join(name for name in row if name not in ("index", "columns"))
            raise ValueError(
                f"{name} edits a picture, and the dataset has no column `source` (or `image`): found {columns}."
            ) from error

    def _captions(self, prompts: list[str | list[str]], draws: Draws, training: bool) -> list[str]:
        """One caption of each pair: of several a random one in training, else the first."""
        u = draws.uniform("caption").tolist() if training else [0.0] * len(prompts)
        return [p if isinstance(p, str) else p[int(x * len(p))] for p, x in zip(prompts, u, strict=True)]

    def _encode(self, pixels: torch.Tensor, size: Size, draws: Draws, mirrored: torch.Tensor) -> torch.Tensor:
        pixels = _flipped(pixels, mirrored.repeat(self._sides))
        generators = [g for side in ("winner", "loser")[: self._sides] for g in draws.generators(side)]
        layout = self.conditions.template(size).layout
        return encode_images(self.pipe, pixels, self.args.vae_batch_size, generators, layout=layout)


def _flipped(pictures: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Pictures or masks `(B, ..., W)`, those that are said to be mirrored."""
    if not mirrored.any():
        return pictures
    mirrored = mirrored.to(pictures.device).view(-1, *[1] * (pictures.ndim - 1))
    return torch.where(mirrored, pictures.flip(-1), pictures)
