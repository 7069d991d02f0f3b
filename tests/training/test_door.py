# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The door of the trainers: settings and data."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from trl import KTOConfig

from alignext.trainers.bco import BCOConfig
from alignext.training import cells, door


pytestmark = [
    # TRL reads and sets `gradient_checkpointing`, which transformers has renamed.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning"),
]

ROW = {"prompt": "The sky is", "completion": " blue.", "label": True}
COLUMNS: dict[str, Any] = {
    "columns": [("prompt", "completion", "label"), ("chosen", "rejected")],
    "example": ROW,
    "texts": ("prompt", "completion", "chosen", "rejected"),
}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}


def asked(content: str | None, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} | more]


@pytest.mark.parametrize(
    "dataset",
    [
        Dataset.from_list([ROW]),
        Dataset.from_list([ROW, ROW | {"prompt": None}, ROW]).select([0, 2]),
        Dataset.from_list([ROW | {"note": None}, ROW | {"note": None}]),
        Dataset.from_list([ROW | {"prompt": asked("hi"), "completion": [CALL]}]),
        Dataset.from_list([ROW]).to_iterable_dataset(),
        Dataset.from_list([{"chosen": " blue.", "rejected": " green."}]),
    ],
    ids=["rows", "null not selected", "null elsewhere", "call of a tool", "stream", "pairs"],
)
def test_good_data_comes_in(dataset: Any) -> None:
    assert door.check_dataset(dataset, **COLUMNS) == list(next(iter(dataset)))


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (DatasetDict(train=Dataset.from_list([ROW])), r"received a DatasetDict of 'train'. Choose a split"),
        ({"a": Dataset.from_list([ROW])}, r"received a dict of 'a'"),
        ([ROW], r"received a list. `Dataset.from_list`"),
        ("my/data", r"received a str"),
        (Dataset.from_list([]), "must have rows, received an empty dataset"),
        (Dataset.from_list([ROW]).select([]), "must have rows, received an empty dataset"),
        (IterableDataset.from_generator(lambda: iter([])), "must have rows, received an empty dataset"),
        (Dataset.from_list([{"text": "a"}]), r"found \['text'\], expected 'prompt', .* or 'chosen', .*example row: {"),
        (Dataset.from_list([ROW, ROW | {"prompt": None}]), r"row 1, column prompt \(rows .*row\['prompt'\] is not"),
        (Dataset.from_list([ROW, ROW, ROW | {"label": None}]), "row 2, column label"),
        (Dataset.from_list([ROW | {"prompt": asked("a")}, ROW | {"prompt": asked(None)}]), r"prompt\[0\]\['content"),
        (Dataset.from_list([ROW | {"completion": None}]), "row 0, column completion"),
        (Dataset.from_list([ROW | {"completion": 7}]), "texts in the column 'completion', received int64 .* as 7"),
        (Dataset.from_list([ROW | {"prompt": True}]), "texts in the column 'prompt', received bool"),
    ],
)
def test_bad_data_is_named(dataset: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"`my_data` .*{said}"):
        door.check_dataset(dataset, "my_data", **COLUMNS)


def test_evaluations_are_named(tmp_path: Path) -> None:
    good, bad = Dataset.from_list([ROW]), Dataset.from_list([ROW | {"prompt": None}])
    door.check_datasets(good, DatasetDict(a=good, b=good), **COLUMNS)
    door.check_datasets(None, None, **COLUMNS)
    with pytest.raises(ValueError, match=r"`eval_dataset\['b'\]` must have no null"):
        door.check_datasets(good, {"a": good, "b": bad}, **COLUMNS)
    with pytest.raises(ValueError, match="`train_dataset` must have no null"):
        door.check_datasets(bad, good, **COLUMNS)


def test_a_stream_is_checked_as_it_comes() -> None:
    stream = Dataset.from_list([ROW, ROW, ROW | {"prompt": None}]).to_iterable_dataset()
    rows = iter(door.checked_stream(stream, "train_dataset", ["prompt"]))
    assert [next(rows), next(rows)] == [ROW, ROW]
    with pytest.raises(ValueError, match=r"`train_dataset` .* row 2, column prompt"):
        next(rows)
    whole = Dataset.from_list([ROW])
    assert door.checked_stream(whole, "train_dataset", ["prompt"]) is whole


def test_values_of_mixed_json_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"label": true}\n{"label": 0}\n{"label": true}\n{"label": 0}\n')
    mixed = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train")
    assert cells.distinct(mixed, "label") == [True, 0]
    assert cells.distinct(Dataset.from_list([ROW, ROW]), "label") == [True]


def test_a_copy_of_settings_leaves_those_of_the_user(tmp_path: Path) -> None:
    args = BCOConfig(str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={"dtype": "float32"})
    copied = door.with_args(args, loss_type="other")
    copied.model_init_kwargs["revision"] = "main"
    assert (copied.loss_type, args.loss_type) == ("other", "bco")
    assert args.model_init_kwargs == {"dtype": "float32"}
    assert copied.device == args.device
    with pytest.raises(ValueError, match=r"fields of BCOConfig, received \['los_type'\]"):
        door.with_args(args, los_type="other")


def test_settings_are_of_the_right_class(tmp_path: Path) -> None:
    args = KTOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="`args` must be a `BCOConfig`, received a KTOConfig"):
        door.settings(args, BCOConfig, "some-BCO")


@pytest.mark.parametrize(("model", "name"), [("a/b", "b"), ("/folder/b/", "b"), ("b", "b"), ("/", "model")])
def test_name_of_a_model(model: str, name: str) -> None:
    assert door.model_name(model) == name
