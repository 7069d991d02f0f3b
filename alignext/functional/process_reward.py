# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Process rewards: labels for the steps of a solution and the loss of a model that predicts them, after "Simultaneous
Multi-objective Alignment Across Verifiable and Non-verifiable Rewards"
([arXiv 2510.01167](https://huggingface.co/papers/2510.01167)), where every reward is read as "prefix -> expected
success".

Notation: a solution has `n` steps, `t = 1..n`; `r_t` the reward of step `t`, `z` the outcome of the whole, `M` the
number of rollouts from one prefix.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


Values = torch.Tensor | Sequence

IGNORED = -100.0  # the label of a position that has none, as in transformers


def hindsight_targets(step_rewards: Values, outcome: float | Values, gamma: float = 0.9) -> torch.Tensor:
    r"""
    The rewards of the steps, seen from the end of a verifiable task:

        r~_t = r_t + gamma^(n - t) * z

    so that the last step gets the whole outcome.

    Args:
        step_rewards (`torch.Tensor` of shape `(..., n)` or sequence): `r_t`.
        outcome (`float` or `torch.Tensor` of shape `(...)`): `z`, one per solution, such as 1 for a correct answer.
        gamma (`float`, *optional*, defaults to 0.9): Discount per step that is still to come, in [0, 1].

    Returns:
        `torch.Tensor` of shape `(..., n)`.

    Raises:
        ValueError: `gamma` is outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"`gamma` is {gamma}, but it must be in [0, 1]; the paper's code uses 0.9.")
    rewards = _as_floats(step_rewards)
    to_come = torch.arange(rewards.shape[-1] - 1, -1, -1, device=rewards.device, dtype=rewards.dtype)  # n - t
    z = torch.as_tensor(outcome, device=rewards.device, dtype=rewards.dtype)
    return rewards + gamma**to_come * z[..., None]


def rollout_mean(values: Values) -> torch.Tensor:
    """
    The value of a prefix, `V_t = 1/M * sum_m r~_t^(m)`: the mean of what `M` rollouts from it came to.

    Args:
        values (`torch.Tensor` of shape `(M, ...)` or sequence): One entry per rollout, usually `(M, n)`.

    Returns:
        `torch.Tensor` of shape `(...)`.

    Raises:
        ValueError: There is no rollout.
    """
    return _rollouts(values, "values").mean(0)


def majority_vote(votes: Values) -> torch.Tensor:
    """
    The label of a prefix whose rollouts a judge has accepted or not, `1[mean_m v^(m) > 1/2]`: a tie is a 0.

    Args:
        votes (`torch.Tensor` of shape `(M, ...)` or sequence): 0 or 1 (or a probability) per rollout.

    Returns:
        `torch.Tensor` of shape `(...)`: 0 or 1, in the dtype of floating votes, else float64.

    Raises:
        ValueError: There is no rollout.
    """
    votes = _rollouts(votes, "votes")
    return (votes.mean(0) > 0.5).to(votes.dtype)


def process_reward_loss(
    logits: torch.Tensor,  # (B, T)
    labels: torch.Tensor,  # (B, T)
    *,
    loss_type: str = "bce",
) -> torch.Tensor:
    r"""
    The loss of each solution, the mean over its labelled positions of

        bce: -y log sigmoid(s) - (1 - y) log sigmoid(-s)
        mse: (s - y)^2

    where the logit `s` stands at the end of a step. The training loss is the mean over solutions, so that one of many
    steps weighs as much as one of few.

    Args:
        logits (`torch.Tensor` of shape `(B, T)`): `s`; computed in float32, or float64 if they are.
        labels (`torch.Tensor` of shape `(B, T)`): `y`, -100 where a position has none; in [0, 1] for `"bce"`.
        loss_type (`str`, *optional*, defaults to `"bce"`): `"bce"` or `"mse"`.

    Returns:
        `torch.Tensor` of shape `(B,)`; 0 for a solution without labels.

    Raises:
        ValueError: The `loss_type` is neither.
    """
    if loss_type not in ("bce", "mse"):
        raise ValueError(f"`loss_type` is {loss_type!r}. Choose 'bce' or 'mse'.")
    s = logits if logits.dtype == torch.float64 else logits.float()
    labelled = labels != IGNORED
    y = labels.to(s.dtype).masked_fill(~labelled, 0.0)
    if loss_type == "bce":
        losses = F.binary_cross_entropy_with_logits(s, y, reduction="none")
    else:
        losses = (s - y).square()
    return (losses * labelled).sum(-1) / labelled.sum(-1).clamp(min=1)


def _rollouts(values: Values, name: str) -> torch.Tensor:
    x = _as_floats(values)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"`{name}` has the shape {tuple(x.shape)}, but needs at least one rollout as its first axis.")
    return x


def _as_floats(values: Values) -> torch.Tensor:
    x = torch.as_tensor(values)
    return x if x.is_floating_point() and isinstance(values, torch.Tensor) else x.double()
