# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pictures, experts and streams, which RLOO's machinery handles, reach the loss."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer

from ..bco.test_vision import folder  # noqa: F401
from ..contract import LM, MINI_LM, Row, count_vowels, curve, moved, weights, with_and_without_lora


SETTINGS = {"num_generations": 4, "max_completion_length": 6, "beta": 2.0}

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


@with_and_without_lora
def test_pictures(folder: Path, tmp_path: Path, peft_config: LoraConfig | None) -> None:  # noqa: F811
    template = "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    template += "<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    rows = [
        {
            "prompt": [{"role": "user", "content": "What is this?"}],
            "images": [Image.new("RGB", (16, 16), color)],
        }
        for color in ("red", "blue")
    ]
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = template
    processor.tokenizer.padding_side = "left"
    row = Row(
        FDPGTrainer,
        FDPGConfig,
        lambda _: Dataset.from_list(rows),
        SETTINGS,
        {"reward_funcs": count_vowels, "processing_class": processor},
    )
    settings = {"per_device_train_batch_size": 8, "max_steps": 2, "peft_config": peft_config}
    trainer = row.start(tmp_path, model=str(folder), **settings)
    before = weights(trainer.model)
    trainer.train()
    names = moved(before, trainer.model)
    assert names and all("lora_" in name for name in names) == (peft_config is not None)
    assert all(norm > 0 for *_, norm in curve(trainer))
    assert len(trainer.target_state.z) == 2  # the same question about two pictures is two contexts
    out = trainer._generate_and_score_completions([dict(row) for row in rows for _ in range(4)])
    assert out["pixel_values"].shape[0] == 8
    assert (out["old_logps"] != out["ref_logps"]).all()


@with_and_without_lora
def test_experts_are_balanced(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(LM, padding_side="left")
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        router_aux_loss_coef=0.5,
    )
    torch.manual_seed(0)
    arguments = {"reward_funcs": count_vowels, "processing_class": tokenizer}
    row = Row(FDPGTrainer, FDPGConfig, lambda _: Dataset.from_list([{"prompt": "One day"}]), SETTINGS, arguments)
    trainer = row.start(tmp_path, model=MixtralForCausalLM(config), max_steps=1, peft_config=peft_config)
    before = weights(trainer.model)
    trainer.train()
    names = moved(before, trainer.model)
    assert names and all("lora_" in name for name in names) == (peft_config is not None)
    first = trainer.state.log_history[0]
    assert first["aux_loss"] > 0.5
    out = trainer._buffered_inputs[0]
    with torch.no_grad():
        trainer.model.train()
        losses = []
        for coefficient in (0.5, 0.0):
            trainer.router_aux_loss_coef = coefficient
            losses.append(trainer._compute_loss(trainer.model, out).item())
    assert losses[0] - losses[1] > 0.2


def test_streams(tmp_path: Path) -> None:
    data = Dataset.from_list([{"prompt": p} for p in ("One day", "Tom ran", "Lily saw")]).to_iterable_dataset()

    def short(completions: list[str], **kwargs: object) -> list[float]:
        return [float(len(text) < 25) for text in completions]

    settings = SETTINGS | {"target": "distributional", "target_moments": [0.95], "moment_samples": 24}
    row = Row(FDPGTrainer, FDPGConfig, lambda _: data, settings, {"reward_funcs": short})
    trainer = row.start(tmp_path, model=str(MINI_LM), max_steps=2)
    trainer.train()
    assert len(trainer.target_state.coefficients) == 1
    assert len(curve(trainer)) == 2
