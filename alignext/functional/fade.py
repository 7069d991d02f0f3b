# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""The distance between two generative models that FADE measures.

Cho et al.: "Reference-Specific Unlearning Metrics Can Hide the Truth: A Reality Check",
[arXiv 2510.12981](https://huggingface.co/papers/2510.12981). With a model `q` and a reference `p`,

    forward = KL(p || q) = E_{y ~ p}[log p(y|x) - log q(y|x)],   reverse = KL(q || p),   FADE = forward + reverse.

The terms for diffusion models are in [`~alignext.functional.elbo`]. The paper's equations could not be read here and
are not numbered; the estimators below are derived from the definition.
"""

from typing import NamedTuple

import torch


def token_log_ratios(log_p: torch.Tensor, log_q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """
    `log p(y) - log q(y)` of whole texts: plain Monte Carlo. Single values may be negative.

    Args:
        log_p, log_q (`torch.Tensor` of shape `(B, L)`): Log-probabilities of the tokens that were drawn.
        mask (`torch.Tensor` of shape `(B, L)`): 1 for tokens of the text, the end-of-text token among them.

    Returns:
        `torch.Tensor` of shape `(B,)`, float64.
    """
    ratios = log_p.double() - log_q.double()
    return torch.where(mask.bool(), ratios, 0.0).sum(-1)


def token_kl(logits_p: torch.Tensor, logits_q: torch.Tensor) -> torch.Tensor:
    r"""
    `sum_v p(v) (log p(v) - log q(v))` of the next token. Summed along texts drawn from `p` it has the expectation of
    [`token_log_ratios`], as each token's log-ratio is replaced by its mean given the tokens before (Rao-Blackwell). It
    is never negative. What `p` excludes counts 0; what only `q` excludes makes it infinite.

    Args:
        logits_p, logits_q (`torch.Tensor` of shape `(..., V)`): Logits of the same position.

    Returns:
        `torch.Tensor` of shape `(...)`, float32 or better.
    """
    dtype = torch.promote_types(logits_p.dtype, torch.float32)
    log_p, log_q = logits_p.to(dtype).log_softmax(-1), logits_q.to(dtype).log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


class Estimate(NamedTuple):
    """
    A mean over prompts of means over samples.

    Attributes:
        mean (`float`): The estimate.
        stderr (`float`): Its standard error over the draws, the prompts being given; NaN with one sample per prompt.
        per_prompt (`list[float]`): The mean of each prompt.
    """

    mean: float
    stderr: float
    per_prompt: list[float]


def estimate(values: torch.Tensor) -> Estimate:
    """
    Mean and standard error of independent samples of given prompts: `sqrt(sum_i var_i / S) / P`.

    Args:
        values (`torch.Tensor` of shape `(P, S)`): A value per prompt and sample.
    """
    values = values.double()
    means = values.mean(1)
    variance = values.var(1) if values.shape[1] > 1 else torch.full_like(means, torch.nan)
    stderr = (variance / values.shape[1]).sum().sqrt() / len(values)
    return Estimate(means.mean().item(), stderr.item(), means.tolist())
