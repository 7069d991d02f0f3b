# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The equations of preference optimization for diffusion models.

- Diffusion-DPO (Wallace et al.: "Diffusion Model Alignment Using Direct Preference Optimization",
  [arXiv 2311.12908](https://huggingface.co/papers/2311.12908), CVPR 2024)
- Inversion-DPO (Li et al.: "Inversion-DPO: Precise and Efficient Post-Training for Diffusion Models",
  [arXiv 2507.11554](https://huggingface.co/papers/2507.11554), ACM MM 2025)
- InPO (Lu et al.: "InPO: Inversion Preference Optimization with Reparametrized DDIM for Efficient Diffusion Model
  Alignment", [arXiv 2503.18454](https://huggingface.co/papers/2503.18454), CVPR 2025)
- SmPO-Diffusion (Lu et al.: "Smoothed Preference Optimization via ReNoise Inversion for Aligning Diffusion Models with
  Varied Human Preferences", [arXiv 2506.02698](https://huggingface.co/papers/2506.02698), ICML 2025)

The notation of levels and predictions is that of [`~alignext.functional.predictions`]. A batch of `B` pairs has `2B`
rows, winners first: row `i` won over row `B + i`. `l` and `r` are the errors of policy and reference, `m` the margin
of a pair.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from alignext.functional.elbo import row_mse
from alignext.functional.inversion import InversionPoints, Levels
from alignext.functional.predictions import (
    Denoiser,
    add_noise,
    clean_and_noise,
    prediction_target,
    recovered_noise,
    step_weight,
)


TARGETS = ("reference", "trajectory", "recovered")


# Margins and losses


def implicit_rewards(
    delta: torch.Tensor,  # (2B,)
    beta: float,
    factor: torch.Tensor | float = 1.0,  # (B,)
    reverse_sign: bool = False,
) -> torch.Tensor:
    """
    `-1/2 beta f delta`: high where the policy fits better than the reference does. The margin of a pair is the
    winner's minus the loser's.

    Args:
        delta (`torch.Tensor` of shape `(2B,)`): `l - r`, or a weighted mean of them; winners first.
        beta (`float`): Strength of the tie to the reference.
        factor (`float` or `torch.Tensor` of shape `(B,)`, *optional*, defaults to 1.0):
            `f`, of [`label_factor`].
        reverse_sign (`bool`, *optional*, defaults to `False`):
            The opposite sign, which the Inversion-DPO release has: the policy then leaves the reference on winners.
    """
    if isinstance(factor, torch.Tensor):
        factor = factor.to(delta).repeat(2)
    rewards = -0.5 * beta * factor * delta
    return -rewards if reverse_sign else rewards


def preference_margin(rewards: torch.Tensor) -> torch.Tensor:
    """
    `m = -1/2 beta f (delta_w - delta_l)` of shape `(B,)`: the winner's reward minus the loser's.

    Args:
        rewards (`torch.Tensor` of shape `(2B,)`): Of [`implicit_rewards`], winners first.
    """
    chosen, rejected = rewards.chunk(2)
    return chosen - rejected


def preference_loss(margin: torch.Tensor, probability: torch.Tensor | None = None) -> torch.Tensor:
    """
    `-log sigmoid(m)` of each pair; their mean is minimised. `ln 2` where policy and reference are the same.

    Args:
        margin (`torch.Tensor` of shape `(B,)`): Of [`preference_margin`].
        probability (`torch.Tensor` of shape `(B,)`, *optional*): Share `p` of those who prefer the winner. The loss is
            then the mean over all their votes, `-p log sigmoid(m) - (1 - p) log sigmoid(-m)`, least at `m = logit p`.
    """
    if probability is None:
        return -F.logsigmoid(margin)
    return -probability.to(margin) * F.logsigmoid(margin) - (1 - probability.to(margin)) * F.logsigmoid(-margin)


@dataclass(frozen=True)
class PreferenceErrors:
    """
    How well policy and reference do on a batch of pairs.

    Attributes:
        policy, reference (`torch.Tensor` of shape `(2B,)`): Mean errors `l` and `r`, without weights.
        delta (`torch.Tensor` of shape `(2B,)`): Mean of `w (l - r)` over the points, what the margin is made of.
    """

    policy: torch.Tensor
    reference: torch.Tensor
    delta: torch.Tensor


def preference_errors(
    policy: Denoiser,
    reference: Denoiser | None,
    x: torch.Tensor,  # (K * 2B, C, h, w)
    t: torch.Tensor,  # (K * 2B,)
    target: torch.Tensor,
    conditioning: Mapping[str, torch.Tensor] | None = None,
    *,
    weight: torch.Tensor | float = 1.0,
    points: int = 1,
    mask: torch.Tensor | None = None,
) -> PreferenceErrors:
    """
    Evaluate policy and reference at the same points against the same targets. Only the policy gets a gradient.

    Args:
        policy (`Callable`): As in `alignext.functional.predictions`.
        reference (`Callable`, *optional*): `None` where its error is zero by construction.
        x, target (`torch.Tensor` of shape `(K * 2B, C, h, w)`): Where, and against what.
        t (`torch.Tensor` of shape `(K * 2B,)`): Timesteps.
        conditioning (`Mapping[str, torch.Tensor]`, *optional*): Tensors of `K * 2B` rows.
        weight (`float` or `torch.Tensor` of shape `(K * 2B,)`, *optional*, defaults to 1.0): `w`.
        points (`int`, *optional*, defaults to 1): `K`, points per row, outermost.
        mask (`torch.Tensor`, *optional*): As of [`row_mse`], `K * 2B` rows.
    """
    conditioning = dict(conditioning or {})
    # The reference first: its activations are gone before those of the policy come, which stay for the backward pass.
    with torch.no_grad():
        r = None if reference is None else row_mse(reference(x, t, **conditioning), target, mask)
    l = row_mse(policy(x, t, **conditioning), target, mask)  # noqa: E741
    r = torch.zeros_like(l) if r is None else r
    delta = weight * (l - r)
    return PreferenceErrors(*(value.unflatten(0, (points, -1)).mean(0) for value in (l.detach(), r, delta)))


def diffusion_dpo_errors(
    policy: Denoiser,
    reference: Denoiser,
    x0: torch.Tensor,  # (2B, C, h, w)
    noise: torch.Tensor,  # (B, C, h, w)
    t: torch.Tensor,  # (B,)
    a: torch.Tensor,  # (B,)
    s: torch.Tensor,  # (B,)
    conditioning: Mapping[str, torch.Tensor] | None = None,
    *,
    prediction_type: str = "epsilon",
    mask: torch.Tensor | None = None,
) -> PreferenceErrors:
    """
    Diffusion-DPO: both latents of a pair get the same noise and timestep. Its loss is
    `preference_loss(preference_margin(implicit_rewards(errors.delta, beta)))`.

    Args:
        policy, reference (`Callable`): As in `alignext.functional.predictions`.
        x0 (`torch.Tensor` of shape `(2B, C, h, w)`): Clean latents, winners first.
        noise (`torch.Tensor` of shape `(B, C, h, w)`): One per pair.
        t, a, s (`torch.Tensor` of shape `(B,)`): Timestep and level, one per pair.
        conditioning (`Mapping[str, torch.Tensor]`, *optional*): Tensors of `2B` rows.
        prediction_type (`str`, *optional*, defaults to `"epsilon"`): One of `PREDICTION_TYPES`.
        mask (`torch.Tensor`, *optional*): As of [`row_mse`], `2B` rows.
    """
    noise, t, a, s = (torch.cat([value, value]) for value in (noise, t, a, s))
    target = prediction_target(x0, noise, a, s, prediction_type)
    return preference_errors(policy, reference, add_noise(x0, noise, a, s), t, target, conditioning, mask=mask)


def inversion_errors(
    policy: Denoiser,
    reference: Denoiser | None,
    x0: torch.Tensor,  # (2B, C, h, w)
    points: InversionPoints,
    levels: Levels,
    conditioning: Mapping[str, torch.Tensor] | None = None,
    *,
    target: str = "reference",
    prediction_type: str = "epsilon",
    mask: torch.Tensor | None = None,
) -> PreferenceErrors:
    r"""
    Inversion-DPO, InPO and SmPO: errors at points of the inversion of each image.

    - `target="reference"` (Inversion-DPO): the policy, at `(x_{k-1}, t_k)`, against the prediction `p_k` of the
      network that was inverted with. Where that is the reference, its own error is 0, and `delta` is the mean of
      `w_k |p_theta - p_k|^2` (`S` in the paper's figure). **At policy = reference its gradient is zero**: training has
      to start elsewhere.
    - `target="trajectory"`: both, at `(x_k, t_k)`, against what leads from `x_k` back to `x_{k-1}`, weighted alike.
    - `target="recovered"` (InPO, SmPO): both, at `(x_k, t_k)`, against the noise `(x_k - a_k x0) / s_k`; weight 1.

    Args:
        policy (`Callable`):
            As in `alignext.functional.predictions`; guided if the inversion was and `target="reference"`.
        reference (`Callable`, *optional*): Not used by `target="reference"`.
        x0 (`torch.Tensor` of shape `(2B, C, h, w)`): Clean latents, winners first.
        points ([`InversionPoints`]): Of `x0`.
        levels ([`Levels`]): The grid of the inversion.
        conditioning (`Mapping[str, torch.Tensor]`, *optional*): Tensors of `2B` rows.
        target (`str`, *optional*, defaults to `"reference"`): One of `TARGETS`.
        prediction_type (`str`, *optional*, defaults to `"epsilon"`): One of `PREDICTION_TYPES`.
        mask (`torch.Tensor`, *optional*): As of [`row_mse`], `2B` rows.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` is {target!r}, expected one of {', '.join(TARGETS)}.")
    count, k = len(points.k), points.k.flatten()
    a, s = levels.a[k], levels.s[k]
    weight = 1.0 if target == "recovered" else step_weight(a, s, prediction_type).to(x0)
    if target == "reference":
        x, goal, reference = points.source, points.prediction, None
    elif target == "trajectory":
        source_level = levels.a[k - 1], levels.s[k - 1]
        pair = clean_and_noise(points.prediction, points.source, *source_level, prediction_type)
        x, goal = points.x, prediction_target(*pair, a, s, prediction_type)
    else:
        tiled = x0.repeat(count, *(1,) * (x0.dim() - 1))
        noise = recovered_noise(points.x, tiled, a, s)
        x, goal = points.x, prediction_target(tiled, noise, a, s, prediction_type)
    tiled_conditioning = {
        name: value.repeat(count, *(1,) * (value.dim() - 1)) for name, value in (conditioning or {}).items()
    }
    mask = None if mask is None else mask.repeat(count, *(1,) * (mask.dim() - 1))
    t = levels.timesteps[k - 1]
    return preference_errors(policy, reference, x, t, goal, tiled_conditioning, weight=weight, points=count, mask=mask)


# Soft labels of SmPO


def preference_probability(
    chosen: torch.Tensor,  # (B,)
    rejected: torch.Tensor,  # (B,)
    minimum: float = 0.11543526500463486,
    maximum: float = 0.28201571106910706,
) -> torch.Tensor:
    """
    `p = exp(s_w) / (exp(s_w) + exp(s_l))` of scores scaled by `s = (score - minimum) / (maximum - minimum)`.

    Args:
        chosen, rejected (`torch.Tensor` of shape `(B,)`): Scores, for example cosines of PickScore without its scale.
        minimum, maximum (`float`, *optional*): The range of the scores; by default that of PickScore over Pick-a-Pic
            v2 in the SmPO release.
    """
    return torch.sigmoid((chosen - rejected) / (maximum - minimum))


def label_factor(probability: torch.Tensor, sharpness: float = 10.0) -> torch.Tensor:
    """
    The factor `2 alpha - gamma` of the margin with `alpha = gamma p`: `gamma (2 p - 1)`. Zero, so without gradient,
    for a pair that could go either way; 1 with sure labels and a `sharpness` of 1.

    Args:
        probability (`torch.Tensor` of shape `(B,)`): That the winner is the better one.
        sharpness (`float`, *optional*, defaults to 10.0): `gamma`.
    """
    return sharpness * (2 * probability - 1)


# All steps of a trajectory in the memory of a few


def two_pass_backward(
    delta: Callable[[int], torch.Tensor],
    chunks: int,
    loss: Callable[[torch.Tensor], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
    context: Callable[[bool], AbstractContextManager] = lambda last: nullcontext(),
) -> torch.Tensor:
    r"""
    The gradient of `loss(delta_1 + ... + delta_n)` with one part's graph alive at a time. A first pass without graphs
    gives the sum and `c = d loss / d sum`, a second one adds the gradient of `sum(c * delta_i)` part by part.

    Args:
        delta (`Callable[[int], torch.Tensor]`): The contribution of part `i`, the same at every call; shape `(2B,)`.
        chunks (`int`): `n`.
        loss (`Callable[[torch.Tensor], torch.Tensor]`): Scalar function of the sum.
        backward (`Callable[[torch.Tensor], None]`): Gets each scalar to differentiate.
        context (`Callable[[bool], AbstractContextManager]`, *optional*):
            What each part of the second pass runs in, given whether it is the last one; for `no_sync`.

    Returns:
        `torch.Tensor`: The loss, detached.
    """
    with torch.no_grad():
        total = torch.stack([delta(i) for i in range(chunks)]).sum(0)
    total.requires_grad_()
    with torch.enable_grad():
        value = loss(total)
        (c,) = torch.autograd.grad(value, total)
        for i in range(chunks):
            with context(i == chunks - 1):
                backward((c * delta(i)).sum())
    return value.detach()
