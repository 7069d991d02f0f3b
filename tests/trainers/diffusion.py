# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The rows of diffusion trainers in the contract suite: small data, made once, and tiny random pipelines."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from peft import LoraConfig
from PIL import Image
from transformers import Trainer, TrainingArguments

from alignext.diffusion.conditions import Conditions
from alignext.diffusion.denoiser import DenoiserModule, get_denoiser
from alignext.diffusion.sizes import Size

from .contract import SHORT_RUN, AnyRow
from .contract import weights as of_model
from .diffusion_preference.tiny import SIZE, sd, sd3


WEIGHTS = "diffusion_pytorch_model.safetensors"


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(256, (SIZE, SIZE, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@functools.cache
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


@functools.cache
def picture_votes(count: int = 8) -> Dataset:
    """Rows of `prompt`, `image`, `label`."""
    return Dataset.from_list([{"prompt": f"fox {i}", "image": picture(i), "label": i % 3 > 0} for i in range(count)])


@functools.cache
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


@functools.cache
def rewarded_prompts(count: int = 8) -> Dataset:
    """Rows of `prompt`."""
    return Dataset.from_list([{"prompt": f"fox {i}"} for i in range(count)])


@dataclass(frozen=True, eq=False)
class DiffusionRow(AnyRow):
    """A trainer of diffusion pipelines, on a tiny random one.

    Args:
        trainer (`type`): The class.
        config (`type`): Its config class.
        settings (`dict`, *optional*): Config fields that differ from the defaults.
        pipe (`Callable[[], DiffusionPipeline]`, *optional*): Makes the pipeline, by default Stable Diffusion's.
        dataset (`Callable[[], Dataset]`, *optional*): Makes its data, by default pairs.
        arguments (`dict`, *optional*): Constructor arguments beyond model, config, data and adapter.
    """

    trainer: type[Trainer]
    config: type[TrainingArguments]
    settings: dict[str, Any] = field(default_factory=dict)
    pipe: Callable[[], DiffusionPipeline] = sd
    dataset: Callable[[], Dataset] = pairs
    arguments: dict[str, Any] = field(default_factory=dict)

    lora = LoraConfig(r=2, lora_alpha=4)
    close, rate = 2e-3, 1e-2
    draws: ClassVar[dict[str, Any]] = {"random_flip": True}
    from_instance = True

    @property
    def summed(self) -> tuple[str, ...]:
        return ("loss", "grad_norm", *(("rewards/margins", "mse/policy") if self.learns == "pairs" else ()))

    @property
    def idle(self) -> str | None:
        return "attn.add_q_proj" if self.pipe is sd3 else None  # the last block, here the only one, makes no text

    @property
    def files(self) -> set[str]:
        return {"README.md", *(f"{self.denoiser}/{name}" for name in ("config.json", WEIGHTS))}

    @property
    def denoiser(self) -> str:
        return "unet" if hasattr(self.pipe(), "unet") else "transformer"

    def data(self) -> Dataset:
        return self.dataset()

    def start(
        self,
        folder: Path,
        *,
        pipe: DiffusionPipeline | str | Callable[[], DiffusionPipeline] | None = None,
        dataset: Dataset | None = None,
        eval_dataset: Any = None,
        peft_config: object = None,
        trainer: type[Trainer] | None = None,
        arguments: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Trainer:
        defaults = SHORT_RUN | {
            "output_dir": str(folder),
            "max_sequence_length": 16,
            "resolution": SIZE,  # Flux does not say, and 1024 is meant
        }
        pipe = self.pipe if pipe is None else pipe
        return (trainer or self.trainer)(
            model=pipe() if callable(pipe) and not isinstance(pipe, DiffusionPipeline) else pipe,
            args=self.config(**defaults | self.settings | settings),
            train_dataset=self.data() if dataset is None else dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            **self.arguments | (arguments or {}),
        )

    def bare(self, **arguments: Any) -> Trainer:
        given = {"train_dataset": self.data(), "peft_config": self.lora} | self.arguments | arguments
        return self.trainer(model=self.pipe(), **given)

    def origins(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        self.pipe().save_pretrained(folder / "pipe")
        return {"pipe": str(folder / "pipe")}, {"pipe": self.pipe()}

    def trained(self, trainer: Trainer) -> torch.nn.Module:
        return trainer.denoiser

    def untrained(self) -> torch.nn.Module:
        return getattr(self.pipe(), self.denoiser)

    def said(self, trainer: Trainer) -> torch.Tensor:
        trainer.denoiser.eval()
        return prediction(trainer.pipe)

    def opened(self, saved: Path | None, lora: bool) -> torch.Tensor:
        pipe, name = self.pipe(), self.denoiser
        if saved is not None and lora:
            pipe.load_lora_weights(saved)
        elif saved is not None:
            network = type(getattr(pipe, name)).from_pretrained(saved, subfolder=name).eval()
            pipe.register_modules(**{name: network})
        return prediction(pipe)

    def check_first(self, log: dict[str, float]) -> None:
        if self.learns == "pairs" and self.at_reference:
            assert log["loss"] == pytest.approx(math.log(2), abs=1e-6)
            assert log["rewards/accuracies"] == 0.5
            assert log["mse/policy"] == log["mse/ref"] > 0

    def check_card(self, card: ModelCard) -> None:
        assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")


@dataclass(frozen=True, eq=False)
class RewardRow(DiffusionRow):
    """A trainer on rewards: prompts are its data, and nothing of them is drawn at random."""

    dataset: Callable[[], Dataset] = rewarded_prompts
    learns: str = field(default="prompts", kw_only=True)

    draws: ClassVar[dict[str, Any]] = {}


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of every parameter of the denoiser by name."""
    return of_model(trainer.denoiser)


def prediction(pipe: DiffusionPipeline) -> torch.Tensor:
    """What the denoiser of a tiny pipeline says to a fixed input."""
    g = torch.Generator().manual_seed(3)
    conditions = Conditions(pipe, Size(SIZE, SIZE))
    module = DenoiserModule(get_denoiser(pipe), conditions).eval()
    with torch.no_grad():
        x = torch.randn(2, 4, 8, 8, generator=g)
        return module(x, torch.tensor([10.0, 700.0]), conditions(["a", "fox"]))
