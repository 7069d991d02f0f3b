# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""The equations of Transfer Q* (Chakraborty et al.: "Transfer Q*: Principled Decoding for LLM Alignment",
[arXiv 2405.20495](https://huggingface.co/papers/2405.20495), NeurIPS 2024). Not numbered here.

Notation: in state `s`, candidate `z_j` is continued by rollouts `tau_ji`, `i = 1, ..., n`, of an aligned baseline
`rho_BL(. | s, z_j)`; `R_ji` is the reward of the whole text, `R^BL_ji` the reward that the baseline was aligned to.
"""

import math

import torch


VALUES = ("mean", "soft", "max")


def candidate_values(
    rewards: torch.Tensor,
    value: str = "mean",
    *,
    alpha: float = 1.0,
    baseline_rewards: torch.Tensor | None = None,
    beta: float = 1.0,
    log_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    What each candidate is worth, from rewards of its rollouts. With `D = R`, or `D = R - R^BL` with a baseline's
    reward:

        mean            Q_j = mean_i R_ji
        mean, indirect  Q_j = sum_i w_ji R_ji / sum_i w_ji,   w_ji = exp((R_ji - R^BL_ji) / beta)
        soft            Q_j = alpha (log sum_i exp(D_ji / alpha) - log n)
        max             Q_j = max_i R_ji

    The indirect mean is that of the policy aligned to `R`: both policies are tilts of one model, so that the one is
    the other times `w`. Without the sum below, a constant added to both rewards would change the values; with one
    rollout it is no estimate, for its weight is 1. `soft` makes `p(z) exp(Q / alpha)` the tilt of `p` by `exp(D /
    alpha)`, exact with all rollouts and too low with few of them (Jensen's inequality).

    Args:
        rewards (`torch.Tensor` of shape `(..., n)`): `R`.
        value (`str`, *optional*, defaults to `"mean"`): One of `VALUES`.
        alpha (`float`, *optional*, defaults to 1.0): Of `"soft"`; infinite gives the mean of `D`.
        baseline_rewards (`torch.Tensor` of shape `(..., n)`, *optional*): `R^BL`, which makes it indirect.
        beta (`float`, *optional*, defaults to 1.0): Of the weights of the indirect mean.
        log_weights (`torch.Tensor` of shape `(..., n)`, *optional*):
            Logarithms of the rollouts' probabilities, where they are all there are rather than draws; `-log n` each if
            not given.

    Returns:
        `torch.Tensor` of shape `(...)`.

    Raises:
        ValueError: There is no such value, or an indirect one with a single rollout, or an indirect maximum.
    """
    if value not in VALUES:
        raise ValueError(f"`value` must be one of {', '.join(VALUES)}, received {value!r}.")
    count = rewards.shape[-1]
    if log_weights is None:
        log_weights = torch.full_like(rewards, -math.log(count))
    if value == "max":
        if baseline_rewards is not None:
            raise ValueError("`value` must be 'mean' or 'soft' with `baseline_rewards`, received 'max'.")
        return torch.where(log_weights > -math.inf, rewards, -math.inf).amax(-1)
    if value == "soft":
        gain = rewards if baseline_rewards is None else rewards - baseline_rewards
        if math.isinf(alpha):
            return (log_weights.exp() * gain).sum(-1)
        return alpha * (log_weights + gain / alpha).logsumexp(-1)
    if baseline_rewards is not None:
        if count < 2:
            raise ValueError(
                "`rewards` must have at least 2 rollouts for the indirect mean, whose single weight would be 1, "
                "received 1. Take more, or `value='soft'`."
            )
        log_weights = log_weights + (rewards - baseline_rewards) / beta
    return (log_weights.softmax(-1) * rewards).sum(-1)


def tilted_scores(scores: torch.Tensor, values: torch.Tensor, alpha: float) -> torch.Tensor:
    """
    `scores + Q / alpha`: their largest is chosen, or one is drawn from their softmax.

    Args:
        scores (`torch.Tensor` of shape `(..., k)`): Log-probabilities of candidates, up to a constant.
        values (`torch.Tensor` of shape `(..., k)`): `Q`.
        alpha (`float`): Positive; infinite leaves the scores as they are.

    Returns:
        `torch.Tensor` of shape `(..., k)`, of the type of the scores.
    """
    return scores if math.isinf(alpha) else (scores.double() + values.double() / alpha).to(scores.dtype)
