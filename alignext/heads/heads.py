# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The heads: one per objective, beside the head of the reference policy, and their mixtures."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from alignext.functional.mah_dpo import mix_heads, mix_logits

from .settings import HeadSettings


class ObjectiveHeads(nn.Module):
    """
    The heads: `weight_0`, `weight_1`, ... of shape `(V, d)`; of low rank, `A_k` of shape `(r, d)` and `B_k` of shape
    `(V, r)`, added to the base head as `(alpha / r) B_k A_k`. Every head is a parameter of its own: gradients of one
    stacked tensor would be as large as all heads, and DeepSpeed gathers whole parameters.

    Args:
        settings ([`HeadSettings`]): Of the model.
        vocabulary (`int`): `V`.
        width (`int`): `d`.
        bias (`bool`): Whether the base head has one; full heads then do, too.
    """

    def __init__(self, settings: HeadSettings, vocabulary: int, width: int, bias: bool) -> None:
        super().__init__()
        self.missing: list[str] = []  # what a checkpoint did not have
        self.count = len(settings.objectives)
        self.low_rank = settings.head_type == "low_rank"
        self.scale = settings.alpha / settings.rank if self.low_rank and settings.alpha is not None else 1.0
        shapes = {"weight": (vocabulary, width)} | ({"bias": (vocabulary,)} if bias else {})
        if self.low_rank:
            shapes = {"A": (settings.rank, width), "B": (vocabulary, settings.rank)}
        for k in range(self.count):
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_{k}", nn.Parameter(torch.empty(shape)))

    def all(self, name: str) -> list[torch.Tensor]:
        """The parameters of that name, one per head; whole ones where FSDP has sharded them."""
        weights = [getattr(self, f"{name}_{k}") for k in range(self.count)]
        if any(weight.is_meta for weight in weights):
            raise ValueError(
                "The objective heads are offloaded and cannot be mixed. Load the model without offloading, or a model "
                "made by `merge_heads`."
            )
        return [whole(weight) for weight in weights]

    @torch.no_grad()
    def init_from(self, base: Any, *, std: float, seed: int) -> None:
        """Copies of the base head, plus noise: `W_k = W + std N(0, 1)`, drawn with seed `seed + 100 k`."""
        for k in range(self.count):
            generator = torch.Generator().manual_seed(seed + 100 * k)
            if self.low_rank:
                down = getattr(self, f"A_{k}")
                down.copy_(torch.randn(down.shape, generator=generator) / down.shape[1] ** 0.5)
                getattr(self, f"B_{k}").zero_()
                continue
            weight = getattr(self, f"weight_{k}")
            weight.copy_(base.weight)
            if std:
                weight += std * torch.randn(weight.shape, generator=generator).to(weight)
            if base.bias is not None:
                getattr(self, f"bias_{k}").copy_(base.bias)

    def resize(self, base: Any) -> None:
        """Take as many tokens as the base head has: old rows stay, new ones are the base head's."""
        vocabulary = base.weight.shape[0]
        for name, old in list(self.named_parameters(recurse=False)):
            if name.startswith("A_"):
                continue
            new = {"w": base.weight, "b": base.bias}.get(name[0])
            kept = old.detach()[:vocabulary]
            rows = old.new_zeros(vocabulary, *old.shape[1:]) if new is None else new.detach().to(old)
            resized = torch.cat([kept, rows[len(kept) :]])
            setattr(self, name, nn.Parameter(resized, requires_grad=old.requires_grad))

    def folded(self, base: Any, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the mixture, in the dtype of the base head; `weights` of shape `(H,)`."""
        weight, bias = whole(base.weight), whole(base.bias)
        dtype = weight.dtype
        if not self.low_rank:
            bias = None if bias is None else mix_heads(self.all("bias"), weights).to(dtype)
            return mix_heads(self.all("weight"), weights).to(dtype), bias
        total = _total(weights)
        wide = torch.promote_types(dtype, torch.float32)
        mixed = weight.to(wide) if total == 1 else total * weight.to(wide)
        for w, down, up in zip(weights.tolist(), self.all("A"), self.all("B"), strict=True):
            if w != 0:
                mixed = torch.addmm(mixed, up.to(wide), down.to(wide), alpha=w * self.scale)
        if bias is not None and total != 1:
            bias = bias * total
        return mixed.to(dtype), bias

    def forward(self, hidden: torch.Tensor, base: Any) -> torch.Tensor:
        """The logits of all heads, shape `(H, ..., V)`, of hidden states of shape `(..., d)`."""
        weight, bias = whole(base.weight), whole(base.bias)
        if not self.low_rank:
            biases = [None] * self.count if bias is None else self.all("bias")
            return torch.stack([linear(hidden, w, b) for w, b in zip(self.all("weight"), biases, strict=True)])
        logits = linear(hidden, weight, bias)
        pairs = zip(self.all("A"), self.all("B"), strict=True)
        return torch.stack([logits + self.scale * linear(linear(hidden, down), up) for down, up in pairs])

    def by_row(self, base: Any, weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function from hidden states of shape `(B, T, d)` to mixed logits, for weights of shape `(B, H)`."""
        mixtures, which = weights.unique(dim=0, return_inverse=True)
        # With more mixtures than heads, head by head takes fewer multiplications.
        fold = not self.low_rank and len(mixtures) <= self.count
        folded = [self.folded(base, mixture) for mixture in mixtures] if fold else []

        def mixed(hidden: torch.Tensor) -> torch.Tensor:
            if len(hidden) % len(weights):
                raise ValueError(
                    f"`objective_weights` has {len(weights)} rows and the batch {len(hidden)}: give one per prompt."
                )
            copies = len(hidden) // len(weights)  # beams and several samples of a prompt stand next to each other
            if fold:
                row = which.repeat_interleave(copies).to(hidden.device)
                logits = hidden.new_empty(*hidden.shape[:-1], len(folded[0][0]))
                for i, (weight, bias) in enumerate(folded):
                    logits[row == i] = linear(hidden[row == i], weight, bias).to(logits)
                return logits
            by_row = weights.repeat_interleave(copies, 0).to(hidden.device)
            if not self.low_rank:
                return mix_logits(self(hidden, base), by_row)
            downs = [w[:, None, None] * linear(hidden, a) for w, a in zip(by_row.T, self.all("A"), strict=True)]
            down = self.scale * torch.cat(downs, -1)
            logits = linear(hidden, whole(base.weight), whole(base.bias))
            total = by_row.sum(1)[:, None, None]
            return total.to(logits) * logits + linear(down.to(hidden), torch.cat(self.all("B"), -1))

        return mixed


def _total(weights: torch.Tensor) -> float:
    """Their sum; 1 where only rounding makes it another."""
    total = float(weights.sum())
    return 1.0 if abs(total - 1) < 1e-6 else total


def whole(weight: Any) -> Any:
    """A weight in one piece, where FSDP has sharded it."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer in the dtype of its input, on the device of its weight."""
    hidden = hidden.to(weight.device)
    return F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
