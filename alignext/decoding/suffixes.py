# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Draws of the rest of completions by the stock sampling loop, from a cache of the prompts."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.cache_utils import DynamicLayer
from transformers.utils.generic import is_flash_attention_requested

from alignext.decoding.custom import cache_key, own_cache
from alignext.decoding.rows import forked, left_padded


# Processors that do not look at the ids before.
_BLIND = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)


class SuffixSampler:
    """
    Draws completions, and the rest of completions whose first tokens are kept, all from one distribution: the sampling
    arguments of the call are those of every draw, and logits processors see the ids that they would see in the first.

    Proposals read the kept tokens again, behind a copy of the prompts' keys and values: the cache holds all prompt
    tokens but the last, padded on the left, and that token and the kept ones are one block behind it, padded on the
    left as well. So no row has to be cut.

    Args:
        model (`PreTrainedModel`): Of the call, as all below.
        input_ids (`torch.Tensor` of shape `(B, P)`): The prompts, padded on the left.
        mask (`torch.Tensor` of shape `(B, P)`): 0 where they are padded.
        logits_processor (`LogitsProcessorList`): Prepared by `generate`.
        stopping_criteria (`StoppingCriteriaList`): Prepared by `generate`.
        generation_config (`GenerationConfig`): Prepared by `generate`.
        model_kwargs (`dict`): Of forward passes.

    Attributes:
        decode_steps (`int`): Tokens drawn so far one after the other, whatever the number of rows.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        model_kwargs: dict[str, Any],
    ) -> None:
        self.model, self.ids, self.mask = model, input_ids, mask
        self.processors, self.criteria = logits_processor, stopping_criteria
        self.config = copy.copy(generation_config)  # the tensors of special tokens are shared
        self.config.return_dict_in_generate = False
        self.kwargs, self.decode_steps = model_kwargs, 0
        self.pad = 0 if self.config._pad_token_tensor is None else int(self.config._pad_token_tensor)
        self.limit = self.config.max_length - input_ids.shape[1]
        self.cache: Any = None

    def first(self) -> list[list[int]]:
        """Whole completions, token for token those of the stock method."""
        kwargs = own_cache(self.model, self.kwargs)
        found = self._run(self.ids, self.processors, self.criteria, kwargs)
        cache, prompt = kwargs.get(cache_key(kwargs) or ""), self.ids.shape[1]
        # Windows and recurrent states cannot be cut, and flash attention wants no holes: there prompts are read again.
        plain = cache is not None and all(type(layer) is DynamicLayer for layer in cache.layers)
        if plain and prompt > 1 and not is_flash_attention_requested(self.model.config):
            cache.crop(prompt - 1 - cache.get_seq_length())
            self.cache = cache
        return found

    def rest(self, kept: Sequence[list[int]]) -> list[list[int]]:
        """
        Completions that begin as they are given.

        Args:
            kept (`Sequence[list[int]]`): The first tokens of each row's completion, fewer than its limit.

        Returns:
            `list[list[int]]`: Whole completions, up to the end of sequence, a criterion or the limit.
        """
        kwargs, device = own_cache(self.model, self.kwargs), self.ids.device
        if self.cache is not None:
            last = self.ids[:, -1].tolist()
            ids, mask = left_padded([[token, *row] for token, row in zip(last, kept, strict=True)], self.pad, device)
            mask = torch.cat([self.mask[:, :-1], mask], 1)
            kwargs[cache_key(kwargs) or ""] = forked(self.cache, torch.arange(len(ids), device=device))
        else:
            rows = [ids[real.bool()].tolist() for ids, real in zip(self.ids, self.mask, strict=True)]
            ids, mask = left_padded([row + more for row, more in zip(rows, kept, strict=True)], self.pad, device)
        kwargs["attention_mask"] = mask
        if "position_ids" in kwargs:
            kwargs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        as_drawn = AsDrawn(self.ids, kept, ids.shape[1])
        processors = as_drawn.processors(self.processors)
        ends = [one for one in self.criteria if isinstance(one, EosTokenCriteria)]
        others = [one for one in self.criteria if not isinstance(one, (EosTokenCriteria, MaxLengthCriteria))]
        limits = [self.limit - len(row) for row in kept]
        criteria = [*ends, _RowCap(ids.shape[1], limits), *([_Criteria(as_drawn, others)] if others else ())]
        drawn = self._run(ids, processors, StoppingCriteriaList(criteria), kwargs)
        return [row + more for row, more in zip(kept, drawn, strict=True)]

    def _run(self, ids: torch.Tensor, processors: Any, criteria: Any, kwargs: dict[str, Any]) -> list[list[int]]:
        noted = _Noted(criteria)
        noted.lengths = [None] * len(ids)
        noted.start = ids.shape[1]
        # Prepared processors must not be prepared again, as a nested `generate` would do.
        found = self.model._sample(
            ids, logits_processor=processors, stopping_criteria=noted, generation_config=self.config, **kwargs
        )[:, ids.shape[1] :]
        self.decode_steps += found.shape[1]
        return [row[:length] for row, length in zip(found.tolist(), noted.lengths, strict=True)]


class _Noted(StoppingCriteriaList):
    """Notes after how many tokens each row has stopped: behind its end there may be anything."""

    lengths: list[int | None]
    start: int

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = super().__call__(input_ids, scores, **kwargs)
        for row, ended in enumerate(done.tolist()):
            if ended and self.lengths[row] is None:
                self.lengths[row] = input_ids.shape[1] - self.start
        return done


class _RowCap(StoppingCriteria):
    """Ends each row after so many tokens of its own."""

    def __init__(self, start: int, limits: list[int]) -> None:
        self.start, self.limits = start, limits

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        length = input_ids.shape[1] - self.start
        return torch.tensor([length >= limit for limit in self.limits], device=input_ids.device)


class AsDrawn:
    """
    The ids of rows as the first draw would have them: the padded prompt, then the completion so far.

    Args:
        prompts (`torch.Tensor` of shape `(rows, P)`): As `generate` has got them.
        kept (`Sequence[list[int]]`): The tokens of each row's completion that are there already.
        width (`int`): Of what the rows hold of both, however they are padded.
    """

    def __init__(self, prompts: torch.Tensor, kept: Sequence[list[int]], width: int) -> None:
        self.prompts, self.kept, self.width = prompts, kept, width

    def __call__(self, row: int, ids: torch.Tensor) -> torch.Tensor:
        kept = torch.tensor([self.kept[row]], dtype=ids.dtype, device=ids.device)
        return torch.cat([self.prompts[row, None], kept, ids[row, None, self.width :]], 1)

    def processors(self, prepared: LogitsProcessorList) -> LogitsProcessorList:
        """Processors that see these ids."""
        if all(isinstance(one, _BLIND) for one in prepared):
            return prepared
        return LogitsProcessorList([_Processors(self, prepared)])


class _Processors(LogitsProcessor):
    """Runs processors row by row, for rows of proposals are not equally long."""

    def __init__(self, as_drawn: AsDrawn, processors: Any) -> None:
        self.as_drawn, self.processors = as_drawn, processors

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        rows = (self.processors(self.as_drawn(i, input_ids), scores[i, None]) for i in range(len(scores)))
        return torch.cat(list(rows))


class _Criteria(StoppingCriteria):
    """Runs stopping criteria row by row."""

    def __init__(self, as_drawn: AsDrawn, criteria: list) -> None:
        self.as_drawn, self.criteria = as_drawn, StoppingCriteriaList(criteria)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        rows = (self.criteria(self.as_drawn(i, input_ids), scores, **kwargs) for i in range(len(input_ids)))
        return torch.cat(list(rows))
