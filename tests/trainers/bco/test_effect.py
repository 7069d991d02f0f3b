# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""On the embedded model, thumbs up for stories in which somebody speaks make people speak."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext.trainers.bco import BCOConfig, BCOTrainer

from ..contract import MINI_LM, Row


SPEC = importlib.util.spec_from_file_location("bco_example", Path(__file__).parents[3] / "examples" / "bco.py")
stories = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(stories)

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]


@pytest.mark.effect
@pytest.mark.slow
def test_learns_what_the_thumbs_are_for(tmp_path: Path) -> None:
    base, tokenizer = AutoModelForCausalLM.from_pretrained(MINI_LM).eval(), AutoTokenizer.from_pretrained(MINI_LM)
    data = stories.thumbs(base, tokenizer, 4 * stories.beginnings("Tom Lily Ben Mia Sam Anna"), seed=0)
    prompts = 3 * stories.beginnings("Amy Bob")  # names that no training prompt has
    held_out = stories.thumbs(base, tokenizer, prompts, seed=1)
    assert 0.15 < sum(data["label"]) / len(data) < 0.6

    trainer = Row(BCOTrainer, BCOConfig, lambda _: data).start(
        tmp_path,
        model=copy.deepcopy(base),
        max_steps=24,
        per_device_train_batch_size=16,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        desirable_weight=2.0,
        precompute_ref_log_probs=True,
    )
    trainer.train()
    model = trainer.model.eval()
    rewards = stories.log_probabilities(model, tokenizer, held_out) - stories.log_probabilities(
        base, tokenizer, held_out
    )
    accuracy = stories.accuracy(rewards, held_out["label"])
    speaks = [
        sum(map(stories.somebody_speaks, stories.tell(teller, tokenizer, prompts, seed=2))) / len(prompts)
        for teller in (base, model)
    ]
    # An untrained policy has accuracy 0.5. The margins are about half of what was seen.
    assert accuracy > 0.6, accuracy
    assert speaks[1] > speaks[0] + 0.4, speaks
    assert torch.isfinite(rewards).all()
