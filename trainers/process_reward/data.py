# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Solutions as token ids, with the label of a step at the last token of its separator."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from datasets import Features, List, Value
from trl.trainer.utils import pad

from alignext.functional.process_reward import IGNORED
from alignext.rewards.process import encode_steps

from .config import ProcessRewardConfig


TOKENIZED = Features({"input_ids": List(Value("int32")), "labels": List(Value("float64"))})


@dataclass
class SolutionCollator:
    """Pads token ids and the labels of their positions to the longest solution."""

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(example["input_ids"]) for example in examples]
        labels = [torch.tensor(example["labels"], dtype=torch.float32) for example in examples]
        columns = ((ids, self.pad_token_id), ([torch.ones_like(row) for row in ids], 0), (labels, IGNORED))
        padded = [
            pad(rows, padding_value=filler, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
            for rows, filler in columns
        ]
        return dict(zip(("input_ids", "attention_mask", "labels"), padded, strict=True))


def tokenize(row: dict[str, Any], tokenizer: Any, args: ProcessRewardConfig) -> dict[str, list]:
    """Token ids and the label of every position, cut behind the last label that fits."""
    labels = _checked_labels(row, args.loss_type)
    ids, ends = encode_steps(tokenizer, row["prompt"], row["steps"], args.step_separator)
    labelled = {end: y for end, y in zip(ends, labels, strict=True) if y is not None}
    return _cut({"input_ids": ids, "labels": [labelled.get(i, IGNORED) for i in range(len(ids))]}, args.max_length)


def cut_if_long(row: dict[str, Any], tokenizer: Any, args: ProcessRewardConfig) -> dict[str, list]:
    """Token ids that were given, which stay as they are where they fit."""
    fits = args.max_length is None or len(row["input_ids"]) <= args.max_length
    return {name: row[name] for name in TOKENIZED} if fits else _cut(row, args.max_length)


def _cut(row: dict[str, Any], max_length: int | None) -> dict[str, list]:
    """Tokens up to the last one with a label that fits."""
    limit = math.inf if max_length is None else max_length
    length = max((i + 1 for i, y in enumerate(row["labels"]) if y != IGNORED and i < limit), default=0)
    return {"input_ids": row["input_ids"][:length], "labels": row["labels"][:length]}


def _checked_labels(row: dict[str, Any], loss_type: str) -> list[float | None]:
    labels, steps = row["labels"], row["steps"]
    where = f"The row of prompt {str(row['prompt'])[:80]!r}"
    for name, value in (("steps", steps), ("labels", labels)):
        if isinstance(value, str | Real):
            raise ValueError(f"{where} has the `{name}` {value!r}, but they must be a list: one per step.")
    if not steps or len(steps) != len(labels or []):
        raise ValueError(
            f"{where} has {len(steps or [])} `steps` and {len(labels or [])} `labels`. It needs one label (or null) "
            "per step, and at least one step."
        )
    for label in labels:
        if label is None:
            continue
        if not isinstance(label, Real) or not math.isfinite(label) or label == IGNORED:
            raise ValueError(f"{where} has the label {label!r}. Labels are finite numbers; null where there is none.")
        if loss_type == "bce" and not 0 <= label <= 1:
            raise ValueError(
                f"{where} has the label {label}, but with `loss_type='bce'` labels are probabilities in [0, 1]. Use "
                "`loss_type='mse'` for values."
            )
    return labels
