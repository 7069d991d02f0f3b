# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The objective of Concept DAS: "Faithful Bi-Directional Model Steering via Distribution Matching and Distributed
Interchange Interventions", Bao et al., arXiv 2602.05234. Its equations are not numbered here.

`p` are the next-token distributions of a base prompt whose states are intervened on, `q` those of the source prompt,
along the same answer. The intervention itself is [`interchange`][alignext.functional.steering.interchange].
"""

import torch

from alignext.functional.steering import jensen_shannon


OBJECTIVES = ("jsd", "kl", "reverse_kl", "ce")


def token_losses(
    base_logits: torch.Tensor,  # (M, V)
    source_logits: torch.Tensor,  # (M, V)
    tokens: torch.Tensor,  # (M,)
    objective: str = "jsd",
) -> torch.Tensor:
    """
    How far the intervened distribution of each answer token is from the source's, in nats.

    Args:
        base_logits (`torch.Tensor` of shape `(M, V)`): Logits of `p`.
        source_logits (`torch.Tensor` of shape `(M, V)`): Logits of `q`.
        tokens (`torch.Tensor` of shape `(M,)`): The answer's tokens, which `"ce"` alone looks at.
        objective (`str`, *optional*, defaults to `"jsd"`): `"jsd"`, the paper's; `"kl"`, `KL(q || p)`;
            `"reverse_kl"`, `KL(p || q)`; `"ce"`, `-log p(token)`.

    Returns:
        `torch.Tensor` of shape `(M,)`, in float32 or more.

    Raises:
        ValueError: If there is no such objective.
    """
    dtype = torch.promote_types(base_logits.dtype, torch.float32)
    base_logits, source_logits = base_logits.to(dtype), source_logits.to(dtype)
    if objective == "jsd":
        return jensen_shannon(base_logits, source_logits)
    p, q = base_logits.log_softmax(-1), source_logits.log_softmax(-1)
    if objective == "kl":
        return (q.exp() * (q - p)).sum(-1)
    if objective == "reverse_kl":
        return (p.exp() * (p - q)).sum(-1)
    if objective == "ce":
        return -p.gather(-1, tokens[:, None])[:, 0]
    raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, received {objective!r}.")


def answer_means(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """
    The mean over the tokens of each answer.

    Args:
        values (`torch.Tensor` of shape `(M,)`): One per token, answer after answer.
        lengths (`torch.Tensor` of shape `(N,)`): Number of tokens of each answer; their sum is `M`.

    Returns:
        `torch.Tensor` of shape `(N,)`.
    """
    rows = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    return values.new_zeros(len(lengths)).index_add(0, rows, values) / lengths
