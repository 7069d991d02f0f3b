# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""On the embedded model, stories guided by a trained process reward are more often what it was trained for."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext.decoding.guided import guided_generate
from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer

from ..contract import MINI_LM, Row


FILE = Path(__file__).parents[3] / "examples" / "process_reward.py"
SPEC = importlib.util.spec_from_file_location("process_reward_example", FILE)
stories = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(stories)

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]


@pytest.mark.effect
@pytest.mark.slow
def test_guided_stories_are_what_the_process_reward_wants(tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MINI_LM).eval(), AutoTokenizer.from_pretrained(MINI_LM)
    data = stories.solutions(model, tokenizer, 2 * stories.beginnings(stories.TRAIN_NAMES), seed=0, tokens=40)
    held_out = stories.solutions(model, tokenizer, 2 * stories.beginnings(stories.HELD_OUT_NAMES), seed=1, tokens=40)
    trainer = Row(ProcessRewardTrainer, ProcessRewardConfig, lambda _: data).start(
        tmp_path,
        model=str(MINI_LM),
        max_steps=24,
        per_device_train_batch_size=16,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        warmup_steps=3,
    )
    trainer.train()
    _, middle, last = stories.accuracy(trainer.reward(), held_out)
    prompts = stories.beginnings(stories.HELD_OUT_NAMES)  # names that no training prompt has
    told = guided_generate(
        model,
        tokenizer,
        prompts,
        trainer.reward(),
        num_candidates=4,
        max_new_tokens=40,
        generator=torch.Generator().manual_seed(2),
    )
    sampled = stories.tell(model, tokenizer, prompts, seed=2, tokens=40)
    pleasant = [sum(map(stories.is_pleasant, texts)) / len(prompts) for texts in (sampled, told.texts)]
    # Chance is 0.5. The margins are about half of what was seen.
    assert middle > 0.6 and last > 0.7, (middle, last)
    assert pleasant[1] > pleasant[0] + 0.2, pleasant
    steps = [step for text in told.steps for step in text]
    assert all(step.scores[step.chosen] == max(step.scores) for step in steps)
