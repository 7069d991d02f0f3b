# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""DDPO (arXiv 2305.13301) and its form for flows (Flow-GRPO, arXiv 2505.05470): sampling as a policy of Gaussians.

A step of sampling takes `x` to `mean + sd z` with the mean that the network says. Log-probabilities and divergences
are means over the dimensions of a sample, as in DDPO's own code: clip ranges and coefficients rest on it.
"""

import math

import torch


def _mean(rows: torch.Tensor) -> torch.Tensor:
    return rows.flatten(1).mean(1)


def gaussian_log_prob(x: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor | float) -> torch.Tensor:
    """
    `-(x - mean)^2 / (2 sd^2) - log sd - log sqrt(2 pi)`, the mean over the dimensions of a row.

    Args:
        x, mean (`torch.Tensor` of shape `(n, ...)`): The sample, and the mean of its distribution.
        sd (`torch.Tensor` or `float`): Positive, the same for all.

    Returns:
        `torch.Tensor` of shape `(n,)`.
    """
    sd = torch.as_tensor(sd, dtype=mean.dtype, device=mean.device)
    return _mean(-((x - mean) ** 2) / (2 * sd**2) - sd.log() - 0.5 * math.log(2 * math.pi))


def gaussian_kl(mean: torch.Tensor, reference: torch.Tensor, sd: torch.Tensor | float) -> torch.Tensor:
    """
    KL divergence of two Gaussians of one deviation, `(mean - reference)^2 / (2 sd^2)`, the mean over the dimensions of
    a row. It is exact: the difference of log-probabilities of a sample has this as its mean, and is negative almost
    as often as not.

    Args:
        mean, reference (`torch.Tensor` of shape `(n, ...)`): Of policy and reference.
        sd (`torch.Tensor` or `float`): Positive, the same for all.

    Returns:
        `torch.Tensor` of shape `(n,)`.
    """
    return _mean((mean - reference) ** 2) / (2 * torch.as_tensor(sd, dtype=mean.dtype, device=mean.device) ** 2)


def normalised(
    values: torch.Tensor, group: int, *, min_std: float = 1e-4, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Values against those of their group: `(v - mean) / (std + eps)`. A group whose values hardly differ gets zeros:
    its deviation is noise.

    Args:
        values (`torch.Tensor` of shape `(P * group,)`): Group after group.
        group (`int`): Samples of a prompt.
        min_std (`float`, *optional*, defaults to 1e-4): Groups of less are left out.
        eps (`float`, *optional*, defaults to 1e-6): Beside the deviation.

    Returns:
        `tuple`: The normalised values, and which of them count, both of shape `(P * group,)`.
    """
    groups = values.double().view(-1, group)  # rewards often differ in their last digits only
    std = groups.std(1, correction=0, keepdim=True)
    taken = std >= min_std
    found = (groups - groups.mean(1, keepdim=True)) / (std + eps) * taken
    return found.flatten().to(values.dtype), taken.expand_as(groups).flatten()


def policy_loss(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    PPO's loss, `max(-A rho, -A clip(rho, 1 - c, 1 + c))` with `rho = exp(log p - log p_old)`.

    Args:
        log_probs (`torch.Tensor` of shape `(k, n)`): Of k steps of n samples, by the policy as it is.
        old_log_probs (`torch.Tensor` of shape `(k, n)`): By the policy that drew the samples.
        advantages (`torch.Tensor` of shape `(n,)`): Of the samples.
        clip_range (`float`): `c`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Loss and ratio, both `(k, n)`.
    """
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped), ratio


def ddim_deviation(alpha_bar: torch.Tensor | float, next_alpha_bar: torch.Tensor | float, eta: float) -> torch.Tensor:
    """
    `eta sqrt((1 - abar') / (1 - abar) (1 - abar / abar'))`, of a step of DDIM (arXiv 2010.02502, eq. 16).

    Args:
        alpha_bar, next_alpha_bar (`torch.Tensor` or `float`): `abar` of the step's beginning and end, `abar' > abar`.
        eta (`float`): 0 for none, 1 for that of DDPM.
    """
    now, then = (torch.as_tensor(v) for v in (alpha_bar, next_alpha_bar))
    return eta * ((1 - then) / (1 - now) * (1 - now / then)).clamp(min=0).sqrt()


def flow_sde_step(
    x: torch.Tensor,
    prediction: torch.Tensor,
    sigma: torch.Tensor | float,
    next_sigma: torch.Tensor | float,
    noise_level: float,
    largest: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    A step of the SDE that has the marginals of a flow's ODE (Flow-GRPO, eq. 9): with `g = noise_level
    sqrt(s / (1 - s))` and `dt = s' - s < 0`,

        mean = x (1 + g^2 dt / (2 s)) + v (1 + g^2 (1 - s) / (2 s)) dt,    sd = g sqrt(-dt)

    With `noise_level = 0` the mean is Euler's step.

    Args:
        x (`torch.Tensor` of shape `(n, ...)`): Latents at level `s`.
        prediction (`torch.Tensor` of shape `(n, ...)`): `v = n - x0`.
        sigma, next_sigma (`torch.Tensor` or `float`): `s > s' >= 0`.
        noise_level (`float`): `a`.
        largest (`torch.Tensor` or `float`): In the place of `s = 1`, where `g` has a pole: the next level of the
            schedule.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Mean `(n, ...)` and deviation `()`.
    """
    s, s_next, top = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (sigma, next_sigma, largest))
    dt = s_next - s
    g2 = noise_level**2 * s / (1 - torch.where(s >= 1, top, s))
    mean = x * (1 + g2 * dt / (2 * s)) + prediction * (1 + g2 * (1 - s) / (2 * s)) * dt
    return mean, (g2 * -dt).sqrt()
