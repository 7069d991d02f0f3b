# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rows with pictures, on a random vision-language model of a few thousand weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from alignext.trainers.bco import BCOConfig, BCOTrainer

from ..contract import LM, Row, curve, moved, weights, with_and_without_lora
from .test_bco_trainer import logged


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with the vocabulary of the mini-LM."""
    tokenizer = AutoTokenizer.from_pretrained(LM)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=32,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(path := tmp_path_factory.mktemp("llava"))
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    return path


def pictures(weighted: bool = False) -> Dataset:
    """A red or a blue square, called red."""
    rows = []
    for i in range(8):
        color = (255, 0, 0) if i % 2 == 0 else (0, 0, 255)
        row = {
            "images": [Image.new("RGB", (16, 16), color)],
            "prompt": "<image> What is this?",
            "completion": " It is a red box.",
            "label": i % 2 == 0,
        }
        rows.append(row | ({"udm_weight": 3.0} if weighted else {}))
    return Dataset.from_list(rows)


@with_and_without_lora
def test_trains_on_pictures_and_weights_reach_the_loss(
    folder: Path, tmp_path: Path, peft_config: LoraConfig | None
) -> None:
    losses = []
    for weighted in (False, True):
        row = Row(BCOTrainer, BCOConfig, lambda _, weighted=weighted: pictures(weighted))
        settings = {"train_sampling_strategy": "sequential", "max_steps": 2, "peft_config": peft_config}
        trainer = row.start(tmp_path, model=str(folder), **settings)
        before = weights(trainer.model)
        trainer.train()
        names = moved(before, trainer.model)
        assert names and all("lora_" in name for name in names) == (peft_config is not None)
        assert np.isfinite(curve(trainer)).all()
        losses.append(curve(trainer)[0][1])
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5)  # (1 + 3) / (1 + 1), as all rewards are 0
    assert logged(trainer, "udm_weight") == [3.0, 3.0]


def test_pictures_need_an_embedder_of_their_own(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompt_embedder"):
        Row(BCOTrainer, BCOConfig, lambda _: pictures()).start(tmp_path, model=str(folder), udm_embedding="policy")
    seen: list[str] = []

    def embed(prompts: list[str]) -> np.ndarray:
        seen.extend(prompts)
        return np.ones((len(prompts), 2))

    row = Row(BCOTrainer, BCOConfig, lambda _: pictures(), arguments={"prompt_embedder": embed})
    trainer = row.start(tmp_path, model=str(folder))
    assert trainer.train_dataset["udm_weight"] == pytest.approx([1.0] * 8)
    assert set(seen) == {"<image> What is this?"}
    with pytest.raises(ValueError, match="has no `udm_weight`"):
        trainer.evaluate(pictures())
