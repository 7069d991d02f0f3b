# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The equations of Diffusion-KTO (Li, Kallidromitis, Gokul, Kato, Kozuka: "Aligning Diffusion Models by Optimizing
Human Utility", [arXiv 2404.04465](https://huggingface.co/papers/2404.04465), NeurIPS 2024).

Notation: `r = -1/2 beta (l - r_ref)` the implicit reward of a picture, see
[`~alignext.functional.diffusion_preference.implicit_rewards`] (the released code has no `1/2`: its `beta` is half of
this one); `z` the reference point; `+` thumbs up, `-` thumbs down.
"""

import torch
import torch.nn.functional as F


UTILITIES = ("kahneman-tversky", "loss-averse", "risk-seeking")


def utility_loss(
    rewards: torch.Tensor,  # (B,)
    labels: torch.Tensor,  # (B,)
    reference_point: float | torch.Tensor = 0.0,
    *,
    utility: str = "kahneman-tversky",
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    r"""
    The loss of each picture: what its utility lacks, `lambda (1 - U(d))` or `-lambda U(d)`, of the gain `d = r - z` of
    a picture that is liked, and `d = z - r` of one that is not:

        kahneman-tversky   U = sigmoid(d)         strongest at the reference point, flat far from it on both sides
        loss-averse        U = log sigmoid(d)     concave; this is the loss of BCO
        risk-seeking       U = -log sigmoid(-d)   convex

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): Implicit rewards.
        labels (`torch.Tensor` of shape `(B,)`): True or 1 for a thumb up.
        reference_point (`float` or `torch.Tensor`, *optional*, defaults to 0.0): `z`; no gradient flows into it.
        utility (`str`, *optional*, defaults to `"kahneman-tversky"`): One of `UTILITIES`.
        desirable_weight (`float`, *optional*, defaults to 1.0): `lambda` of the thumbs up.
        undesirable_weight (`float`, *optional*, defaults to 1.0): `lambda` of the thumbs down.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    liked = labels.bool()
    weights = torch.where(liked, desirable_weight, undesirable_weight)
    if isinstance(reference_point, torch.Tensor):
        reference_point = reference_point.detach()
    gain = rewards - reference_point
    gain = torch.where(liked, gain, -gain)
    if utility == "kahneman-tversky":
        return weights * torch.sigmoid(-gain)
    if utility == "loss-averse":
        return weights * F.softplus(-gain)
    if utility == "risk-seeking":
        return -weights * F.softplus(gain)
    raise ValueError(f"`utility` must be one of {', '.join(UTILITIES)}, received {utility!r}.")


def divergence(mean_reward: float) -> float:
    """
    The paper's reference point, `max(0, E[r])` over pictures whatever their label: an estimate of `beta` times the
    divergence of the policy from the reference, which is not negative.

    Args:
        mean_reward (`float`): Mean of the implicit rewards.
    """
    return max(0.0, mean_reward)
