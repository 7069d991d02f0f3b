# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Where a step of guided decoding ends, and before which length no text does."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria


class StepEnds(StoppingCriteria):
    """Ends each row of a batch where its step ends, and notes the length of the step."""

    def __init__(self, start: int, limits: list[int], ends: Callable[[list[int]], bool]) -> None:
        self.start, self.limits, self.ends = start, limits, ends
        self.lengths: list[int | None] = [None] * len(limits)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        length = input_ids.shape[1] - self.start
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            if self.lengths[row] is None and (length >= self.limits[row] or self.ends(ids)):
                self.lengths[row] = length
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


class NoEndYet(LogitsProcessor):
    """Keeps each row from ending before its text is long enough."""

    def __init__(self, start: int, least: list[int], ends: list[int]) -> None:
        self.start, self.least, self.ends = start, least, ends

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        length = input_ids.shape[1] - self.start
        early = [row for row, least in enumerate(self.least) if length < least]
        scores = scores.clone()
        scores[torch.tensor(early, dtype=torch.long)[:, None], self.ends] = -torch.inf
        return scores
