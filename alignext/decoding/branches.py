# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rows of a generation that fork into branches and go on from one of them, with the model's own forward passes."""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from alignext.decoding.custom import cache_key, own_cache
from alignext.decoding.rows import forked


class Branches:
    """
    Rows that grow token by token, as the stock loop feeds them.

    Args:
        model (`PreTrainedModel`): Reads them.
        ids (`torch.Tensor` of shape `(B, P)`): The prompts, padded on the left.
        model_kwargs (`dict`): Of forward passes, prepared by `generate`.

    Attributes:
        ids (`torch.Tensor` of shape `(B, L)`): All tokens that were read.
        logits (`torch.Tensor` of shape `(B, V)`): Behind the last of them, float32.
        passes (`list[int]`): Forward passes so far, those of forks included.
    """

    def __init__(self, model: Any, ids: torch.Tensor, model_kwargs: dict[str, Any]) -> None:
        self.model, self.ids, self.kwargs = model, ids, own_cache(model, model_kwargs)
        self.name, self.passes = cache_key(self.kwargs) or "", [0]
        self.logits = self._forward(is_first_iteration=True)

    @property
    def plain(self) -> bool:
        """Whether branches may fork in place and be cut: windows and recurrent states cannot."""
        cache = self.kwargs.get(self.name)
        return cache is not None and all(type(layer) is DynamicLayer for layer in cache.layers)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append a token of shape `(B,)` to the rows; the logits behind it."""
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        one = 1 if self.kwargs.get(self.name) is not None else None
        self.logits = self._forward(next_sequence_length=one)
        return self.logits

    def fork(self, rows: torch.Tensor) -> "Branches":
        """The given rows, some several times; of a cache that cannot be cut, a copy, and these rows stay."""
        other = self if self.plain else object.__new__(Branches)
        if other is not self:
            vars(other).update(vars(self))
            other.kwargs = {
                **self.kwargs,
                **({self.name: forked(self.kwargs[self.name], rows)} if self._cached else {}),
            }
        other.select(rows, cache=other is self)
        return other

    def select(self, rows: torch.Tensor, cut: int = 0, *, cache: bool = True) -> None:
        """Keep rows, without their last `cut` tokens."""
        end = self.ids.shape[1] - cut
        for key in ("attention_mask", "position_ids"):
            if self.kwargs.get(key) is not None:
                # one longer than the ids: ready for the next token
                self.kwargs[key] = self.kwargs[key].expand(len(self.ids), -1)[rows, : end + 1]
        self.ids, self.logits = self.ids[rows][:, :end], self.logits[rows]
        if cache and self._cached:
            self.kwargs[self.name].batch_select_indices(rows)
            if cut:
                self.kwargs[self.name].crop(-cut)

    @property
    def _cached(self) -> bool:
        return self.kwargs.get(self.name) is not None

    def _forward(self, **how: Any) -> torch.Tensor:
        inputs = self.model.prepare_inputs_for_generation(self.ids, **how, **self.kwargs)
        outputs = self.model(**inputs, return_dict=True)
        self.kwargs = self.model._update_model_kwargs_for_generation(outputs, self.kwargs)
        self.passes[0] += 1
        return outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=self.ids.device)
