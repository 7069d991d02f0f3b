# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The order of pairs of several objectives."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class ObjectiveSampler(Sampler[int]):
    """
    Rows of the objectives in turn: any consecutive ones are balanced to within one row, and with them every batch on
    every process and every accumulation of batches.

    Args:
        objective_ids (`Sequence[int]`): The objective of each row.
        count (`int`): Objectives.
        oversample (`bool`, *optional*, defaults to `False`):
            An epoch has as many rows of each objective as the largest has, smaller ones repeated; otherwise as the
            smallest has, drawn anew in every epoch.
        seed (`int`, *optional*, defaults to 0): The order depends on it and on the epoch alone.

    Raises:
        ValueError: An objective has no rows.
    """

    def __init__(self, objective_ids: Sequence[int], count: int, *, oversample: bool = False, seed: int = 0) -> None:
        ids = torch.as_tensor(objective_ids)
        self.rows = [(ids == k).nonzero()[:, 0] for k in range(count)]
        sizes = [len(rows) for rows in self.rows]
        if not all(sizes):
            raise ValueError(f"The objectives have {sizes} rows, but taking turns needs rows of each.")
        self.per_objective = max(sizes) if oversample else min(sizes)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows) * self.per_objective

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = []
        for rows in self.rows:
            order = [
                rows[torch.randperm(len(rows), generator=generator)]
                for _ in range(-(-self.per_objective // len(rows)))
            ]
            drawn.append(torch.cat(order)[: self.per_objective])
        return iter(torch.stack(drawn, 1).flatten().tolist())
