# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a denoiser's layers attend to, seen while they run; nothing is replaced, outputs are those of the stock."""

import inspect
import math
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


# Where the text stands among the tokens of joint attention. `None`: text and picture attend in layers of their own.
TEXT_SIDE: dict[str, str | None] = {
    "UNet2DConditionModel": None,
    "SD3Transformer2DModel": "after",
    "FluxTransformer2DModel": "before",
}


@dataclass(frozen=True)
class AttentionCall:
    """
    One attention of one layer.

    Attributes:
        name (`str`): The layer, as of `named_modules`.
        text (`torch.Tensor`, *optional*): The text that the layer was given, `(B, L, D)`; None where it attends within
            the picture, or the text is among its tokens.
        query, key (`torch.Tensor` of shape `(B, H, L, d)`): After norms and positions.
        mask (`torch.Tensor`, *optional*): As of `scaled_dot_product_attention`.
        scale (`float`): Factor of the products.
    """

    name: str
    text: torch.Tensor | None
    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scale: float

    @torch.no_grad()
    def probabilities(self, rows: slice = slice(None), queries: slice = slice(None)) -> torch.Tensor:
        """
        Softmax over all keys, in float32, the mean over heads.

        Args:
            rows (`slice`, *optional*): Which rows of the batch.
            queries (`slice`, *optional*): Which positions attend.

        Returns:
            `torch.Tensor` of shape `(B, Lq, Lk)`.
        """
        query, key = self.query[rows, :, queries], self.key[rows]
        mask = self.mask
        if mask is not None and mask.ndim > 2 and len(mask) == len(self.query):
            mask = mask[rows]
        if mask is not None and mask.ndim > 1 and mask.shape[-2] == self.query.shape[2]:
            mask = mask[..., queries, :]
        heads, total = query.shape[1], query.new_zeros((), dtype=torch.float32)
        for head in range(heads):  # one head's matrix in memory at a time
            scores = query[:, head].float() @ key[:, head].float().transpose(-1, -2) * self.scale
            if mask is not None:
                own = mask[:, min(head, mask.shape[1] - 1)] if mask.ndim == 4 else mask
                scores = scores.masked_fill(~own, -math.inf) if own.dtype == torch.bool else scores + own.float()
            total = total + scores.softmax(-1)
        return total / heads


class _Watching(TorchFunctionMode):
    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.tell(*args, **kwargs)
        return func(*args, **kwargs)


def is_attention(module: torch.nn.Module) -> bool:
    """Whether a module is an attention layer of diffusers."""
    return hasattr(module, "to_q") and hasattr(module, "to_k")


@contextmanager
def attention_seen(denoiser: torch.nn.Module, see: Callable[[AttentionCall], None]) -> Generator[None]:
    """
    Within it, `see` is told of every attention of the denoiser: the first of each layer's call, as adapters for
    pictures attend a second time.

    Args:
        denoiser (`torch.nn.Module`): A U-Net or transformer of diffusers with its default attention.
        see (`Callable[[AttentionCall], None]`): Looks.

    Raises:
        NotImplementedError: If the denoiser is compiled; afterwards, if no layer called
            `scaled_dot_product_attention`, as with xFormers, sliced attention, or another backend.
    """
    if hasattr(denoiser, "_orig_mod") or any(m._compiled_call_impl is not None for m in denoiser.modules()):
        raise NotImplementedError("Attention of a compiled denoiser cannot be seen. Pass one that is not compiled.")
    current: list[tuple[str, torch.Tensor | None]] = []
    seen = False

    def enter(name: str, names: list[str]) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given = dict(zip(names, args, strict=False)) | kwargs
            current[:] = [(name, given.get("encoder_hidden_states"))]

        return hook

    def tell(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, *args: Any,
        scale: float | None = None, enable_gqa: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        nonlocal seen
        if not current:
            return
        name, text = current.pop()
        seen = True
        if enable_gqa:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        see(AttentionCall(name, text, query, key, attn_mask, scale))

    with ExitStack() as stack:
        for name, module in denoiser.named_modules():
            if is_attention(module):
                names = list(inspect.signature(module.forward).parameters)
                stack.enter_context(_removed(module.register_forward_pre_hook(enter(name, names), with_kwargs=True)))
        with _Watching(tell):
            yield
    if not seen:
        raise NotImplementedError(
            "No attention of the denoiser was seen: it does not call `scaled_dot_product_attention`. Use the default "
            "attention processors and backend."
        )


@contextmanager
def _removed(handle: Any) -> Generator[None]:
    try:
        yield
    finally:
        handle.remove()


def grid_of(length: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """
    Height and width of the grid of a layer with so many positions, from those of the latents, which layers halve; None
    if it is none of them.

    Args:
        length (`int`): Number of positions.
        size (`tuple[int, int]`): Height and width of the latents.
    """
    h, w = size
    while h * w > length:
        h, w = -(-h // 2), -(-w // 2)
    return (h, w) if h * w == length else None
