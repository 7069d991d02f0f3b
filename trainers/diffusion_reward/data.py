# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Prompts as a dataset or a function, their batches, and the order in which they come."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from alignext.training.door import check_dataset, checked_stream


ROW = "_row"  # the number of a row, on which its random numbers depend


def prepare_prompts(data: Any, name: str) -> Any:
    """
    A dataset of prompts with numbered rows; one that has them stays as it is.

    Args:
        data (`Dataset`, `IterableDataset` or `Callable`): With a column `prompt`; or a function without arguments,
            that gives a prompt, a row, or a pair of a prompt and the other columns.
        name (`str`): The argument, for messages.

    Raises:
        ValueError: There is no column `prompt`, or a prompt is empty.
    """
    if callable(data) and not isinstance(data, Dataset | IterableDataset):
        data = IterableDataset.from_generator(_rows_of, gen_kwargs={"function": data})
    columns = check_dataset(data, name, columns=[["prompt"]], example={"prompt": "a red fox"}, texts=["prompt"])
    if ROW in columns:  # it was prepared before
        return data
    if isinstance(data, Dataset):
        for number, prompt in enumerate(data["prompt"]):
            _check(prompt, number, name)
        return data.add_column(ROW, range(len(data)))

    def numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
        _check(row["prompt"], number, name)
        return {ROW: number}

    return checked_stream(data, name, ["prompt"], ["prompt"]).map(numbered, with_indices=True)


def _rows_of(function: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    while True:
        made = function()
        if isinstance(made, tuple):
            made = {"prompt": made[0], **made[1]}
        yield made if isinstance(made, dict) else {"prompt": made}


def _check(prompt: Any, number: int, name: str) -> None:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f"`{name}` must have a text in the column 'prompt', received {prompt!r} at row {number} (rows count from "
            "0)."
        )


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`prompts`, the other `columns`, and the `index` of each row."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", ROW)}
    index = torch.tensor([row[ROW] for row in rows])
    return {"prompts": [row["prompt"] for row in rows], "columns": columns, "index": index}


class RepeatedChunks(torch.utils.data.Sampler):
    """
    Rows in a random order, chunk after chunk, each chunk several times; what does not fill a chunk is left out.

    Args:
        count (`int`): Number of rows.
        chunk (`int`): Rows of an update.
        repeats (`int`): Updates that a chunk is for.
        seed (`int`): Of the order, another in each epoch.

    Raises:
        ValueError: The rows do not fill a chunk.
    """

    def __init__(self, count: int, chunk: int, repeats: int, seed: int) -> None:
        if count < chunk:
            raise ValueError(
                f"`train_dataset` must have as many rows as an update takes, {chunk}, received {count}: with "
                "`num_iterations` they are drawn once for several updates. Repeat them, or lower the batch size."
            )
        self.count, self.chunk, self.repeats, self.seed, self.epoch = count, chunk, repeats, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.chunk * self.chunk * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        for start in range(0, self.count // self.chunk * self.chunk, self.chunk):
            for _ in range(self.repeats):
                yield from order[start : start + self.chunk]
