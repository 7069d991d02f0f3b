# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The figures of a batch as sums and counts, and the loss of all rows from their means."""

from collections.abc import Sequence
from typing import Any

import torch


# Metrics whose mean is over the tokens of some completions rather than over pairs.
_TOKEN_METRICS = {
    "entropy": "tokens",
    "mean_token_accuracy": "chosen",
    "logits/chosen": "chosen",
    "logits/rejected": "rejected",
}


def sums_and_counts(
    completion_mask: torch.Tensor, outputs: Any, ids: torch.Tensor, values: dict[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """
    By metric, the sum and the count of each pair: of `values` one each, of figures of tokens as many as there are.

    Args:
        completion_mask (`torch.Tensor` of shape `(2 B, T)`): Chosen, then rejected.
        outputs (`FusedCausalLMOutput`): Of the forward pass, of `T - 1` positions.
        ids (`torch.Tensor` of shape `(B,)`): The objectives.
        values (`dict[str, torch.Tensor]`): By name, shape `(B,)` each, among them `rewards/chosen` and `/rejected`.
    """
    chosen, rejected = values["rewards/chosen"], values["rewards/rejected"]
    values |= {"rewards/accuracies": chosen > rejected, "rewards/margins": chosen - rejected}
    mask = completion_mask[:, 1:].bool()
    masks = dict(zip(("chosen", "rejected"), mask.chunk(2), strict=True))
    masks["tokens"] = torch.cat(mask.chunk(2), 1)
    tokens = {
        "entropy": torch.cat(outputs.entropy.chunk(2), 1),
        "mean_token_accuracy": outputs.is_top1.chunk(2)[0],
        **dict(zip(("logits/chosen", "logits/rejected"), outputs.mean_logits.chunk(2), strict=True)),
    }
    ones = torch.ones_like(ids)
    table = {name: (value, ones) for name, value in values.items()}
    for name, value in tokens.items():
        counted = masks[_TOKEN_METRICS[name]]
        table[name] = (value.float().where(counted, 0.0).sum(1), counted.sum(1))
    return table


def loss_of_all(means: dict[str, float], objectives: Sequence[str], weights: torch.Tensor, reduction: str) -> float:
    """The loss as if all rows had been one batch; the mean over all pairs, which it may be, leaves the means."""
    loss = means.pop("loss", 0.0)
    if reduction == "objective_mean":
        losses = [means.get(f"{objective}/loss") for objective in objectives]
        present = [(a, mean) for a, mean in zip(weights.tolist(), losses, strict=True) if mean is not None]
        loss = sum(a * mean for a, mean in present) / (sum(a for a, _ in present) or 1.0)
    return loss
