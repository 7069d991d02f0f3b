# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Shared attention on a stock FLUX.2 transformer."""

import functools
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux2 import (
    Flux2AttnProcessor,
    Flux2ParallelSelfAttnProcessor,
    Flux2Transformer2DModelOutput,
)

from alignext.pipelines.alignedgen.attention import AlignedAttention
from alignext.pipelines.alignedgen.attention_flux import AlignedFluxAttention, AlignedFluxAttnProcessor
from alignext.pipelines.alignedgen.layers import Anchor
from alignext.pipelines.alignedgen.style import StyleReference


class AlignedFlux2SingleAttnProcessor(Flux2ParallelSelfAttnProcessor):
    """[`AlignedFluxAttnProcessor`] for layers whose projections are one with those of the feed-forward part."""

    def __init__(self, sharing: AlignedAttention, stock: Flux2ParallelSelfAttnProcessor):
        super().__init__()
        self.sharing, self.stock = sharing, stock
        self.anchor: Anchor | None = None
        self._attention_backend, self._parallel_config = stock._attention_backend, stock._parallel_config

    def __call__(self, attn, hidden_states, attention_mask=None, image_rotary_emb=None) -> torch.Tensor:
        if self.sharing.mode == "stock":
            return self.stock(attn, hidden_states, attention_mask, image_rotary_emb)
        if attention_mask is not None:
            raise NotImplementedError("Shared attention does not support an `attention_mask`. Leave it out.")

        # The stock processor in parts, since statistics are taken between its norm and its rotation.
        projected = attn.to_qkv_mlp_proj(hidden_states)
        sizes = 3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor
        length = projected.shape[-1] * sizes[0] // sum(sizes)
        qkv, mlp = projected[..., :length], projected[..., length:]
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in qkv.chunk(3, dim=-1))
        query, key = attn.norm_q(query), attn.norm_k(key)
        rotate = functools.partial(apply_rotary_emb, sequence_dim=1)
        out = self.sharing.attention(self, query, key, value, rotate=rotate, rotary=image_rotary_emb)
        return attn.to_out(torch.cat([out.flatten(2, 3).to(query.dtype), attn.mlp_act_fn(mlp)], dim=-1))


class AlignedFlux2Attention(AlignedFluxAttention):
    """[`AlignedAttention`] for FLUX.2, whose positions have four axes: picture, row, column, place in the text."""

    processor_classes = {
        Flux2AttnProcessor: AlignedFluxAttnProcessor,  # these layers have the parts and names of FLUX.1's
        Flux2ParallelSelfAttnProcessor: AlignedFlux2SingleAttnProcessor,
    }
    output_class = Flux2Transformer2DModelOutput
    texts = {"prompt_embeds": "encoder_hidden_states"}

    def _reference_positions(self, call: dict, reference: StyleReference) -> dict[str, Any]:
        positions = super()._reference_positions(call, reference)
        text = positions["txt_ids"]
        text[:, 3] = torch.arange(len(text))
        return positions
