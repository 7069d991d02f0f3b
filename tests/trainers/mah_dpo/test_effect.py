# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""On the embedded model, both heads learn their objective, and weights choose between them."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext.trainers.mah_dpo import MAHDPOConfig, MAHDPOTrainer

from ..contract import MINI_LM, Row


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]


@pytest.mark.effect
@pytest.mark.slow
def test_weights_choose_between_objectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "examples")
    stories = import_module("mah_dpo")
    monkeypatch.delitem(sys.modules, "mah_dpo")
    base, tokenizer = AutoModelForCausalLM.from_pretrained(MINI_LM).eval(), AutoTokenizer.from_pretrained(MINI_LM)
    data = stories.preferences(base, tokenizer, stories.beginnings("Tom Lily Ben Mia Sam"), samples=8, seed=0)
    data = data.filter(lambda row: row["objective"] != "happy")

    trainer = Row(MAHDPOTrainer, MAHDPOConfig, lambda _: data).start(
        tmp_path,
        model=str(MINI_LM),
        max_steps=24,
        per_device_train_batch_size=8,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    model = trainer.model.eval().merge_and_unload()
    prompts = 3 * stories.beginnings("Amy Bob")  # names that no training prompt has
    shares = {"base": stories.shares(stories.tell(base, tokenizer, prompts, seed=2))}
    for name in ("outdoors", "speaks"):
        with model.mixed_heads({name: 1}):
            shares[name] = stories.shares(stories.tell(model, tokenizer, prompts, seed=2))
    # The margins are about half of what was seen.
    for name, other in (("outdoors", "speaks"), ("speaks", "outdoors")):
        assert shares[name][name] > shares["base"][name] + 0.1, shares
        assert shares[name][name] > shares[other][name] + 0.05, shares
