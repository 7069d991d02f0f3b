# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""Estimates from samples of a target `p = P / Z` that is known up to its normaliser: `Z`, the distance of a policy
from it, and what quasi-rejection sampling costs. Notation as in [`f_dpg`][alignext.functional.f_dpg]."""

import math
from collections.abc import Sequence

import torch

from alignext.functional.f_divergences import _wide


_LOG_2 = math.log(2)


def effective_sample_size(log_w: torch.Tensor) -> torch.Tensor:
    """
    `(sum w)^2 / sum w^2` of importance weights: `n` if all are the same, 1 if one has it all, 0 if there are none.

    Args:
        log_w (`torch.Tensor` of shape `(..., n)`): Log-weights, up to a constant; `-inf` and NaN weigh nothing.

    Returns:
        `torch.Tensor` of shape `(...)`, float64.
    """
    log_w = _wide(log_w)
    log_w = torch.where(log_w.isnan(), -math.inf, log_w)
    return (2 * log_w.logsumexp(-1) - (2 * log_w).logsumexp(-1)).exp().nan_to_num(0.0)


def estimate_log_z(
    log_w: torch.Tensor, *, log_sum: float = -math.inf, count: int = 0, leave_one_out: bool = True
) -> torch.Tensor:
    r"""
    The log of the partition function `Z = E_q[P / q]` of one context, for each of its `N` samples from all others:

        log Z_{-i} = log((S + sum_{j != i} w_j) / (n + N - 1)),  w_j = P_j / q_j

    with `S` and `n` the sum and the number of the weights seen before. As `Z_{-i}` does not depend on sample `i`, the
    gradient of reverse KL is unbiased and that of a power of `t` is parallel to the true one; with the sample itself
    in its `Z` neither is.

    Where `Z_{-i} = 0` and only `w_i` is positive, the sample's `Z` includes it, so that the one success counts. Where
    nothing but the sample itself is known, the estimate is NaN.

    Args:
        log_w (`torch.Tensor` of shape `(..., N)`):
            `log P - log q`; `-inf` where `P = 0`, NaN where the sample has no score: it is left out.
        log_sum (`float`, *optional*, defaults to `-inf`): `log S`.
        count (`int`, *optional*, defaults to 0): `n`.
        leave_one_out (`bool`, *optional*, defaults to `True`): Else the sample itself is in its sum, and `N` divides.

    Returns:
        `torch.Tensor` of shape `(..., N)`, float64.
    """
    log_w = _wide(log_w)
    valid = ~log_w.isnan()
    log_w = torch.where(valid, log_w, -math.inf)
    past = torch.full_like(log_w, log_sum)
    n = valid.sum(-1, keepdim=True).to(log_w) + count
    inclusive = torch.logaddexp(past, log_w.logsumexp(-1, keepdim=True)) - n.log()
    if not leave_one_out:
        return inclusive
    others = torch.logaddexp(past, _log_sum_of_others(log_w)) - (n - valid.to(log_w)).log()
    return torch.where((others == -math.inf) & (inclusive > -math.inf), inclusive, others)


def _log_sum_of_others(log_w: torch.Tensor) -> torch.Tensor:
    """`log sum_{j != i} exp(log_w_j)` along the last dimension, from the sums before and after."""
    none = torch.full_like(log_w[..., :1], -math.inf)
    before = torch.cat([none, log_w.logcumsumexp(-1)[..., :-1]], -1)
    after = torch.cat([none, log_w.flip(-1).logcumsumexp(-1)[..., :-1]], -1).flip(-1)
    return torch.logaddexp(before, after)


def divergence_estimates(
    log_pi: torch.Tensor,
    log_target: torch.Tensor,
    log_ref: torch.Tensor | None = None,
    log_q: torch.Tensor | None = None,
    *,
    log_z: float | torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    r"""
    Distances between policy, target and initial model, from samples of `q`. With `rho = pi / q`, `w = P / (Z q)` and
    `m = (p + pi) / 2`:

        kl_target_policy = KL(p, pi) = -log Z + mean[w (log P - log pi)]
        tv               = mean|rho - w| / 2
        js               = mean[w (log p - log m) + rho (log pi - log m)] / 2   (the JSD: half of the objective "js")
        kl_policy_base   = KL(pi, a) = mean[rho (log pi - log a)]
        kl_target_base   = KL(p, a)  = -log Z + mean[w (log P - log a)]

    Samples with `p = 0` add 0 to `KL(p, .)`.

    Args:
        log_pi (`torch.Tensor` of shape `(N,)`): Log-probabilities under the policy.
        log_target (`torch.Tensor` of shape `(N,)`): `log P`, not normalised; `-inf` for excluded samples.
        log_ref (`torch.Tensor` of shape `(N,)`, *optional*): `log a`; without it the last two are left out.
        log_q (`torch.Tensor` of shape `(N,)`, *optional*): Under the proposal; `log_pi` if not given.
        log_z (`float` or `torch.Tensor`, *optional*):
            `log Z`, finite, one or one a sample; `log mean(P / q)` of these samples if not given.

    Returns:
        `dict[str, torch.Tensor]`: scalars, float64. Without `log_z`, `tv` and `js` are NaN and the KLs of the target
        `inf` if all samples are excluded: nothing is known of the target.
    """
    log_pi, log_p = _wide(log_pi), _wide(log_target)
    log_q = log_pi if log_q is None else _wide(log_q)
    if log_z is None:
        log_z = estimate_log_z(log_p - log_q, leave_one_out=False)
    log_z = _wide(log_z).to(log_p.device).expand_as(log_p)
    rho, w = (log_pi - log_q).exp(), (log_p - log_z - log_q).exp()
    inside = log_p > -math.inf

    def under_target(log_ratio: torch.Tensor) -> torch.Tensor:
        return torch.where(inside, w * torch.where(inside, log_ratio, 0.0), 0.0)

    log_m = torch.logaddexp(log_p - log_z, log_pi) - _LOG_2
    estimates = {
        "kl_target_policy": (under_target(log_p - log_pi) - log_z).mean(),
        "tv": (rho - w).abs().mean() / 2,
        "js": (under_target(log_p - log_z - log_m) + rho * (log_pi - log_m)).mean() / 2,
    }
    if log_ref is not None:
        log_ref = _wide(log_ref)
        estimates["kl_policy_base"] = (rho * (log_pi - log_ref)).mean()
        estimates["kl_target_base"] = (under_target(log_p - log_ref) - log_z).mean()
    return estimates


def qrs_estimates(
    log_target: torch.Tensor, log_q: torch.Tensor, betas: torch.Tensor | Sequence[float] | float
) -> dict[str, torch.Tensor]:
    r"""
    Estimates of quasi-rejection sampling from samples of `q`. It accepts `x ~ q` with probability
    `min(1, P / (beta q))`, and so samples `p_beta = min(P, beta q) / Z_beta`. The larger `beta`, the nearer `p_beta`
    is to `p` and the more is rejected.

        z               = E_q[P / q]
        z_beta          = E_q[min(P / q, beta)]
        acceptance_rate = z_beta / beta
        kl              = KL(p, p_beta),  tv = TV(p, p_beta)

    Args:
        log_target (`torch.Tensor` of shape `(N,)`): `log P`, not normalised.
        log_q (`torch.Tensor` of shape `(N,)`): Log-probabilities under the proposal that sampled.
        betas (`torch.Tensor` of shape `(B,)` or `float`): Positive, on the scale of `P / q`.

    Returns:
        `dict[str, torch.Tensor]`: of shape `(B,)` each, float64; `kl` and `tv` are NaN where no sample has weight.

    Raises:
        ValueError: A `beta` is not positive.
    """
    log_w, betas = _wide(log_target) - _wide(log_q), _wide(betas)
    if not (betas > 0).all():
        raise ValueError(f"`betas` are {betas.tolist()}, but each must be positive.")
    log_beta = betas.log().reshape(-1, 1).to(log_w.device)
    log_n = math.log(len(log_w))
    capped = torch.minimum(log_w, log_beta)  # (B, N)
    log_z, log_z_beta = log_w.logsumexp(0) - log_n, capped.logsumexp(1, keepdim=True) - log_n
    log_p, log_p_beta = log_w - log_z, capped - log_z_beta  # relative to q
    inside = log_w > -math.inf
    difference = torch.where(inside, log_p - log_p_beta, 0.0)
    shape = betas.reshape(-1).shape
    return {
        "z": log_z.exp().expand(shape),
        "z_beta": log_z_beta[:, 0].exp(),
        "acceptance_rate": (log_z_beta - log_beta)[:, 0].exp(),
        "kl": (log_p.exp() * difference).mean(1),
        "tv": (log_p.exp() - log_p_beta.exp()).abs().mean(1) / 2,
    }
