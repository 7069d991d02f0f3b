# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What the contract suite of the diffusion trainers runs on: a row per trainer, small data, tiny random pipelines."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import Trainer, TrainingArguments

from ..contract import SHORT_RUN
from ..contract import weights as of_model
from .tiny import SIZE, sd


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(256, (SIZE, SIZE, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def pairs(count: int = 8, first: int = 0) -> Dataset:
    """Rows of `prompt`, `image_chosen`, `image_rejected`, `score_chosen`, `score_rejected`."""
    return Dataset.from_list(
        [
            {
                "prompt": f"fox {i}",
                "image_chosen": picture(2 * i),
                "image_rejected": picture(2 * i + 1),
                "score_chosen": 0.2 + 0.01 * (i % 5),
                "score_rejected": 0.19,
            }
            for i in range(first, first + count)
        ]
    )


def latent_pairs(count: int = 8, width: int = 16, channels: int = 4, pooled: int = 0) -> Dataset:
    """The same, encoded already: for a pipeline that has the denoiser alone."""
    g = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        rows.append(
            {
                "chosen_latents": torch.randn(channels, 8, 8, generator=g).numpy(),
                "rejected_latents": torch.randn(channels, 8, 8, generator=g).numpy(),
                "prompt_embeds": torch.randn(16, width, generator=g).numpy(),
                "score_chosen": 0.2 + 0.01 * (i % 5),
                "score_rejected": 0.19,
            }
            | ({"pooled_prompt_embeds": torch.randn(pooled, generator=g).numpy()} if pooled else {})
        )
    return Dataset.from_list(rows)


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: it holds dicts
class Row:
    """One trainer under contract.

    Args:
        trainer (`type`): The class.
        config (`type`): Its config class.
        settings (`dict`, *optional*): Config fields that differ from the defaults.
        name (`str`, *optional*): Of the row; that of the trainer if not given.
        at_reference (`bool`, *optional*, defaults to `True`): Whether its first margin is zero.
    """

    trainer: type[Trainer]
    config: type[TrainingArguments]
    settings: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    at_reference: bool = True

    def __str__(self) -> str:
        return self.name or self.trainer.__name__

    def start(
        self,
        folder: Path,
        *,
        pipe: DiffusionPipeline | Callable[[], DiffusionPipeline] = sd,
        dataset: Dataset | None = None,
        eval_dataset: Any = None,
        peft_config: object = None,
        arguments: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Trainer:
        """The trainer on a tiny pipeline, ready for three steps of four pairs; `settings` override the config."""
        defaults = SHORT_RUN | {
            "output_dir": str(folder),
            "max_sequence_length": 16,
            "resolution": SIZE,  # Flux does not say, and 1024 is meant
        }
        return self.trainer(
            model=pipe() if callable(pipe) and not isinstance(pipe, DiffusionPipeline) else pipe,
            args=self.config(**defaults | self.settings | settings),
            train_dataset=pairs() if dataset is None else dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            **(arguments or {}),
        )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of every parameter of the denoiser by name."""
    return of_model(trainer.denoiser)


def prediction(pipe: DiffusionPipeline) -> torch.Tensor:
    """What the denoiser of a tiny pipeline says to a fixed input."""
    from alignext.diffusion.denoiser import DenoiserModule
    from alignext.diffusion.prompts import encode_prompts

    g = torch.Generator().manual_seed(3)
    module = DenoiserModule(pipe).eval()
    with torch.no_grad():
        x = torch.randn(2, 4, 8, 8, generator=g)
        return module(x, torch.tensor([10.0, 700.0]), **encode_prompts(pipe, ["a", "fox"]))
