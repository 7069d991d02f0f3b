# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`Sums`: the metrics of a trainer as sums and counts, so that no mean depends on the size of batches."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


Number = torch.Tensor | float


class Sums:
    """
    The sum and the count of every metric since the last log, of training and evaluation apart. They meet those of the
    other processes once, when the means are asked for: all processes have to ask, each may have names of its own.

    Args:
        accelerator (`Accelerator`): The trainer's.

    Example:

    ```python
    >>> sums = Sums(trainer.accelerator)
    >>> sums.add("train", "rewards/chosen", rewards, labels)  # a row each, counted where the label is 1
    >>> sums.means("train")
    {'rewards/chosen': 0.25}
    ```
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._sums: dict[str, dict[str, list[Number]]] = {"train": {}, "eval": {}}
        self._totals: dict[str, Number] = {}

    def add(self, mode: str, name: str, value: Number, count: Number = 1.0) -> None:
        """
        Add to a metric.

        Args:
            mode (`str`): `"train"` or `"eval"`.
            name (`str`): Of the metric.
            value (`torch.Tensor` of shape `(B,)` or `()`, or `float`):
                The sum of what is counted, of each row or of all. Rows that only fill up the last batch of an
                evaluation on several processes are left out.
            count (`torch.Tensor` of the same shape, or `float`, *optional*, defaults to 1.0):
                How many there are in each; rows with 0 are left out, whatever their value.
        """
        value, count = _wide(value), _wide(count)
        if value.ndim:
            count = count.to(value.device).expand_as(value)
            taken = count != 0
            if mode == "eval":
                taken = taken & self._real(len(value)).to(value.device)
            value, count = value[taken].sum(), count[taken].sum()
        total = self._sums[mode].setdefault(name, [0.0, 0.0])
        total[0], total[1] = total[0] + value, total[1] + count

    def drop(self, mode: str) -> None:
        """Forget what was counted since the last log."""
        self._sums[mode] = {}

    def count(self, name: str, number: Number) -> None:
        """Add to what is counted from the beginning of training on, such as tokens; every log shows the total."""
        self._totals[name] = self._totals.get(name, 0.0) + _wide(number)

    def means(self, mode: str) -> dict[str, float]:
        """The mean of each metric that was counted since the last call, beside them the totals, of all processes."""
        own = {name: [float(value), float(count)] for name, (value, count) in self._sums[mode].items()}
        totals = {name: [float(value), -1.0] for name, value in self._totals.items()}
        self._sums[mode] = {}
        table: dict[str, list[float]] = {}
        for part in gather_object([own | totals]):
            for name, (value, count) in part.items():
                of_all = table.setdefault(name, [0.0, 0.0])
                of_all[0], of_all[1] = of_all[0] + value, of_all[1] + count
        if not any(count > 0 for _, count in table.values()):
            return {}
        return {name: value / count if count > 0 else round(value) for name, (value, count) in table.items() if count}

    def _real(self, rows: int) -> torch.Tensor:
        """Which rows of this process are not repeated ones, as `Accelerator.gather_for_metrics` tells them apart."""
        state, accelerator = self.accelerator.gradient_state, self.accelerator
        everywhere = torch.arange(rows) + rows * accelerator.process_index
        if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return torch.ones(rows, dtype=torch.bool)
        return everywhere < state.remainder


class FreshEvaluations:
    """A `Trainer` whose evaluations begin at zero: one that was interrupted, and `predict`, which logs nothing, leave
    their sums behind. Mixed in before the parent."""

    sums: Sums

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.sums.drop("eval")
        return super().evaluation_loop(*args, **kwargs)  # ty: ignore[missing-attribute]


def has_loss(logs: Mapping[str, Any]) -> bool:
    """All processes log what has a loss in it, of training or evaluation: then they can meet."""
    return any(name == "loss" or name.endswith("_loss") for name in logs)


def _wide(number: Number) -> torch.Tensor:
    number = torch.as_tensor(number).detach()
    return number.to(torch.float32 if number.device.type == "mps" else torch.float64)
