# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Shared attention on a stock FLUX.1 transformer."""

import functools
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, _get_qkv_projections

from alignext.functional.alignedgen import grid_size, shifted_ids
from alignext.pipelines.alignedgen.attention import AlignedAttention
from alignext.pipelines.alignedgen.layers import Anchor
from alignext.pipelines.alignedgen.style import StyleReference


class AlignedFluxAttnProcessor(FluxAttnProcessor):
    """[`FluxAttnProcessor`] that shares the anchor's image tokens while its [`AlignedAttention`] says so."""

    def __init__(self, sharing: AlignedAttention, stock: FluxAttnProcessor):
        super().__init__()
        self.sharing, self.stock = sharing, stock
        self.anchor: Anchor | None = None  # between "capture" and "inject"
        self._attention_backend, self._parallel_config = stock._attention_backend, stock._parallel_config

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.sharing.mode == "stock":
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if attention_mask is not None:
            raise NotImplementedError("Shared attention does not support an `attention_mask`. Leave it out.")

        # The stock processor in parts, since statistics are taken between its norm and its rotation.
        query, key, value, *text = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if attn.added_kv_proj_dim is not None:
            text_query, text_key, text_value = (x.unflatten(-1, (-1, attn.head_dim)) for x in text)
            query = torch.cat([attn.norm_added_q(text_query), query], dim=1)
            key = torch.cat([attn.norm_added_k(text_key), key], dim=1)
            value = torch.cat([text_value, value], dim=1)

        rotate = functools.partial(apply_rotary_emb, sequence_dim=1)
        out = self.sharing.attention(self, query, key, value, rotate=rotate, rotary=image_rotary_emb)
        out = out.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return out
        length = encoder_hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](out[:, length:].contiguous()))
        return image, attn.to_add_out(out[:, :length].contiguous())


class AlignedFluxAttention(AlignedAttention):
    """[`AlignedAttention`] for FLUX.1, whose positions have three axes: picture, row, column."""

    processor_classes = {FluxAttnProcessor: AlignedFluxAttnProcessor}
    texts = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"}

    @staticmethod
    def _same(a: Any, b: Any) -> bool:
        return torch.equal(a, b)

    @staticmethod
    def _positions(call: dict) -> Any:
        ids = call["img_ids"]
        return ids[0] if ids.ndim == 3 else ids

    def _place(self, layout: Any, device: torch.device) -> None:
        # Pictures to be edited follow the image to be generated, at other places on the first axis.
        self.image_length = int((layout[:, 0] == layout[0, 0]).sum())
        ids = layout[: self.image_length]
        self.grid = grid_size(ids)
        own = ids if self.reference is None else self._grid_ids(self.reference.grid, ids)
        self.shifted = self.transformer.pos_embed(shifted_ids(own, self.levers.offset(self.grid, ids.shape[1])))

    @staticmethod
    def _grid_ids(grid: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        h, w = grid
        ids = torch.zeros(h, w, like.shape[1])
        ids[..., 1] = torch.arange(h)[:, None]
        ids[..., 2] = torch.arange(w)
        return ids.flatten(0, 1).to(like)

    def _reference_positions(self, call: dict, reference: StyleReference) -> dict[str, Any]:
        like, length = self._positions(call), reference.prompt_embeds.shape[1]
        text = torch.zeros(length, like.shape[1])
        return {"img_ids": self._grid_ids(reference.grid, like), "txt_ids": text.to(like)}
