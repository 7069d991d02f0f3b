# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Underlying distribution matching: which rows it weighs, where the weights come from, what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignext.trainers.bco import BCOConfig, BCOTrainer
from alignext.trainers.bco.matching import embed_with_policy, prompt_text
from alignext.trainers.bco.rows import WeightedCollator

from ..contract import LM, Row, curve, preference, unpaired, weights
from .test_bco_trainer import BCO, LORA, batch_of, logged


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]

NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue")


def shifted() -> Dataset:
    """Of five completions of a prompt about a cat four are liked, of a prompt about a dog one."""
    return Dataset.from_list(
        [
            {"prompt": f"{name} had a {animal}.", "completion": " It ran.", "label": (animal == "cat") != (i == 4)}
            for name in NAMES
            for i in range(5)
            for animal in ("cat", "dog")
        ]
    )


def by_animal(prompts: list[str]) -> np.ndarray:
    """An embedder: what the prompt is about, and something that does not matter."""
    return np.array([[float("cat" in prompt), len(prompt) / 10] for prompt in prompts])


def with_embedder(embed: object) -> Row:
    return Row(BCOTrainer, BCOConfig, lambda _: shifted(), arguments={"prompt_embedder": embed})


@pytest.mark.parametrize("source", ["embedder", "policy"])
def test_undesirable_rows_are_weighted_to_the_prompts_of_desirable_ones(tmp_path: Path, source: str) -> None:
    if source == "embedder":
        trainer = with_embedder(by_animal).start(tmp_path, eval_dataset=shifted().select(range(8)))
    else:
        trainer = BCO.start(
            tmp_path, dataset=shifted(), udm_embedding="policy", eval_dataset=shifted().select(range(8))
        )
    rows = list(trainer.train_dataset)
    assert {row["udm_weight"] for row in rows if row["label"]} == {1.0}
    cats, dogs = (
        np.mean([row["udm_weight"] for row in rows if not row["label"] and animal in row["prompt"]])
        for animal in ("cat", "dog")
    )
    assert dogs < 1 < cats  # p(desirable) / p(undesirable), not the inverse
    assert trainer.eval_dataset[0]["udm_weight"] == 1.0 and trainer.eval_dataset[1]["udm_weight"] < 1
    trainer.train()
    assert logged(trainer, "udm_weight")
    metrics = trainer.evaluate(shifted().select(range(4)))  # data it has not seen yet
    expected = np.mean([row["udm_weight"] for row in rows[:4] if not row["label"]])
    assert metrics["eval_udm_weight"] == pytest.approx(expected, rel=1e-5)


def test_an_embedder_sees_each_prompt_once_a_dataset(tmp_path: Path) -> None:
    seen = []

    def embed(prompts: list[str]) -> torch.Tensor:
        seen.append(prompts)
        return torch.tensor(by_animal(prompts))

    with_embedder(embed).start(tmp_path)
    assert all(len(prompts) == len(set(prompts)) for prompts in seen)
    assert [len(prompts) for prompts in seen] == [16, 16]  # the sample, then the undesirable ones


@pytest.mark.parametrize(
    ("embed", "named"),
    [
        (lambda prompts: np.zeros((3, 2)), r"\(3, 2\)"),
        (lambda prompts: np.zeros(len(prompts)), r"\(16,\)"),
        (lambda prompts: np.full((len(prompts), 2), np.nan), "finite: False"),
    ],
    ids=["rows", "dimensions", "nan"],
)
def test_bad_embeddings_are_named(tmp_path: Path, embed: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        with_embedder(embed).start(tmp_path)


def weighted(value: float | None, desirable: float | None = 1.0) -> Dataset:
    return Dataset.from_list([{**row, "udm_weight": desirable if row["label"] else value} for row in unpaired()])


def test_weights_of_one_change_nothing(tmp_path: Path) -> None:
    runs = []
    for dataset in (unpaired(), weighted(1.0)):
        trainer = BCO.start(tmp_path, dataset=dataset)
        trainer.train()
        runs.append((curve(trainer), weights(trainer.model)))
    assert runs[0][0] == runs[1][0]
    assert not [name for name, weight in runs[0][1].items() if not torch.equal(weight, runs[1][1][name])]


def test_own_weights_reach_the_loss(tmp_path: Path) -> None:
    losses = []
    for dataset in (weighted(1.0), weighted(3.0, desirable=None)):  # on desirable rows nobody reads them
        trainer = BCO.start(tmp_path, dataset=dataset, max_steps=1, train_sampling_strategy="sequential")
        trainer.train()
        losses.append(curve(trainer)[0][1])
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5)  # (1 + 3) / (1 + 1), as all rewards are 0
    assert logged(trainer, "udm_weight") == [3.0]


def test_own_weights_take_the_place_of_a_fit(tmp_path: Path) -> None:
    trainer = with_embedder(lambda prompts: 1 / 0).start(tmp_path, dataset=weighted(2.0))
    assert batch_of(trainer)["udm_weight"].tolist() == [1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), None], ids=str)
def test_bad_weights_are_refused(weight: float | None) -> None:
    with pytest.raises(ValueError, match="udm_weight"):
        WeightedCollator(lambda examples: {})([{"label": True, "udm_weight": 1.0}, {"label": 0, "udm_weight": weight}])


def test_stream_needs_a_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="column `udm_weight`"):
        with_embedder(by_animal).start(tmp_path, dataset=shifted().to_iterable_dataset())
    trainer = with_embedder(by_animal).start(tmp_path, dataset=weighted(2.0).to_iterable_dataset())
    trainer.train()
    assert logged(trainer, "udm_weight") == [2.0, 2.0, 2.0]


def test_two_sources_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`prompt_embedder` and `udm_embedding`"):
        with_embedder(by_animal).start(tmp_path, udm_embedding="policy")


def test_pairs_have_nothing_to_match(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = BCO.start(tmp_path, dataset=preference(), udm_embedding="policy")
    assert trainer.train_dataset["udm_weight"] == pytest.approx([1.0] * 16, abs=0.05)


def test_policy_embeds_a_prompt_alone_as_in_a_batch_and_without_its_adapter() -> None:
    tokenizer = AutoTokenizer.from_pretrained(LM)
    prompts = tokenizer(["One day, a cat ran away from home.", "Tom", "Lily had a ball."]).input_ids
    model = AutoModelForCausalLM.from_pretrained(LM).train()
    together = embed_with_policy(model, prompts, batch_size=3)
    alone = torch.cat([embed_with_policy(model, [ids], batch_size=1) for ids in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    assert model.training
    adapted = get_peft_model(model, LORA)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data)
    torch.testing.assert_close(embed_with_policy(adapted, prompts, batch_size=3), together, rtol=0, atol=0)


def test_text_of_a_prompt() -> None:
    assert prompt_text("One day") == "One day"
    picture = {"type": "image"}
    conversation = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]},
    ]
    assert prompt_text(conversation) == "Be kind.\n\nWhat is this?"
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    assert prompt_text([*conversation, call, {"role": "tool"}]) == "Be kind.\n\nWhat is this?"
