# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Shared attention on a stock Qwen-Image transformer."""

import functools
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
    QwenEmbedRope,
    apply_rotary_emb_qwen,
)

from alignext.pipelines.alignedgen.attention import AlignedAttention
from alignext.pipelines.alignedgen.layers import Anchor
from alignext.pipelines.alignedgen.style import StyleReference


class AlignedQwenAttnProcessor(QwenDoubleStreamAttnProcessor2_0):
    """[`QwenDoubleStreamAttnProcessor2_0`] that shares the anchor's image tokens; texts of a batch may be padded."""

    def __init__(self, sharing: AlignedAttention, stock: QwenDoubleStreamAttnProcessor2_0):
        super().__init__()
        self.sharing, self.stock = sharing, stock
        self.anchor: Anchor | None = None
        self._attention_backend, self._parallel_config = stock._attention_backend, stock._parallel_config

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        encoder_hidden_states_mask=None,
        attention_mask=None,
        image_rotary_emb=None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.sharing.mode == "stock":
            return self.stock(
                attn,
                hidden_states,
                encoder_hidden_states,
                encoder_hidden_states_mask,
                attention_mask,
                image_rotary_emb,
            )

        assert encoder_hidden_states is not None and image_rotary_emb is not None

        # The stock processor in parts, since statistics are taken between its norm and its rotation.
        def heads(x, layer, norm=None):
            x = layer(x).unflatten(-1, (-1, attn.inner_dim // attn.heads))
            return x if norm is None else norm(x)

        text, image, length = encoder_hidden_states, hidden_states, encoder_hidden_states.shape[1]
        query, key, value = (
            torch.cat([heads(text, *of_text), heads(image, *of_image)], dim=1)
            for of_text, of_image in (
                ((attn.add_q_proj, attn.norm_added_q), (attn.to_q, attn.norm_q)),
                ((attn.add_k_proj, attn.norm_added_k), (attn.to_k, attn.norm_k)),
                ((attn.add_v_proj,), (attn.to_v,)),
            )
        )
        mask = None
        if encoder_hidden_states_mask is not None:
            mask = torch.nn.functional.pad(encoder_hidden_states_mask, (0, image.shape[1]), value=True)
        image_table, text_table = image_rotary_emb
        rotary = torch.cat([text_table, image_table])
        rotate = functools.partial(apply_rotary_emb_qwen, use_real=False)
        out = self.sharing.attention(self, query, key, value, rotate=rotate, rotary=rotary, mask=mask)
        out = out.flatten(2, 3).to(query.dtype)
        image = attn.to_out[0](out[:, length:].contiguous())
        for layer in attn.to_out[1:]:
            image = layer(image)
        return image, attn.to_add_out(out[:, :length].contiguous())


class AlignedQwenAttention(AlignedAttention):
    """[`AlignedAttention`] for Qwen-Image, whose positions count from the middle of a picture."""

    processor_classes = {QwenDoubleStreamAttnProcessor2_0: AlignedQwenAttnProcessor}
    texts = {"prompt_embeds": "encoder_hidden_states"}

    def _check_transformer(self) -> None:
        positions = type(self.transformer.pos_embed)
        if positions is not QwenEmbedRope:
            raise NotImplementedError(
                f"AlignedGen does not support `{type(self.transformer).__name__}` with positions of the kind "
                f"`{positions.__name__}`, those of layered images."
            )
        super()._check_transformer()

    @staticmethod
    def _same(a: Any, b: Any) -> bool:
        return a == b

    @staticmethod
    def _positions(call: dict) -> Any:
        return call["img_shapes"][0]  # (frames, rows, columns) of the image, then of pictures to be edited

    def _place(self, layout: Any, device: torch.device) -> None:
        frames, *grid = layout[0] if isinstance(layout, list) else layout
        self.image_length, self.grid = frames * grid[0] * grid[1], (grid[0], grid[1])
        own = self.grid if self.reference is None else self.reference.grid
        rope = self.transformer.pos_embed
        table, _ = rope([[(1, *own)]], device=device, max_txt_seq_len=1)
        # From middle to middle: half of the target and half of the anchor, as neighbours are.
        steps = (
            tuple(t // 2 + a - a // 2 for t, a in zip(self.grid, own, strict=True)) if rope.scale_rope else self.grid
        )
        turns = [
            rope.rope_params(torch.tensor([float(by)]), size, rope.theta)
            for by, size in zip(self.levers.offset(steps, 3), rope.axes_dim, strict=True)
        ]
        self.shifted = table * torch.cat(turns, dim=1).to(device)

    def _reference_positions(self, call: dict, reference: StyleReference) -> dict[str, Any]:
        return {"img_shapes": [[(1, *reference.grid)]]}

    def _rows(self, call: dict, rows: list[int]) -> dict:
        return super()._rows(call, rows) | {"img_shapes": call["img_shapes"][: len(rows)]}

    def _text(self, call: dict, argument: str, row: slice) -> torch.Tensor | None:
        text, mask = super()._text(call, argument, row), call.get("encoder_hidden_states_mask")
        return text if mask is None or text is None else text[:, mask[row][0].bool()]
