# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What `ProcessRewardTrainer` does beyond the contract of all trainers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer
from trl import RewardConfig

from alignext.decoding.guided import guided_generate
from alignext.functional.process_reward import process_reward_loss
from alignext.rewards.process import ProcessReward, ValueHead, encode_steps
from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer

from ..contract import LM, MINI_LM, Row, curve, solutions, weights


ROW = Row(
    ProcessRewardTrainer, ProcessRewardConfig, solutions, auto=AutoModelForTokenClassification,
    auto_settings={"num_labels": 1}, task="TOKEN_CLS",
)  # fmt: skip
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


def solution(labels: Any, steps: Any = None, prompt: str = "Tom was sad.") -> Dataset:
    steps = [f"Step {i}." for i in range(len(labels))] if steps is None else steps
    return Dataset.from_list([{"prompt": prompt, "steps": steps, "labels": labels}])


# The loss


@pytest.mark.parametrize("loss_type", ["bce", "mse"])
def test_one_pass_has_loss_and_gradient_of_a_pass_per_prefix(tmp_path: Path, loss_type: str) -> None:
    """The reference way: every prefix of every solution on its own, scored at its end."""
    trainer = ROW.start(tmp_path, loss_type=loss_type)
    tokenizer, model = trainer.processing_class, trainer.model.train()
    rows = [
        {"prompt": "Tom was sad.", "steps": ["He cried.", "He went home.", "He ate."], "labels": [0.0, 0.5, 1.0]},
        {"prompt": "Lily ran.", "steps": ["She fell into the water."], "labels": [1.0]},
    ]
    batch = trainer.data_collator(list(trainer._prepare_dataset(Dataset.from_list(rows), tokenizer, trainer.args, "")))
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    at_once = {name: weight.grad.clone() for name, weight in model.named_parameters()}

    model.zero_grad()
    total = 0.0
    for row in rows:
        n = len(row["steps"])
        for t in range(1, n + 1):
            ids, _ = encode_steps(tokenizer, row["prompt"], row["steps"][:t], "\n")
            logit = model(torch.tensor([ids])).logits[:, -1]
            total += process_reward_loss(logit, torch.tensor([[row["labels"][t - 1]]]), loss_type=loss_type) / n
    (total / len(rows)).backward()
    assert loss.item() == pytest.approx(total.item() / len(rows), rel=1e-5)
    for name, weight in model.named_parameters():
        assert (weight.grad - at_once[name]).norm() <= 1e-4 * at_once[name].norm() + 1e-6, name


def test_a_solution_is_read_once(tmp_path: Path) -> None:
    trainer = ROW.start(tmp_path, max_steps=1)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"].sum().item()), with_kwargs=True
    )
    trainer.train()
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    assert len(seen) == 1 and seen[0] <= sum(sorted(lengths)[-4:])


def test_metrics_are_those_of_the_labelled_steps(tmp_path: Path) -> None:
    trainer = ROW.start(tmp_path, learning_rate=0.0, max_steps=2)
    trainer.train()
    scores = torch.cat(trainer.reward().scores(solutions()["prompt"], solutions()["steps"]))
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(log["mean_label"] == 0.5 for log in logs)
    assert sum(log["mean_score"] for log in logs) / 2 == pytest.approx(scores.mean().item(), rel=1e-4)
    labels = torch.tensor(solutions()["labels"]).flatten()
    right = ((scores > 0.5) == (labels > 0.5)).float().mean().item()
    assert sum(log["accuracy"] for log in logs) / 2 == pytest.approx(right)
    assert logs[-1]["num_tokens"] == sum(len(row["input_ids"]) for row in trainer.train_dataset)


def test_learns_and_scores_prefixes_as_they_stand(tmp_path: Path) -> None:
    trainer = ROW.start(tmp_path, model=str(MINI_LM), max_steps=12, learning_rate=1e-4)
    trainer.train()
    assert curve(trainer)[-1][1] < 0.5 * curve(trainer)[0][1]
    reward = trainer.reward()
    row = solutions()[0]
    whole = reward.scores([row["prompt"]], [row["steps"]])[0]
    assert whole[0] > whole[1]
    assert reward([row["prompt"]], steps=[row["steps"][:1]]).item() == pytest.approx(whole[0].item(), abs=1e-5)


# Data


def test_label_stands_behind_its_step(tmp_path: Path) -> None:
    trainer = ROW.start(tmp_path, dataset=solution([0.25, None, 1.0]), step_separator=" ##")
    (row,) = trainer.train_dataset
    tokenizer = trainer.processing_class
    labelled = [i for i, label in enumerate(row["labels"]) if label != -100]
    assert [row["labels"][i] for i in labelled] == [0.25, 1.0]
    assert labelled[-1] == len(row["input_ids"]) - 1
    texts = [tokenizer.decode(row["input_ids"][: i + 1], skip_special_tokens=True) for i in labelled]
    assert texts[0].endswith("Step 0. ##") or texts[0].endswith("Step 0.  ##")
    assert texts[1].count("##") == 3


def test_long_solutions_are_cut_behind_the_last_step_that_fits(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(LM)
    ids, ends = encode_steps(tokenizer, "Tom was sad.", ["Step 0.", "Step 1.", "Step 2."], "\n")
    trainer = ROW.start(tmp_path, dataset=solution([0.0, 1.0, 1.0]), max_length=ends[2])
    (row,) = trainer.train_dataset
    assert row["input_ids"] == ids[: ends[1] + 1]
    assert [label for label in row["labels"] if label != -100] == [0.0, 1.0]
    two = Dataset.from_list([*solution([1.0]), *solution([1.0], prompt="Tom was sad. " * 9)])
    assert len(ROW.start(tmp_path, dataset=two, max_length=ends[0] + 1).train_dataset) == 1
    with pytest.raises(ValueError, match="`max_length`=5"):
        ROW.start(tmp_path, dataset=solution([0.0]), max_length=5)


def test_tokenized_solutions_are_cut_as_texts_are(tmp_path: Path) -> None:
    whole = ROW.start(tmp_path, dataset=solution([0.0, 1.0, 1.0]), max_length=None).train_dataset
    limit = len(whole[0]["input_ids"]) - 1
    (cut,) = ROW.start(tmp_path, dataset=solution([0.0, 1.0, 1.0]), max_length=limit).train_dataset
    assert ROW.start(tmp_path, dataset=whole, max_length=limit).train_dataset.to_list() == [cut]
    with pytest.raises(ValueError, match="`max_length`=5"):
        ROW.start(tmp_path, dataset=whole, max_length=5)


@pytest.mark.parametrize("column", ["tools", "chat_template_kwargs"])
def test_columns_for_the_template_are_not_dropped_silently(tmp_path: Path, column: str) -> None:
    with pytest.raises(ValueError, match=f"`train_dataset` has a column '{column}', which a process reward model"):
        ROW.start(tmp_path, dataset=solution([1.0]).add_column(column, ["{}"]))


@pytest.mark.parametrize("stream", [False, True], ids=["dataset", "stream"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (solution([0.0], ["a", "b"]), "2 `steps` and 1 `labels`"),
        (solution([], []), "0 `steps` and 0 `labels`"),
        (solution([1.5]), r"label 1\.5"),
        (solution([-100.0]), r"label -100\.0"),
        (solution([math.nan]), "label nan"),
        (solution(["good"]), "label 'good'"),
        (solution([1.0] * 4, "a. b"), "`steps` 'a. b'"),
        (solution(1.0, ["a"]), r"`labels` 1\.0"),
    ],
    ids=["count", "none", "range", "ignored", "nan", "text", "steps in one", "one label"],
)
def test_wrong_labels_are_named(tmp_path: Path, row: Dataset, message: str, stream: bool) -> None:
    with pytest.raises(ValueError, match=message):
        ROW.start(tmp_path, dataset=row.to_iterable_dataset() if stream else row).train()


def test_values_may_be_of_any_size(tmp_path: Path) -> None:
    trainer = ROW.start(tmp_path, dataset=solution([-3.0, 7.5]), loss_type="mse", max_steps=1)
    trainer.train()
    assert "accuracy" not in trainer.state.log_history[0]
    assert trainer.reward().loss_type == "mse"


def test_streams_and_tokenized_data(tmp_path: Path) -> None:
    plain = ROW.start(tmp_path)
    plain.train()
    tokenized = ROW.start(tmp_path, dataset=plain.train_dataset)
    tokenized.train()
    assert curve(tokenized) == curve(plain)
    stream = ROW.start(tmp_path, dataset=solutions().to_iterable_dataset())
    stream.train()
    assert len(curve(stream)) == 3


def test_a_batch_without_labels_has_no_mean_score(tmp_path: Path) -> None:
    unlabelled = [{"input_ids": [1, 300, 400], "labels": [-100.0] * 3}] * 4
    trainer = ROW.start(tmp_path, dataset=Dataset.from_list(unlabelled), max_steps=1)
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "loss" in log]
    assert log["loss"] == 0 and "mean_score" not in log


def test_evaluates_several_sets_and_gives_labels_to_metrics(tmp_path: Path) -> None:
    seen = []

    def compute_metrics(prediction: object) -> dict[str, float]:
        labelled = prediction.label_ids != -100
        seen.append(prediction.label_ids[labelled])
        return {"error": float(abs(prediction.predictions[..., 0][labelled] - seen[-1]).mean())}

    row = Row(
        ProcessRewardTrainer, ProcessRewardConfig, solutions, arguments={"compute_metrics": compute_metrics}
    )  # fmt: skip
    halves = {"easy": solutions().select(range(4)), "hard": solutions().select(range(4, 8))}
    metrics = row.start(tmp_path, eval_dataset=halves).evaluate()
    assert {"eval_easy_loss", "eval_hard_loss", "eval_hard_error"} <= metrics.keys()
    assert sorted(seen[0].tolist()) == [0.0] * 4 + [1.0] * 4


# Saving and using


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_what_is_saved_scores_as_what_was_trained(tmp_path: Path, peft_config: LoraConfig | None) -> None:
    trainer = ROW.start(tmp_path, peft_config=peft_config, step_separator=" ##")
    trainer.train()
    trainer.save_model()
    reward = ProcessReward.from_pretrained(tmp_path)
    assert (reward.step_separator, reward.loss_type) == (" ##", "bce")
    rows = solutions()
    ours, loaded = (r.scores(rows["prompt"], rows["steps"]) for r in (trainer.reward(), reward))
    torch.testing.assert_close(ours, loaded, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_guides_decoding(tmp_path: Path) -> None:
    trainer = ROW.start(tmp_path, max_steps=1)
    trainer.train()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(LM), trainer.processing_class
    settings = {"num_candidates": 3, "max_steps": 2}
    output = guided_generate(
        model, tokenizer, "Tom was sad.", trainer.reward(), generator=torch.Generator().manual_seed(0), **settings
    )
    scores = trainer.reward().scores(["Tom was sad."], [[step.text for step in output.steps[0]]])[0]
    assert [max(step.scores) for step in output.steps[0]] == pytest.approx(scores.tolist(), abs=1e-5)
    trainer.save_model()
    by_model = guided_generate(
        model, tokenizer, "Tom was sad.", AutoModelForTokenClassification.from_pretrained(tmp_path),
        generator=torch.Generator().manual_seed(0), **settings,
    )  # fmt: skip
    assert by_model.texts == output.texts


def test_a_value_head_on_a_frozen_model(tmp_path: Path) -> None:
    model = ROW.load()
    model.requires_grad_(False)
    model.score = ValueHead(model.config.hidden_size, torch.Generator().manual_seed(0))
    trainer = ROW.start(tmp_path, model=model, loss_type="mse", learning_rate=1e-3)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    assert {name for name in after if not torch.equal(before[name], after[name])} == {
        name for name in after if name.startswith("score.")
    }


def test_card_shows_how_to_score(tmp_path: Path) -> None:
    trainer = ROW.start(tmp_path)
    trainer.create_model_card(model_name="stepwise")
    card = (tmp_path / "README.md").read_text()
    assert 'ProcessReward.from_pretrained("stepwise")' in card
    assert "pipeline(" not in card


# Settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss_type": "ce"}, "loss_type"),
        ({"step_separator": ""}, "step_separator"),
        ({"center_rewards_coefficient": 0.1}, "center_rewards_coefficient"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"`{named}"):
        ProcessRewardConfig(str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_needs_its_own_config_and_an_adapter_that_trains_the_head(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="RewardConfig"):
        ProcessRewardTrainer(str(LM), RewardConfig(str(tmp_path), use_cpu=True, bf16=False))
    row = Row(ProcessRewardTrainer, ProcessRewardConfig, solutions)
    with pytest.raises(ValueError, match=r"`peft_config\.task_type` is .*CAUSAL_LM"):
        row.start(tmp_path, peft_config=LORA)
    with pytest.raises(ValueError, match="num_labels=2"):
        row.start(tmp_path, model=AutoModelForTokenClassification.from_pretrained(LM, num_labels=2))


def test_settings_of_the_model_reach_it_and_the_config_keeps_them(tmp_path: Path) -> None:
    trainer = ROW.start(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    assert trainer.model.dtype == torch.bfloat16
    assert trainer.args.model_init_kwargs == {"dtype": "bfloat16"}
