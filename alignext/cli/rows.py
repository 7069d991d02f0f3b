# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The datasets of the commands that train: a file, a folder, a Hub id, a mixture, or one prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignext.cli.inputs import READERS, read_rows


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from trl import DatasetMixtureConfig, ScriptArguments

# Columns of pictures, all that the trainers know.
_PICTURES = ("image_chosen", "image_rejected", "chosen", "rejected", "jpg_0", "jpg_1", "image", "source", "mask")
_PICTURES += ("video_chosen", "video_rejected", "video")


def load_rows(script: "ScriptArguments", mixture: "DatasetMixtureConfig", *, example: str) -> "DatasetDict":
    """
    The dataset by splits: a mixture from the YAML file, or a file (such as `example`), folder or Hub id.

    Raises:
        ValueError: There is none, or its rows cannot be read.
        OSError: There is no such file, folder or repository.
    """
    from datasets import load_dataset
    from trl import get_dataset

    if mixture.datasets:
        return get_dataset(mixture)
    name = script.dataset_name
    if not name:
        raise ValueError(f"There is no dataset. Pass --dataset_name, a file such as {example}, a folder or a Hub id.")
    path = Path(name)
    if path.suffix in READERS:
        return read_rows(path, name="--dataset_name", streaming=script.dataset_streaming)
    if path.is_file():
        raise ValueError(f"--dataset_name {path} is none of {', '.join(READERS)}. Write its rows into one of these.")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
        raise FileNotFoundError(f"--dataset_name {name} is no folder, and no Hub id, which is written OWNER/NAME.")
    return load_dataset(name, script.dataset_config, streaming=script.dataset_streaming)


def prompt_rows(script: Any, mixture: "DatasetMixtureConfig", *, at_least: int = 1) -> "dict[str, Dataset]":
    """
    The dataset of `--prompt`, its prompts repeated until there are `at_least` so many rows.

    Raises:
        ValueError: There is another dataset, too.
    """
    from datasets import Dataset

    if script.dataset_name or mixture.datasets:
        raise ValueError("Both --prompt and a dataset are given. Pass one of them.")
    prompts = [script.prompt] if isinstance(script.prompt, str) else list(script.prompt)
    rows = Dataset.from_list([{"prompt": prompt} for prompt in prompts] * -(-at_least // len(prompts)))
    return {script.dataset_train_split: rows, script.dataset_test_split: rows}


def load_pairs(script: "ScriptArguments", mixture: "DatasetMixtureConfig") -> "DatasetDict":
    """
    The dataset of pairs of pictures, or votes on them, by splits. Paths of pictures in a file are relative to it; a
    folder may have `winner/`, `loser/` and `source/`.
    """
    from datasets import DatasetDict

    path = Path(script.dataset_name or "")
    if (path / "winner").is_dir() and (path / "loser").is_dir():
        from alignext.training.pair_folders import pairs_from_folder

        return DatasetDict({script.dataset_train_split: pairs_from_folder(path)})
    dataset = load_rows(script, mixture, example="pairs.jsonl")
    if not path.is_file():
        return dataset

    def absolute(row: dict) -> dict:
        paths = {name: row[name] for name in _PICTURES if isinstance(row.get(name), str) and "://" not in row[name]}
        return {name: str(path.parent / file) for name, file in paths.items()}

    return dataset.map(absolute)


def splits(
    dataset: "dict[str, Dataset]", script: "ScriptArguments", config: Any, mixture: "DatasetMixtureConfig"
) -> dict[str, Any]:
    """
    `train_dataset` and `eval_dataset` of a trainer. With `--test_split_size`, rows of the training split are held out
    where there is no other.

    Raises:
        ValueError: A split does not exist.
    """
    wanted = {"train": script.dataset_train_split}
    train, test, size = script.dataset_train_split, script.dataset_test_split, mixture.test_split_size
    if size is not None and not mixture.datasets and train in dataset and test not in dataset:
        if script.dataset_streaming:
            raise ValueError("--test_split_size cannot split a stream. Leave --dataset_streaming out.")
        parts = dataset[train].train_test_split(test_size=size, seed=config.seed)
        dataset = {train: parts["train"], test: parts["test"]}
    if config.eval_strategy != "no":
        wanted["test"] = test
    for use, split in wanted.items():
        if split not in dataset:
            ways = (
                ", hold rows out with --test_split_size 0.1, or leave --eval_strategy out." if use == "test" else "."
            )
            raise ValueError(
                f"The dataset has no split {split!r}, only {', '.join(dataset)}. Name one with "
                f"--dataset_{use}_split{ways}"
            )
    return {("train_dataset" if use == "train" else "eval_dataset"): dataset[split] for use, split in wanted.items()}
