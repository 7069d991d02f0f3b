# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Log-probabilities of labels under single heads, from one pass of the backbone, by the fused head of TRL."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import MoeModelOutputWithPast

from alignext.functional.low_rank_head import low_rank_log_probs

from .heads import ObjectiveHeads, linear, whole


if TYPE_CHECKING:
    from trl.trainer.utils import FusedCausalLMOutput


def score_objectives(
    heads: ObjectiveHeads,
    base: Any,
    config: PreTrainedConfig,
    backbone: Any,
    labels: torch.Tensor,
    objective_ids: torch.Tensor,
    **seen: Any,
) -> "FusedCausalLMOutput":
    """
    Each head on its own rows, the heads without rows included: every head is in the graph on every process, as
    distributed training wants it.

    Args:
        heads ([`ObjectiveHeads`]): The heads.
        base (`nn.Linear`): The base head.
        config (`PreTrainedConfig`): Of the model.
        backbone: The output of the model without its head.
        labels (`torch.Tensor` of shape `(B, T)`): -100 where nothing is scored.
        objective_ids (`torch.Tensor` of shape `(B,)`): Whose head a row gets.
        **seen: What the model was given that its loss reads.

    Returns:
        `FusedCausalLMOutput` with `log_probs`, `entropy`, `mean_logits` and `is_top1` of shape `(B, T - 1)`.
    """
    rows = [(objective_ids == k).nonzero()[:, 0] for k in range(heads.count)]
    if len(objective_ids) != len(labels) or sum(map(len, rows)) != len(labels):
        raise ValueError(
            f"`objective_ids` is {objective_ids.tolist()}, expected one number below {heads.count} for each of "
            f"{len(labels)} rows."
        )
    if heads.low_rank:
        parts: list[Any] = _low_rank_parts(heads, base, config, backbone, labels, rows)
        # Experts are balanced over all rows, not by head: of no rows that loss is all that is computed.
        output = score(config, backbone, slice(0), labels[:0], base.weight.detach(), whole(base.bias), **seen)
    else:
        biases = [None] * heads.count if base.bias is None else heads.all("bias")
        parts = [
            score(config, backbone, of_head, labels[of_head], weight, bias, **seen)
            for of_head, weight, bias in zip(rows, heads.all("weight"), biases, strict=True)
        ]
        output = parts[0]
    back = torch.cat(rows).argsort()
    for name in ("log_probs", "entropy", "mean_logits", "is_top1"):
        output[name] = torch.cat([part[name] for part in parts])[back]
    output.label_mask = labels[:, 1:] != -100
    output.loss = -output.log_probs.sum() / output.label_mask.sum().clamp(min=1)
    return output


def _low_rank_parts(
    heads: ObjectiveHeads, base: Any, config: PreTrainedConfig, backbone: Any, labels: torch.Tensor, rows: Sequence
) -> list[dict[str, torch.Tensor]]:
    weight, bias, (scale, cap) = whole(base.weight), whole(base.bias), logit_transform(config)
    parts = []
    for of_head, down, up in zip(rows, heads.all("A"), heads.all("B"), strict=True):
        hidden, mask = backbone.last_hidden_state[of_head, :-1], labels[of_head, 1:] != -100
        hidden, targets = hidden[mask], labels[of_head, 1:][mask]
        down = heads.scale * linear(hidden, down)
        out = low_rank_log_probs(hidden, down, weight, up, targets, bias=bias, logit_scale=scale, softcap=cap)
        parts.append({k: v.new_zeros(mask.shape).masked_scatter(mask, v) for k, v in out._asdict().items()})
    return parts


def logit_transform(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Scale and soft cap that an architecture applies to the output of its head, as TRL's `add_fused_lm_head` reads
    them, which keeps them to itself."""
    text = config.get_text_config()
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale = getattr(text, name, None)
        if scale is not None:
            break
    else:
        divisor = getattr(text, "logits_scaling", None)
        scale = 1.0 if divisor is None else divisor if text.model_type == "hyperclovax" else 1 / divisor
    return scale, getattr(text, "final_logit_softcapping", None)


class _Head:
    """The part of a model that TRL's fused head needs, around hidden states that are there already."""

    def __init__(self, config: PreTrainedConfig, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.config, self.lm_head = config, SimpleNamespace(weight=weight, bias=bias)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def base_model(self, hidden: MoeModelOutputWithPast, **kwargs: Any) -> MoeModelOutputWithPast:
        return hidden

    def get_output_embeddings(self) -> SimpleNamespace:
        return self.lm_head


def score(config, backbone, rows, labels, weight, bias, **seen) -> "FusedCausalLMOutput":
    """TRL's log-probabilities of `labels` under a head, for some rows of the hidden states of a backbone."""
    from trl.trainer.utils import add_fused_lm_head  # heavy, and only training needs it

    head = _Head(config, weight, bias)
    add_fused_lm_head(head, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    hidden = MoeModelOutputWithPast(
        last_hidden_state=backbone.last_hidden_state[rows], router_logits=getattr(backbone, "router_logits", None)
    )
    return head.forward(hidden, labels=labels, fused_lm_head=True, **seen)
