# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The gradient of each row of a batch, from one backward pass, weight by weight."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from alignext.data.core import padded


def trained_parameters(model: torch.nn.Module) -> dict[str, nn.Parameter]:
    """
    Raises:
        ValueError: If no parameter is trained.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(
            "`model` must have parameters that are trained, and all are frozen. Load an adapter with "
            "`is_trainable=True`, or set `requires_grad`."
        )
    return found


class RowGradients:
    """
    Gradients of each row's mean token loss by all trained parameters, one block `(B, size)` per parameter in the order
    of `named_parameters`. For weights and biases of linear layers, LoRA's among them, from one backward pass: the
    gradient of row `b` is the sum over its tokens of output gradient times input. Where other parameters are trained,
    one of them is used in two places, or a layer sees some of the tokens only, row after row.

    Args:
        model (`PreTrainedModel` or `PeftModel`): In evaluation mode, while this is used.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.parameters = model, trained_parameters(model)
        owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                owners.setdefault(id(p), []).append((module, name))
        self.at = {name: owners[id(p)] for name, p in self.parameters.items()}
        self.linear = all(len(found) == 1 and isinstance(found[0][0], nn.Linear) for found in self.at.values())

    @property
    def sizes(self) -> list[int]:
        """Numbers in each block."""
        return [p.numel() for p in self.parameters.values()]

    def of(self, rows: Sequence[dict[str, list[int]]]) -> Iterator[torch.Tensor]:
        """
        The blocks of a batch, in float32 or more.

        Args:
            rows (`Sequence[dict]`): `input_ids` and `labels`.
        """
        if not self.linear:
            yield from self._one_by_one(rows)
            return
        seen: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        modules = list(dict.fromkeys(found[0][0] for found in self.at.values()))
        handles = [
            module.register_forward_hook(
                lambda module, args, output: seen.setdefault(module, []).append((args[0].detach(), output))
            )
            for module in modules
        ]
        try:
            with torch.enable_grad():
                loss = self._losses(rows).sum()  # a mean would make gradients depend on the size of the batch
                outputs = [output for module in modules for _, output in seen.get(module, ())]
                grads = iter(torch.autograd.grad(loss, outputs, allow_unused=True))
        finally:
            for handle in handles:
                handle.remove()
        shape = len(rows), max(len(row["input_ids"]) for row in rows)
        uses: dict[nn.Module, list[Any]] = {}
        for module in modules:
            pairs = [(x, next(grads)) for x, _ in seen.get(module, ())]
            # Without a gradient it has no part in the loss.
            uses[module] = [(_by_row(x, *shape), _by_row(g, *shape)) for x, g in pairs if g is not None]
        if any(x is None for pairs in uses.values() for x, _ in pairs):
            self.linear = False  # a layer that sees some tokens only, as experts do
            yield from self._one_by_one(rows)
            return
        for name, ((module, kind),) in self.at.items():
            p = self.parameters[name]
            dtype = torch.promote_types(p.dtype, torch.float32)
            block = torch.zeros(len(rows), p.numel(), dtype=dtype, device=p.device)
            for x, g in uses[module]:
                g = g.to(dtype)
                one = torch.einsum("bto,bti->boi", g, x.to(dtype)) if kind == "weight" else g.sum(1)
                block += one.flatten(1)
            yield block

    def _one_by_one(self, rows: Sequence[dict[str, list[int]]]) -> Iterator[torch.Tensor]:
        singles = [self._single(row) for row in rows]
        yield from (torch.stack(blocks) for blocks in zip(*singles, strict=True))

    def _losses(self, rows: Sequence[dict[str, list[int]]]) -> torch.Tensor:
        """The mean loss `(B,)` of each row's tokens."""
        device = self.model.device
        ids = padded([row["input_ids"] for row in rows], 0).to(device)
        attention = padded([[1] * len(row["input_ids"]) for row in rows], 0).to(device)
        labels = padded([row["labels"] for row in rows], -100).to(device)
        logits = self.model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        return losses.sum(1) / (labels[:, 1:] != -100).sum(1)

    def _single(self, row: dict[str, list[int]]) -> list[torch.Tensor]:
        parameters = list(self.parameters.values())
        with torch.enable_grad():
            grads = torch.autograd.grad(self._losses([row]).sum(), parameters, allow_unused=True)
        return [
            torch.zeros(p.numel(), device=p.device)
            if g is None
            else g.flatten().to(torch.promote_types(g.dtype, torch.float32))
            for p, g in zip(parameters, grads, strict=True)
        ]


def _by_row(x: torch.Tensor, rows: int, length: int) -> torch.Tensor | None:
    """`(B, n, d)` of what a linear layer read or gave, also where a model has all tokens in one line; else None."""
    if x.ndim > 2 and len(x) == rows:
        return x.flatten(1, -2)
    return x.unflatten(0, (rows, length)) if x.ndim == 2 and len(x) == rows * length else None
