# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""
The smallest thing that each trainer of language models must teach the embedded one, in a few steps: what follows names
that it was not trained on. The slow `test_effect.py` of each has stories that the model itself tells.
"""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from alignext.trainers.bco import BCOConfig, BCOTrainer
from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer
from alignext.trainers.mah_dpo import MAHDPOConfig, MAHDPOTrainer
from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer

from .contract import LORA, MINI_LM, Row


pytestmark = [
    pytest.mark.effect,
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning"),
]

NAMES, NEW_NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna"), ("Amy", "Bob", "Sue")
SPEAKS = (' "Hello!" said {}.', ' {} said, "I am here!"', ' "Look at me!" {} said.')
SILENT = (" {} was very sad.", " Then {} went home.", " {} sat on a big rock.")
OUTSIDE = (" {} sat under a tree.", " {} saw a bird in the garden.", " {} ran in the grass.")
BATCH = {"per_device_train_batch_size": 12, "learning_rate": 1e-4, "lr_scheduler_type": "constant"}


def prompt(name: str) -> str:
    return f"One day, {name} was at home."


def rows(names: tuple[str, ...], good: tuple[str, ...], bad: tuple[str, ...]) -> list[dict[str, str]]:
    return [
        {"prompt": prompt(name), "chosen": up.format(name), "rejected": down.format(name)}
        for name in names
        for up, down in zip(good, bad, strict=True)
    ]


@torch.no_grad()
def log_probability(model: PreTrainedModel, start: str, text: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(MINI_LM)
    ids = torch.tensor([tokenizer(start + text).input_ids])
    logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
    return float(logps[len(tokenizer(start).input_ids) - 1 :].sum())


def accuracy(model: PreTrainedModel, good: tuple[str, ...], bad: tuple[str, ...]) -> float:
    """How often the implicit reward of a good completion is larger than that of a bad one; 0.5 is chance."""
    base, model = AutoModelForCausalLM.from_pretrained(MINI_LM).eval(), model.eval()
    found = []
    for row in rows(NEW_NAMES, good, bad):
        up, down = (
            log_probability(model, row["prompt"], row[side]) - log_probability(base, row["prompt"], row[side])
            for side in ("chosen", "rejected")
        )
        found.append(up > down)
    return sum(found) / len(found)


def test_bco_learns_from_thumbs(tmp_path: Path) -> None:
    pairs = rows(NAMES, SPEAKS, SILENT)
    data = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in pairs]
    data += [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in pairs]
    trainer = Row(BCOTrainer, BCOConfig, lambda _: Dataset.from_list(data)).start(
        tmp_path, model=str(MINI_LM), max_steps=5, **BATCH
    )
    trainer.train()
    assert accuracy(trainer.model, SPEAKS, SILENT) >= 0.75


@pytest.mark.slow
def test_mah_dpo_learns_objectives_that_weights_choose_between(tmp_path: Path) -> None:
    data = [row | {"objective": "speaks"} for row in rows(NAMES, SPEAKS, OUTSIDE)]
    data += [row | {"objective": "outside"} for row in rows(NAMES, OUTSIDE, SPEAKS)]  # one is the other's opposite
    trainer = Row(MAHDPOTrainer, MAHDPOConfig, lambda _: Dataset.from_list(data)).start(
        tmp_path, model=str(MINI_LM), max_steps=6, **BATCH
    )
    trainer.train()
    for name, good, bad in (("speaks", SPEAKS, OUTSIDE), ("outside", OUTSIDE, SPEAKS)):
        with trainer.model.mixed_heads({name: 1}):
            assert accuracy(trainer.model, good, bad) >= 0.75, name


def test_process_reward_learns_what_a_step_is_worth(tmp_path: Path) -> None:
    data = [
        {"prompt": row["prompt"], "steps": [row["chosen"], row["rejected"]], "labels": [1.0, 0.0]}
        for row in rows(NAMES, SPEAKS, SILENT)
    ] + [
        {"prompt": row["prompt"], "steps": [row["rejected"], row["chosen"]], "labels": [0.0, 1.0]}
        for row in rows(NAMES, SPEAKS, SILENT)
    ]
    trainer = Row(ProcessRewardTrainer, ProcessRewardConfig, lambda _: Dataset.from_list(data)).start(
        tmp_path, model=str(MINI_LM), max_steps=8, **BATCH
    )
    trainer.train()
    scores = {
        kind: torch.cat(trainer.reward().scores([prompt(n) for n in NEW_NAMES], [[t.format(n)] for n in NEW_NAMES]))
        for kind, (t, *_) in {"speaks": SPEAKS, "silent": SILENT}.items()
    }
    assert (scores["speaks"] > scores["silent"]).all(), scores


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({"target": "binary", "divergence": "js"}, 0.6, 1.0),
        pytest.param(
            {"target": "distributional", "target_moments": [0.6], "moment_samples": 256},
            0.42,
            0.8,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["always", "in six of ten"],
)
def test_f_dpg_moves_to_the_target_and_not_beyond(tmp_path: Path, settings: dict, low: float, high: float) -> None:
    """The word after one beginning: "boy", as about one story in three has it."""
    data = Dataset.from_list([{"prompt": "Once upon a time, there was a little"}])

    def a_boy(completions: list[str], **kwargs: object) -> list[float]:
        return [float("boy" in text.split()) for text in completions]

    row = Row(FDPGTrainer, FDPGConfig, lambda _: data, settings, {"reward_funcs": a_boy})
    trainer = row.start(
        tmp_path,
        model=str(MINI_LM),
        peft_config=LORA,
        max_steps=8,
        num_generations=32,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        num_generations_eval=128,
        max_completion_length=2,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
    )
    trainer.train()
    first = trainer.state.log_history[0]["features/a_boy/policy"]
    assert 0.05 < first < low - 0.05
    metrics = trainer.evaluate(data)
    assert low < metrics["eval_features/a_boy/policy"] <= high
    assert metrics["eval_divergence/kl_policy_base"] < 4
