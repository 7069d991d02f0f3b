# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""On the embedded model, stories come to meet a constraint, and stay near the initial model."""

from pathlib import Path

import pytest
from datasets import Dataset

from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer

from ..contract import MINI_LM, Row


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]
PROMPT = Dataset.from_list([{"prompt": "Once upon a time"}])


def a_boy(completions: list[str], **kwargs: object) -> list[float]:
    """One story in five."""
    return [float("boy" in text.split()) for text in completions]


@pytest.mark.effect
@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({"target": "binary", "divergence": "js"}, 0.65, 1.0),
        ({"target": "distributional", "target_moments": [0.6], "moment_samples": 256}, 0.42, 0.8),
    ],
    ids=["always", "in six of ten"],
)
def test_stories_move_to_the_target_and_not_beyond(tmp_path: Path, settings: dict, low: float, high: float) -> None:
    row = Row(FDPGTrainer, FDPGConfig, lambda _: PROMPT, settings, {"reward_funcs": a_boy})
    trainer = row.start(
        tmp_path,
        model=str(MINI_LM),
        max_steps=10,
        num_generations=64,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=128,
        num_generations_eval=128,
        max_completion_length=12,
        learning_rate=2e-5,
        logging_steps=2,
    )
    trainer.train()
    first = trainer.state.log_history[0]["features/a_boy/policy"]
    assert 0.05 < first < 0.35
    metrics = trainer.evaluate(PROMPT)
    assert low < metrics["eval_features/a_boy/policy"] <= high
    # KL(p, a) is log 5 for "always": far less than a model that has forgotten how to tell a story
    assert metrics["eval_divergence/kl_policy_base"] < 4
