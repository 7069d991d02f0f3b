# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The equations of MAH-DPO ("Simultaneous Multi-objective Alignment Across Verifiable and Non-verifiable Rewards",
[arXiv 2510.01167](https://huggingface.co/papers/2510.01167)): one backbone, one output head per objective.

Notation: `h` the last hidden state after the final norm, `W_k` of shape `(V, d)` the head of objective `k`, `z_k = W_k
h` its logits, `k(i)` the objective of pair `i`, `y+` and `y-` its chosen and rejected completion.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


LOSS_TYPES = ("sigmoid", "ipo", "hinge", "robust", "sigmoid_norm")


def pair_losses(
    chosen_logps: torch.Tensor,  # (B,)
    rejected_logps: torch.Tensor,  # (B,)
    ref_chosen_logps: torch.Tensor | float = 0.0,  # (B,)
    ref_rejected_logps: torch.Tensor | float = 0.0,  # (B,)
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
    chosen_lengths: torch.Tensor | None = None,  # (B,)
    rejected_lengths: torch.Tensor | None = None,  # (B,)
) -> torch.Tensor:
    r"""
    The loss `l_i` of each pair. With `D = (log pi(y+) - log pi_ref(y+)) - (log pi(y-) - log pi_ref(y-))`:

        sigmoid       -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D)
        robust        (-(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D)) / (1 - 2e)
        hinge         max(0, 1 - beta D)
        ipo           (D' - 1 / (2 beta))^2, D' of log-ratios divided by their lengths
        sigmoid_norm  -log sigmoid(beta D')

    `pi` is the policy with the head of the pair's objective, `pi_ref` has one head for all. `ipo` is TRL's; the
    authors' is on sums, which is the same function with all lengths 1.

    Args:
        chosen_logps (`torch.Tensor` of shape `(B,)`): `log pi(y+)`, summed over the tokens of the completion.
        rejected_logps (`torch.Tensor` of shape `(B,)`): `log pi(y-)`.
        ref_chosen_logps (`torch.Tensor` of shape `(B,)`, *optional*, defaults to 0.0):
            `log pi_ref(y+)`. Leave both out for the reference-free loss.
        ref_rejected_logps (`torch.Tensor` of shape `(B,)`, *optional*, defaults to 0.0): `log pi_ref(y-)`.
        beta (`float`, *optional*, defaults to 0.1): Strength of the pull towards the reference.
        label_smoothing (`float`, *optional*, defaults to 0.0): `e` in `[0, 0.5)`, the chance that a label is wrong.
        loss_type (`str`, *optional*, defaults to `"sigmoid"`): One of the five above.
        chosen_lengths (`torch.Tensor` of shape `(B,)`, *optional*): Tokens of `y+`, for `ipo` and `sigmoid_norm`.
        rejected_lengths (`torch.Tensor` of shape `(B,)`, *optional*): Tokens of `y-`.

    Returns:
        `torch.Tensor` of shape `(B,)`.

    Raises:
        ValueError: The loss is not one of these, or its lengths are missing.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"`loss_type` is {loss_type!r}. Choose one of {', '.join(LOSS_TYPES)}.")
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    if loss_type in ("ipo", "sigmoid_norm"):
        if chosen_lengths is None or rejected_lengths is None:
            raise ValueError(f"`loss_type={loss_type!r}` needs `chosen_lengths` and `rejected_lengths`.")
        chosen = chosen / chosen_lengths.clamp(min=1.0)
        rejected = rejected / rejected_lengths.clamp(min=1.0)
    margin = chosen - rejected
    if loss_type == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if loss_type == "hinge":
        return torch.relu(1 - beta * margin)
    if loss_type == "sigmoid_norm" or label_smoothing == 0:
        return -F.logsigmoid(beta * margin)
    clean, flipped = -F.logsigmoid(beta * margin), -F.logsigmoid(-beta * margin)
    if loss_type == "robust":
        return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * clean + label_smoothing * flipped


def multi_objective_loss(
    losses: torch.Tensor,  # (B,)
    objective_ids: torch.Tensor,  # (B,)
    weights: torch.Tensor,  # (H,)
    *,
    reduction: str = "objective_mean",
    counts: torch.Tensor | None = None,  # (H,)
    world_size: int = 1,
) -> torch.Tensor:
    r"""
    The loss of a batch of pairs of several objectives, a mean of means:

        L_k = mean of l_i over the pairs of objective k,  L = sum_k a_k L_k / sum_k a_k

    over the objectives that are present. With `a_k = 1` that is the authors' code; the paper writes `sum_k a_k L_k`.
    `reduction="example_mean"` is `sum_i a_k(i) l_i / sum_i a_k(i)`. If no objective present has a weight, `L` is 0.

    A batch may be spread over `W` processes in any way: with `counts` those of all processes together, each returns
    its rows' part of `L` times `W`, and the mean over processes, of losses as of gradients, is that of one process.

    Args:
        losses (`torch.Tensor` of shape `(B,)`):
            `l_i`, as from [`pair_losses`][alignext.functional.mah_dpo.pair_losses].
        objective_ids (`torch.Tensor` of shape `(B,)`): `k(i)` in `0 ... H - 1`.
        weights (`torch.Tensor` of shape `(H,)`): `a_k`, not negative.
        reduction (`str`, *optional*, defaults to `"objective_mean"`): Or `"example_mean"`.
        counts (`torch.Tensor` of shape `(H,)`, *optional*):
            Pairs of each objective in the batches of all processes. Those of this batch if not given.
        world_size (`int`, *optional*, defaults to 1): `W`.

    Returns:
        `torch.Tensor`, a scalar.
    """
    heads = range(len(weights))
    if counts is None:
        counts = torch.bincount(objective_ids, minlength=len(weights))
    weights, counts = weights.to(losses), counts.to(losses)
    sums = torch.stack([losses.where(objective_ids == k, 0.0).sum() for k in heads])
    if reduction == "objective_mean":
        sums, counts = sums / counts.clamp(min=1), (counts > 0).to(losses)
    elif reduction != "example_mean":
        raise ValueError(f"`reduction` is {reduction!r}. Choose 'objective_mean' or 'example_mean'.")
    total = (weights * counts).sum()
    loss = (weights * sums).sum() / total.where(total > 0, 1.0)
    return loss if world_size == 1 else world_size * loss


# Mixing heads


def normalize_weights(weights: torch.Tensor, *, normalize: bool = True) -> torch.Tensor:
    r"""
    `w / sum(w)` along the last dimension, the weights with which heads are mixed.

    With `sum(w) = 1` the mixture is the policy proportional to `pi_ref exp(sum_k w_k r_k / beta)`, the optimum for the
    reward `sum_k w_k r_k`. Any other sum also scales the reference, as a temperature does. Weights below 0 move away
    from an objective.

    Args:
        weights (`torch.Tensor` of shape `(H,)` or `(B, H)`): Not negative, not all 0.
        normalize (`bool`, *optional*, defaults to `True`): Off, weights stay as they are and may be negative.

    Returns:
        `torch.Tensor` of the same shape, float32 or wider.

    Raises:
        ValueError: A weight is not finite or negative, or all are 0.
    """
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    shown = weights.tolist()
    if not weights.isfinite().all():
        raise ValueError(f"`objective_weights` are {shown}, but they must be finite.")
    if (weights == 0).all(-1).any():
        raise ValueError(f"`objective_weights` are {shown}, but at least one must not be 0.")
    if not normalize:
        return weights
    if (weights < 0).any():
        raise ValueError(
            f"`objective_weights` are {shown}. Weights below 0 need `normalize_weights=False`, and then a sum of 1 if "
            "the pull of the reference is to stay."
        )
    return weights / weights.sum(-1, keepdim=True)


def mix_heads(heads: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    r"""
    The one head whose logits are the mixture: `sum_k w_k z_k = (sum_k w_k W_k) h`. Summed in float32 or wider.

    Args:
        heads (`Sequence[torch.Tensor]`): `H` weights of shape `(V, d)`, or biases of shape `(V,)`.
        weights (`torch.Tensor` of shape `(H,)`): `w_k`, used as they are.

    Returns:
        `torch.Tensor` of the shape of a head.
    """
    dtype = torch.promote_types(heads[0].dtype, torch.float32)
    mixed = torch.zeros_like(heads[0], dtype=dtype)
    for weight, head in zip(weights.tolist(), heads, strict=True):
        if weight != 0:
            mixed = torch.add(mixed, head.to(dtype), alpha=weight)
    return mixed


def mix_logits(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    r"""
    `z = sum_k w_k z_k`: raw logits are mixed, then comes the softmax. Since a softmax ignores constants, that is the
    normalised product `prod_k p_k^(w_k)` of the heads' distributions, not their average.

    Args:
        logits (`torch.Tensor` of shape `(H, B, ..., V)`): Of all heads.
        weights (`torch.Tensor` of shape `(H,)` or `(B, H)`): `w_k`, for all rows or by row; used as they are.

    Returns:
        `torch.Tensor` of shape `(B, ..., V)`.
    """
    weights = weights.to(logits)
    if weights.ndim == 1:
        return torch.tensordot(weights, logits, dims=1)
    return torch.einsum("bh,hb...->b...", weights, logits)
