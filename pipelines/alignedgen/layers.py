# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Shared attention inside the layers that share."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from alignext.functional.alignedgen import adain, shared_attention, token_statistics
from alignext.pipelines.alignedgen.levers import Levers


@dataclass(frozen=True)
class Anchor:
    """The anchor in one layer, as the targets read it."""

    query_statistics: tuple[torch.Tensor, torch.Tensor]
    key_statistics: tuple[torch.Tensor, torch.Tensor]
    key: torch.Tensor  # (1, N, n, d), rotated to the shifted positions
    value: torch.Tensor  # (1, N, n, d)


class SharedLayers:
    """The common state of a transformer's layers while they share."""

    def __init__(self, levers: Levers):
        self.levers = levers
        self.mode = "stock"  # or "joint": anchor and targets in one call; "capture": anchor alone; "inject": targets
        self.style_lambda: torch.Tensor | float = levers.style_lambda
        self.text_length = 0
        self.image_length = 0  # tokens of the image to be generated, which come right behind the text
        self.shifted: Any = None  # rotary table of the anchor's shifted positions

    def attention(
        self,
        processor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        rotate: Callable[[torch.Tensor, Any], torch.Tensor],
        rotary,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Attention of one layer, from queries and keys that are normed and not yet rotated.

        Args:
            processor: The layer's processor, which has its attention backend and keeps the anchor between two calls.
            query, key, value (`torch.Tensor` of shape `(B, S, n, d)`): Text tokens first, then the image's.
            rotate (`Callable`): Rotates a tensor by a table.
            rotary: The call's own table.
            mask (`torch.Tensor` of shape `(B, S)`, bool, *optional*): False where a key is padding.

        Returns:
            `torch.Tensor` of shape `(B, S, n, d)`.
        """
        backend = processor._attention_backend

        def attend(q, k, v, mask):
            if mask is not None:  # the anchor's keys, appended, are no padding
                mask = torch.nn.functional.pad(mask, (0, k.shape[1] - mask.shape[1]), value=True)[:, None, None]
            return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend)

        def attend_shared(q, k, v, mask, anchor, style_lambda):
            attend_rows = functools.partial(attend, mask=mask)
            return shared_attention(q, k, v, anchor.key, anchor.value, style_lambda=style_lambda, attend=attend_rows)

        def attend_targets(q, k, v, mask, anchor):
            if self.levers.adain:
                q, k = self._restyled(q, anchor.query_statistics), self._restyled(k, anchor.key_statistics)
            return attend_shared(rotate(q, rotary), rotate(k, rotary), v, mask, anchor, self.style_lambda)

        if self.mode == "inject":
            return attend_targets(query, key, value, mask, processor.anchor)
        a = 0 if self.mode == "capture" else self.levers.anchor_index
        q, k, v = (x[a : a + 1] for x in (query, key, value))
        m = None if mask is None else mask[a : a + 1]
        anchor = self._anchor(q, k, v, rotate)
        q, k = rotate(q, rotary), rotate(k, rotary)
        alone = attend(q, k, v, m) if self.levers.isolate_anchor else attend_shared(q, k, v, m, anchor, 1.0)
        if self.mode == "capture":
            # Cloned, since the view would keep the text's and a fused projection's memory.
            processor.anchor = replace(anchor, value=anchor.value.clone())
            return alone
        if len(query) == 1:
            return alone
        q, k, v = (self._without(x, a) for x in (query, key, value))
        others = attend_targets(q, k, v, None if mask is None else self._without(mask, a), anchor)
        return torch.cat([others[:a], alone, others[a:]])

    def _image(self) -> slice:
        return slice(self.text_length, self.text_length + self.image_length)

    def _anchor(self, query, key, value, rotate) -> Anchor:
        query, key, value = (x[:, self._image()] for x in (query, key, value))
        return Anchor(token_statistics(query), token_statistics(key), rotate(key, self.shifted), value)

    def _restyled(self, x: torch.Tensor, statistics: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        image = adain(x[:, self._image()], *statistics)
        x = x.clone() if x.requires_grad else x  # in place where no gradient needs it: a layer's queries are large
        x[:, self._image()] = image
        return x

    @staticmethod
    def _without(x: torch.Tensor, row: int) -> torch.Tensor:
        return x[1:] if row == 0 else torch.cat([x[:row], x[row + 1 :]])
