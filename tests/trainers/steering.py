# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The row of CDAS in the contract suite: a vector in a tiny language model that reads the embedded one's tokens."""

import copy
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, Trainer

from alignext import SteeringVector
from alignext.trainers.cdas.module import UnitVector

from .contract import MINI_LM, SHORT_RUN, STORIES, AnyRow, logits


def quads() -> Dataset:
    """Prompts without and with sadness, and an answer to each."""
    return Dataset.from_list(
        [
            {
                "neutral_prompt": prompt,
                "neutral_completion": chosen,
                "concept_prompt": f"It was a sad, sad day. {prompt}",
                "concept_completion": rejected,
            }
            for prompt, chosen, rejected in STORIES
        ]
    )


def tiny_lm() -> PreTrainedModel:
    """Random weights, large enough for prompts to make a difference."""
    size = len(AutoTokenizer.from_pretrained(MINI_LM))
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@functools.cache
def tiny_folder() -> tempfile.TemporaryDirectory:
    """The same, and the tokenizer, in a folder that goes when the process does."""
    folder = tempfile.TemporaryDirectory()
    tiny_lm().save_pretrained(folder.name)
    AutoTokenizer.from_pretrained(MINI_LM).save_pretrained(folder.name)
    return folder


@dataclass(frozen=True, eq=False)
class SteeringRow(AnyRow):
    """A trainer of a steering vector, on the tiny language model."""

    rate = 1.0  # the vector has length 1
    files = AnyRow.files | {"steering.safetensors"}

    def data(self) -> Dataset:
        return quads()

    def start(
        self,
        folder: Path,
        *,
        peft_config: Any = None,
        dataset: Dataset | None = None,
        eval_dataset: Any = None,
        model: Any = None,
        trainer: type[Trainer] | None = None,
        **settings: Any,
    ) -> Trainer:
        defaults = SHORT_RUN | {"output_dir": str(folder), "lr_scheduler_type": "constant", "learning_rate": 0.04}
        if model is None:
            model = tiny_lm()
        if peft_config is not None:  # it is trained in a model with an adapter, and the adapter is not
            model = get_peft_model(model, copy.deepcopy(peft_config))  # peft writes into it
        return (trainer or self.trainer)(
            model,
            self.config(**defaults | settings),
            self.data() if dataset is None else dataset,
            eval_dataset,
            AutoTokenizer.from_pretrained(MINI_LM),
        )

    def bare(self, **arguments: Any) -> Trainer:
        return self.trainer(model=tiny_folder().name, train_dataset=self.data(), **arguments)

    def origins(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"model": tiny_folder().name}, {"model": tiny_lm()}

    def trained(self, trainer: Trainer) -> torch.nn.Module:
        return trainer.interchange.vector

    def untrained(self) -> torch.nn.Module:
        return UnitVector(32, 42)

    def said(self, trainer: Trainer) -> torch.Tensor:
        with trainer.steering_vector.apply(trainer.interchange.lm):
            return logits(trainer.interchange.lm)

    def opened(self, saved: Path | None, lora: bool) -> torch.Tensor:
        model = tiny_lm()
        if saved is None:
            return logits(model)
        with SteeringVector.load(saved / "steering.safetensors").apply(model):
            return logits(model)

    def moves(self, name: str) -> bool:
        return True

    def check_card(self, card: ModelCard) -> None:
        assert "SteeringVector.from_hub(" in card.text and card.data.library_name == "alignext"
