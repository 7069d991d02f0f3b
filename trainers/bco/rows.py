# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The labels and the weights of the rows of a dataset."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollator


COLUMNS: dict[str, Any] = {
    "columns": [("prompt", "completion", "label"), ("chosen", "rejected")],
    "example": {"prompt": "The sky is", "completion": " blue.", "label": True},
    "texts": ("prompt", "completion", "chosen", "rejected"),
}


def check_labels(labels: Sequence[Any]) -> None:
    """
    Check that every label is True, False, 1 or 0: TRL would read 0.2 as True.

    Raises:
        ValueError: One is something else.
    """
    for label in labels:
        if label is None or isinstance(label, str) or label not in (True, False):
            raise ValueError(
                f"`label` must be True or 1 for desirable, False or 0 for undesirable completions, received {label!r}."
            )


@dataclass
class WeightedCollator:
    """Puts the labels and weights of the rows into the batch that another collator makes."""

    collator: DataCollator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        examples = [dict(example) for example in examples]  # TRL's vision collator writes into them
        labels = [example.get("label") for example in examples]
        check_labels(labels)
        weighted = any("udm_weight" in example for example in examples)
        weights = [1.0 if label else e.pop("udm_weight", None) for e, label in zip(examples, labels, strict=True)]
        batch = self.collator(examples)
        batch["label"] = torch.tensor(labels, dtype=torch.bool)
        if weighted:
            wrong = [w for w in weights if w is None or not (w > 0 and math.isfinite(w))]
            if wrong:
                raise ValueError(f"A `udm_weight` is {wrong[0]}, but on undesirable rows it must be positive.")
            batch["udm_weight"] = torch.tensor(weights)
        return batch
