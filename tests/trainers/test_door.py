# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Data that comes through the door of the language trainers, and metrics that do not depend on batches."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from huggingface_hub import ModelCard
from transformers.utils import logging as transformers_logging

import alignext
from alignext.trainers.bco import BCOConfig, BCOTrainer
from alignext.trainers.f_dpg import FDPGConfig, FDPGTrainer
from alignext.trainers.mah_dpo import MAHDPOConfig, MAHDPOTrainer
from alignext.trainers.process_reward import ProcessRewardConfig, ProcessRewardTrainer

from .contract import (
    LM,
    LORA,
    Row,
    count_vowels,
    preference,
    preference_by_objective,
    prompts,
    solutions,
    unpaired,
)


ROWS = {
    "bco": Row(BCOTrainer, BCOConfig, unpaired),
    "mah-dpo": Row(MAHDPOTrainer, MAHDPOConfig, preference_by_objective, task="CAUSAL_LM"),
    "process-reward": Row(ProcessRewardTrainer, ProcessRewardConfig, solutions, task="TOKEN_CLS"),
}
every_row = pytest.mark.parametrize("name", ROWS)

pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]


def with_cell(dataset: Dataset, row: int, column: str, value: Any) -> Dataset:
    rows = dataset.to_list()
    rows[row][column] = value
    return Dataset.from_list(rows)


# What comes in: nothing of a model is loaded before it is refused, hence the name that there is none of


@every_row
def test_splits_are_not_data(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    with pytest.raises(ValueError, match=r"received a DatasetDict of 'train', 'test'\. Choose a split"):
        splits = DatasetDict(train=row.dataset(False), test=row.dataset(False))
        row.start(tmp_path, dataset=splits, model="no/such/model")


@every_row
def test_nothing_is_not_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`train_dataset` must have rows, received an empty dataset"):
        ROWS[name].start(tmp_path, dataset=ROWS[name].dataset(False).select([]), model="no/such/model")


NULLS = {
    "bco": ["prompt", "completion", "label"],
    "mah-dpo": ["prompt", "chosen", "rejected", "objective"],
    "process-reward": ["prompt", "steps", "labels"],
}


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in ROWS for column in NULLS[name]])
def test_a_null_is_named_by_row_and_column(name: str, column: str, tmp_path: Path) -> None:
    row = ROWS[name]
    dataset = with_cell(row.dataset(False), 3, column, None)
    with pytest.raises(ValueError, match=f"`train_dataset` must have no null, received one at row 3, column {column}"):
        row.start(tmp_path, dataset=dataset, model="no/such/model")


def test_a_null_step_is_named(tmp_path: Path) -> None:
    dataset = with_cell(solutions(), 1, "steps", [None, " So 2."])
    with pytest.raises(ValueError, match=r"row 1, column steps\[0\]"):
        ROWS["process-reward"].start(tmp_path, dataset=dataset, model="no/such/model")


def test_a_null_of_an_evaluation_or_a_stream_is_named(tmp_path: Path) -> None:
    row, dataset = ROWS["bco"], with_cell(unpaired(), 3, "completion", None)
    with pytest.raises(ValueError, match=r"`eval_dataset` must have no null, received one at row 3"):
        row.start(tmp_path, eval_dataset=dataset, model="no/such/model")
    trainer = row.start(tmp_path, dataset=dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match=r"`train_dataset` must have no null, received one at row 3, column comp"):
        trainer.train()


@every_row
def test_prompts_that_fill_the_length_are_said_to(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`max_length`=3 tokens"):
        ROWS[name].start(tmp_path, max_length=3)


@every_row
def test_rows_that_the_length_leaves_out_are_counted(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = ROWS[name]
    long = with_cell(row.dataset(False), 2, "prompt", " and".join(["One day"] * 60))
    with caplog.at_level(logging.WARNING):
        trainer = row.start(tmp_path, dataset=long, max_length=64)
    (said,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert f"1 of {len(long)} rows of `train_dataset` are left out: with their prompts alone, `max_length`=64" in said
    assert len(trainer.train_dataset) == len(long) - 1


# Wrong without a word


@pytest.mark.parametrize("values", [[True, False], [1, 0], [1.0, 0.0], [True, None], [None, 0]])
def test_labels_of_steps_of_every_type_are_the_same(values: list, tmp_path: Path) -> None:
    def labels(values: list) -> torch.Tensor:
        dataset = Dataset.from_list([{"prompt": "2 + 3?", "steps": ["It is 5.", "So 6."], "labels": values}] * 2)
        trainer = ROWS["process-reward"].start(tmp_path, dataset=dataset)
        return trainer.data_collator([trainer.train_dataset[0]])["labels"][0]

    found, expected = labels(values), labels([None if value is None else float(value) for value in values])
    assert torch.equal(found, expected)
    assert found[found != -100].tolist() == [float(value) for value in values if value is not None]


@pytest.mark.parametrize("column", ["label", "completion"])
def test_pairs_with_a_column_of_single_completions_are_refused(column: str, tmp_path: Path) -> None:
    pairs = preference().add_column(column, [True] * 8 if column == "label" else ["a"] * 8)
    with pytest.raises(ValueError, match=rf"'chosen' and 'rejected' beside \['{column}'\]"):
        ROWS["bco"].start(tmp_path, dataset=pairs, model="no/such/model")


def test_objectives_are_names_or_numbers(tmp_path: Path) -> None:
    for values in ([True, False] * 4, [0.5, 1.0] * 4, [-1, 0] * 4):
        pairs = preference().add_column("objective", values)
        with pytest.raises(ValueError, match="`objective` must be the name of an objective in each row, or its numb"):
            ROWS["mah-dpo"].start(tmp_path, dataset=pairs)


LABELS = ["true", "0", "1", "false"]


def test_mixed_labels_of_json_lines(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "One day", "completion": " he ran.", "label": {label}}}' for label in LABELS]
    (tmp_path / "thumbs.jsonl").write_text("\n".join(lines))
    mixed = load_dataset("json", data_files=str(tmp_path / "thumbs.jsonl"), split="train")
    trainer = ROWS["bco"].start(tmp_path, dataset=mixed, max_steps=1)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert batch["label"].tolist() == [True, False, True, False]
    trainer.train()


# Metrics


METRICS = {
    "bco": ["loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "logps/rejected", "logits/chosen"],
    "mah-dpo": ["loss", "rewards/margins", "kind/rewards/margins", "lively/loss", "entropy", "mean_token_accuracy"],
    "process-reward": ["loss", "mean_score", "mean_label", "accuracy"],
}


@every_row
def test_metrics_of_an_evaluation_do_not_depend_on_its_batches(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    # unequal classes, objectives and lengths, which meet differently in each size of batch
    dataset = row.dataset(False).select([0, 1, 2, 3, 4, 6])
    if name == "bco":
        dataset = row.dataset(False).select([0, 1, 2, 4, 6, 9])
    trainer = row.start(tmp_path, eval_dataset=dataset, logging_steps=3)
    trainer.train()
    found = []
    for size in (1, 3, 4, 6):
        trainer.args.per_device_eval_batch_size = size
        found.append(trainer.evaluate())
    for metric in METRICS[name]:
        values = [logs[f"eval_{metric}"] for logs in found]
        assert values == pytest.approx([values[-1]] * 4, rel=1e-4, abs=1e-5), metric
    assert found[0].keys() == found[-1].keys()


def test_loss_of_an_evaluation_is_that_of_all_pairs_at_once(tmp_path: Path) -> None:
    for reduction in ("objective_mean", "example_mean"):
        trainer = ROWS["mah-dpo"].start(
            tmp_path,
            eval_dataset=preference_by_objective().select([0, 1, 2, 4]),
            objective_reduction=reduction,
            objective_loss_weights={"kind": 2.0, "lively": 1.0},
            per_device_eval_batch_size=1,
            max_steps=1,
        )
        trainer.train()
        logs = trainer.evaluate()
        kind, lively = logs["eval_kind/loss"], logs["eval_lively/loss"]
        of_all = (2 * kind + lively) / 3 if reduction == "objective_mean" else (2 * 3 * kind + lively) / 7
        assert logs["eval_loss"] == pytest.approx(of_all, rel=1e-6)


# Settings


@every_row
def test_settings_of_the_user_stay_as_they_are(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    given: dict[str, Any] = {"dtype": "float32"}
    args = row.config(str(tmp_path), use_cpu=True, bf16=False, report_to="none", model_init_kwargs=given)
    before = dict(vars(args))
    trainer = row.trainer(str(LM), args=args, train_dataset=row.dataset(False))
    assert vars(args) == before
    assert given == {"dtype": "float32"}
    assert trainer.args is not args
    assert trainer.args.model_init_kwargs == given
    assert trainer.args.to_dict() == args.to_dict()


@pytest.mark.parametrize("name", ["bco", "mah-dpo", "process-reward"])
@pytest.mark.parametrize("strategy", ["group_by_length"])
def test_rows_are_grouped_by_length(name: str, strategy: str, tmp_path: Path) -> None:
    row = ROWS[name]
    more = {"objective_sampling": "natural"} if name == "mah-dpo" else {}
    trainer = row.start(
        tmp_path, train_sampling_strategy=strategy, max_steps=1, eval_dataset=row.dataset(False), **more
    )
    lengths = next(iter(trainer.get_train_dataloader()))["attention_mask"].sum(1)
    assert lengths.max() >= max(
        sum(len(example[key]) for key in ("prompt_ids", "completion_ids", "input_ids") if key in example)
        for example in trainer.train_dataset
    )  # the longest rows come first, and with them those that are nearly as long
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: BCOConfig("out", generate_during_eval=True),
            "BCOConfig has no `generate_during_eval`. Use a callback",
        ),
        (lambda: BCOConfig("out", max_prompt_length=8), "BCOConfig has no `max_prompt_length`. Use `max_length`"),
        (
            lambda: BCOTrainer("gpt2", embedding_func=len),
            "BCOTrainer has no `embedding_func`. Use .*`prompt_embedder`",
        ),
    ],
)
def test_names_of_the_trainer_that_trl_had_point_to_the_page(call: Any, said: str) -> None:
    with pytest.raises(TypeError, match=rf"{said}.*docs/bco\.md"):
        call()


def test_an_embedder_that_raises_is_named(tmp_path: Path) -> None:
    def broken(texts: list[str]) -> torch.Tensor:
        raise KeyError("no such word")

    row = Row(BCOTrainer, BCOConfig, unpaired, arguments={"prompt_embedder": broken})
    with pytest.raises(ValueError, match=r"`prompt_embedder`, given 8 prompts, the first '.*', raised KeyError"):
        row.start(tmp_path)


def test_trainers_are_as_loud_as_transformers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one_class = unpaired().filter(lambda row: row["label"])
    before = transformers_logging.get_verbosity()
    try:
        for level, count in ((transformers_logging.WARNING, 1), (transformers_logging.ERROR, 0)):
            transformers_logging.set_verbosity(level)
            caplog.clear()
            ROWS["bco"].start(tmp_path, dataset=one_class)
            assert sum("nothing to separate" in record.getMessage() for record in caplog.records) == count
    finally:
        transformers_logging.set_verbosity(before)


# Cards

OF_SAMPLES = {"num_generations": 2, "max_completion_length": 8, "beta": 2.0}
WITH_CARDS = ROWS | {"f-dpg": Row(FDPGTrainer, FDPGConfig, prompts, OF_SAMPLES, {"reward_funcs": count_vowels})}


@pytest.mark.parametrize("name", WITH_CARDS)
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_card_names_no_folder_of_this_machine(name: str, peft_config: Any, tmp_path: Path) -> None:
    trainer = WITH_CARDS[name].start(tmp_path / "storyteller", peft_config=peft_config, max_steps=1)
    trainer.save_model()
    file = tmp_path / "storyteller" / "README.md"
    if peft_config is not None:  # PEFT has written one
        assert str(LM) not in file.read_text()
    trainer.create_model_card()
    text = file.read_text()
    assert "None" not in text
    assert str(LM) not in text and str(tmp_path) not in text
    assert f"- alignext: {alignext.__version__}" in text
    assert '"storyteller"' in text
    assert ModelCard.load(file).data.base_model is None
