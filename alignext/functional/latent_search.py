# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search in equations: one stochastic step for every diffusion and flow model, who survives a selection, and
neighbours of an initial noise. From arXiv 2501.19252 and its siblings; their equations are not numbered here.

A node has levels `(alpha, sigma)` with `z = alpha x0 + sigma eps`; what a model output stands for there is
[`~alignext.functional.predictions.clean_and_noise`]. Variance-preserving models: `alpha =
sqrt(alpha_bar)`, `sigma = sqrt(1 - alpha_bar)`. Flow models: `alpha = 1 - sigma`, velocity `v = eps - x0`. Levels are
Python floats. A prime (`alpha_next`, `sigma_next`) is the following, cleaner node.

At a scored node, rewards `[P, n]` become `parents [P, n]`: the slot that each slot of the next population descends
from. There are `P` prompts and `n = B * K` slots, slot = beam * K + candidate.
"""

import math

import torch


def noise_scale(
    noise: str, alpha: float, sigma: float, alpha_next: float, sigma_next: float, eta: float = 1.0
) -> float:
    """
    Standard deviation `s` of the fresh noise in `z' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise`:

        ddpm          s = eta sigma' sqrt(max(0, 1 - r^2)),  r = alpha sigma' / (alpha' sigma)
        rf_ancestral  s^2 = sigma'^2 - d^2 (alpha' / (1 - d))^2,  d = sigma' (1 + (sigma' / sigma - 1) eta)
        cps           s = sigma' sin(eta pi / 2)
        renoise       s = sigma'

    `ddpm` is the eta rule of DDIM; at `eta = 1` it is the first-order SDE-DPM-Solver++. `rf_ancestral` is what
    `LTXEulerAncestralRFScheduler` does, `renoise` what `FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)`
    does, and `cps` is coefficients-preserving sampling (Flow-CPS). All keep the signal's coefficient and the total
    noise variance.

    Args:
        noise (`str`): One of the names above.
        alpha, sigma (`float`): Levels of signal and noise that the step leaves.
        alpha_next, sigma_next (`float`): Those it goes to, `alpha'` and `sigma'`.
        eta (`float`, *optional*, defaults to 1.0): Share of fresh noise, in [0, 1]; `renoise` does not read it.

    Raises:
        ValueError: For an unknown `noise`.
    """
    if noise == "ddpm":
        r = alpha * sigma_next / (alpha_next * sigma)
        return eta * sigma_next * math.sqrt(max(0.0, 1 - r * r))
    if noise == "rf_ancestral":
        down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
        return math.sqrt(max(0.0, sigma_next**2 - (down * alpha_next / (1 - down)) ** 2))
    if noise == "cps":
        return sigma_next * math.sin(eta * math.pi / 2)
    if noise == "renoise":
        return sigma_next
    raise ValueError(f"`noise` must be 'ddpm', 'rf_ancestral', 'cps' or 'renoise' here, received {noise!r}.")


def transition(
    noise: str,
    x0: torch.Tensor,
    eps: torch.Tensor,  # the shape of x0
    fresh: torch.Tensor,  # the shape of x0
    alpha: float,
    sigma: float,
    alpha_next: float,
    sigma_next: float,
    eta: float = 1.0,
) -> torch.Tensor:
    """
    The next noisy sample `z' = alpha' x0 + sqrt(max(0, sigma'^2 - s^2)) eps + s fresh` with the `s` of
    [`noise_scale`]. `eta = 0` is the deterministic step: DDIM, for flow models Euler.

    `"flow_grpo"` is the step that Flow-GRPO trains with (arXiv 2505.05470), `a = eta`, `dt = sigma' - sigma`:

        q = a sqrt(sigma / (1 - d)),  d = sigma, but sigma' where sigma = 1
        z' = z (1 + q^2 / (2 sigma) dt) + v (1 + q^2 (1 - sigma) / (2 sigma)) dt + q sqrt(-dt) fresh

    so that the first step, from `sigma = 1`, adds noise of standard deviation `a`. It does not keep the coefficients:
    the sample has more noise left than its level says.

    Args:
        noise (`str`): `"ddpm"`, `"rf_ancestral"`, `"cps"`, `"renoise"` or `"flow_grpo"`.
        x0, eps (`torch.Tensor`): Clean sample and noise predicted at the node, see
            [`~alignext.functional.predictions.clean_and_noise`].
        fresh (`torch.Tensor`): Standard normal noise.
        alpha, sigma (`float`): Levels of the node.
        alpha_next, sigma_next (`float`): Levels of the next node.
        eta (`float`, *optional*, defaults to 1.0): Noise strength.

    Returns:
        `torch.Tensor`: `z'`.
    """
    if noise == "flow_grpo":
        z, v = alpha * x0 + sigma * eps, eps - x0
        q = eta * math.sqrt(sigma / (1 - (sigma if sigma < 1 else sigma_next)))
        dt = sigma_next - sigma
        mean = z * (1 + q * q / (2 * sigma) * dt) + v * (1 + q * q * (1 - sigma) / (2 * sigma)) * dt
        return mean + q * math.sqrt(-dt) * fresh
    s = noise_scale(noise, alpha, sigma, alpha_next, sigma_next, eta)
    return alpha_next * x0 + math.sqrt(max(0.0, sigma_next**2 - s * s)) * eps + s * fresh


def beam_parents(rewards: torch.Tensor, num_beams: int, cap: int | None = None) -> torch.Tensor:
    """
    The B best of all n candidates, pooled, best first, each in K slots. Ties keep the lower index; one beam may take
    all places.

    Args:
        rewards (`torch.Tensor` of shape `(P, n)`): Larger is better.
        num_beams (`int`): B, which divides n.
        cap (`int`, *optional*): No beam of the last population keeps more than so many of its K candidates.

    Returns:
        `torch.Tensor` of shape `(P, n)`, int64.
    """
    n = rewards.shape[1]
    candidates = n // num_beams
    order = rewards.sort(dim=1, descending=True, stable=True).indices
    if cap is not None:
        beams = order // candidates
        # How many better candidates of the same beam there are: those with `cap` or more of them go to the end.
        better = (beams[:, :, None] == beams[:, None, :]).tril(-1).sum(2)
        order = order.gather(1, (better >= cap).to(torch.int8).sort(dim=1, stable=True).indices)
    return order[:, :num_beams].repeat_interleave(candidates, dim=1)


def local_parents(rewards: torch.Tensor, num_beams: int) -> torch.Tensor:
    """
    The best of each beam's own K candidates, in K slots: no competition between beams (SVDD, arXiv 2408.08252).

    Args:
        rewards (`torch.Tensor` of shape `(P, n)`): Of the candidates, those of a beam side by side.
        num_beams (`int`): B; K is `n / B`.

    Returns:
        `torch.Tensor` of shape `(P, n)`, int64: As of [`beam_parents`].
    """
    groups = rewards.unflatten(1, (num_beams, -1))
    candidates = groups.shape[2]
    best = groups.sort(dim=2, descending=True, stable=True).indices[:, :, 0]
    best = best + torch.arange(num_beams, device=rewards.device) * candidates
    return best.repeat_interleave(candidates, dim=1)


def systematic_resample(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """
    Systematic resampling, `searchsorted(cumsum W, (u + k) / n, right)`: slot i gets floor or ceil of `n W_i` copies.

    Args:
        weights (`torch.Tensor` of shape `(P, n)`): `W`, rows sum to 1.
        u (`torch.Tensor` of shape `(P,)`): Uniform in [0, 1).

    Returns:
        `torch.Tensor` of shape `(P, n)`, int64, ascending: the parents.
    """
    n = weights.shape[1]
    points = (u.to(weights)[:, None] + torch.arange(n, device=weights.device)) / n
    parents = torch.searchsorted(weights.cumsum(1), points.contiguous(), right=True)
    # The sum of the weights may fall short of 1 by rounding: the last slot that has weight takes what is beyond.
    last = n - 1 - (weights.flip(1) > 0).to(torch.int8).argmax(1, keepdim=True)
    return torch.minimum(parents, last)


def smc_gain(
    potential: str,
    R: torch.Tensor,  # (P, n)
    R_prev: torch.Tensor,  # (P, n), 0 at first
    L: torch.Tensor,  # (P, n), 0 at first
    scale: float,
    last: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What a node adds to the log-weights `G` of Feynman-Kac steering (arXiv 2501.06848), aimed at `p(x) exp(lambda
    r(x))`, and the reward that the next node compares with:

        diff  G += lambda (R - R_prev)
        max   R := max(R, R_prev);  G += lambda R
        add   R := R + R_prev;      G += lambda R
        rt                          G += lambda R

    At the last node, where `R` is `r(x0)`, all but `diff` add `lambda r(x0) - L` instead, `L` the sum of what was
    added before. Then the whole product is `exp(lambda r(x0))`, which it is with `diff` anyway.

    Args:
        potential (`str`): `"diff"`, `"max"`, `"add"` or `"rt"`.
        R (`torch.Tensor` of shape `(P, n)`): Rewards of the node, finite or `-inf`.
        R_prev (`torch.Tensor` of shape `(P, n)`): The reward that the previous node handed on.
        L (`torch.Tensor` of shape `(P, n)`): The sum of what was added before.
        scale (`float`): `lambda`. With 0, nothing is added, whatever the rewards.
        last (`bool`, *optional*, defaults to `False`): Whether this is the last node.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: What is added to `G`, and `R`.
    """
    if last and potential != "diff":
        compared = L / (scale or 1)
    elif potential == "diff":
        compared = R_prev
    else:
        R = {"max": torch.maximum(R, R_prev), "add": R + R_prev, "rt": R}[potential]
        compared = 0
    return (scale * (R - compared) if scale else torch.zeros_like(R)), R


def effective_sample_size(log_weights: torch.Tensor) -> torch.Tensor:
    """
    `1 / sum W^2` with `W = softmax(G)`, in [1, n].

    Args:
        log_weights (`torch.Tensor` of shape `(P, n)`): `G`.

    Returns:
        `torch.Tensor` of shape `(P,)`.
    """
    return 1 / smc_weights(log_weights).square().sum(1)


def smc_weights(log_weights: torch.Tensor) -> torch.Tensor:
    """
    `W = softmax(G)`; equal weights where all are `-inf`.

    Args:
        log_weights (`torch.Tensor` of shape `(P, n)`): `G`, finite or `-inf`.

    Returns:
        `torch.Tensor` of shape `(P, n)`: Rows sum to 1.
    """
    G = log_weights
    return torch.where(G.isfinite().any(1, keepdim=True), G, torch.zeros_like(G)).softmax(1)


def neighbor(x: torch.Tensor, direction: torch.Tensor, cosine: float) -> torch.Tensor:
    """
    A point at the same norm and a given cosine from `x`: `|x| (c u + sqrt(1 - c^2) w)`, `u = x / |x|`, `w` the unit
    vector along the part of `direction` that is orthogonal to `u`. Norms are per row, over all other dimensions.

    Args:
        x (`torch.Tensor`): Initial latents, a row each.
        direction (`torch.Tensor`): Standard normal noise of the same shape.
        cosine (`float`): `c` in [0, 1]: 1 is `x` itself, 0 any direction orthogonal to it.

    Returns:
        `torch.Tensor`: The neighbours.
    """
    flat, w = x.flatten(1), direction.to(x).flatten(1)
    norm = flat.norm(dim=1, keepdim=True)
    u = flat / norm
    w = w - (w * u).sum(1, keepdim=True) * u
    w = w / w.norm(dim=1, keepdim=True)
    return (norm * (cosine * u + (1 - cosine**2) ** 0.5 * w)).view_as(x)
