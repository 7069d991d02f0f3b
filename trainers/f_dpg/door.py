# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The things that must fit before a model is loaded, and a dataset with rows enough for a batch."""

import math
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoConfig

from .config import FDPGConfig


def filling_a_batch(dataset: Dataset | IterableDataset, prompts: int) -> Dataset | IterableDataset:
    """
    The dataset, repeated as a whole if it has fewer rows than a generation batch has prompts: the parent drops what
    fills no batch, and would end without a step. All samples of a prompt count as one group, so that two times the
    same prompt is one prompt with twice as many generations.
    """
    if isinstance(dataset, IterableDataset):
        rows = sum(1 for _ in dataset.take(prompts))
        return dataset if rows in (0, prompts) else dataset.repeat(prompts // math.gcd(rows, prompts))
    rows = len(dataset)
    if not 0 < rows < prompts:
        return dataset
    return dataset.select(list(range(rows)) * (prompts // math.gcd(rows, prompts)))


def check(model: Any, number: int, args: FDPGConfig, dataset: Dataset | IterableDataset | None) -> None:
    """Name what is wrong before anything is loaded."""
    if args.z_estimator == "fixed" and args.z_value is None and dataset is not None:
        columns = list(next(iter(dataset)))
        if "log_z" not in columns:
            raise ValueError(
                f"`z_estimator='fixed'` needs `z_value`, or a column `log_z` in the dataset, which has {columns}."
            )
    if args.target_moments is not None and len(args.target_moments) != number:
        raise ValueError(
            f"There are {len(args.target_moments)} `target_moments` and {number} reward functions: give one each."
        )
    if isinstance(model, str):
        kwargs = {k: v for k, v in (args.model_init_kwargs or {}).items() if k in ("revision", "subfolder", "token")}
        config = AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code, **kwargs)
    else:
        config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(config).__name__} is an encoder-decoder model. f-DPG needs a causal language model.")
