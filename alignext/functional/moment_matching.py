# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""The exponential family through given moments: coefficients of the distributional targets of GDC
([2012.11635](https://huggingface.co/papers/2012.11635)) and f-DPG."""

import math
from collections.abc import Sequence

import torch

from alignext.functional.f_divergences import _wide


_LARGEST_STEP = 2.0  # nats


def fit_lambda(
    log_w: torch.Tensor,
    phi: torch.Tensor,
    moments: torch.Tensor | Sequence[float],
    *,
    tolerance: float = 1e-12,
    max_iterations: int = 100,
    max_abs: float = 50.0,
    names: Sequence[str] | None = None,
) -> torch.Tensor:
    r"""
    The coefficients `lambda` of the target `p(x|c) = a(x|c) exp(lambda . phi(x)) / Z(c)` that has the given moments,
    by Newton's method with a halving line search on the convex dual, in steps that move the weights by at most 2 nats:

        L(lambda) = mean_c log sum_i w_ci exp(lambda . phi_ci) - lambda . mu
        gradient  = mean_c mu_c(lambda) - mu,  Hessian = mean_c Cov_c(phi)

    Weights are normalised within each context, and contexts averaged. Of all distributions with these moments the
    result is the one nearest to `a` in `KL(p, a)`. For one feature in {0, 1} and one context it is
    `logit(mu) - logit(mu_a)`.

    Args:
        log_w (`torch.Tensor` of shape `(n,)` or `(C, K)`):
            `log a - log q` of samples from `q`, 0 for samples from `a`; `-inf` weighs nothing. With a binary
            constraint add `log b`.
        phi (`torch.Tensor` of shape `(n, F)` or `(C, K, F)`): The features.
        moments (`torch.Tensor` of shape `(F,)`): `mu`, the wanted means.
        tolerance (`float`, *optional*, defaults to 1e-12):
            Largest error of a moment. Where rounding ends the search earlier, 1e-6 will do.
        max_iterations (`int`, *optional*, defaults to 100): Of Newton's method.
        max_abs (`float`, *optional*, defaults to 50.0): Largest coefficient; what needs more counts as out of reach.
        names (`Sequence[str]`, *optional*): Of the features, for messages.

    Returns:
        `torch.Tensor` of shape `(F,)`, float64.

    Raises:
        ValueError: No sample has a weight, a feature is constant or not finite, or the moments cannot be reached.
    """
    log_w, phi = _wide(log_w), _wide(phi)
    mu = _wide(moments).to(phi)
    if log_w.ndim == 1:
        log_w, phi = log_w[None], phi[None]
    log_w = torch.where(log_w.isnan(), -math.inf, log_w)
    kept = (log_w > -math.inf).any(1)  # a context without any weight says nothing
    if not kept.any():
        raise ValueError("No sample has a positive weight, so `lambda` cannot be fitted: the constraint is never met.")
    log_w, phi = log_w[kept], phi[kept]
    phi = torch.where((log_w > -math.inf)[..., None], phi, 0.0)
    _check_moments(log_w, phi, mu, names or [f"feature {k}" for k in range(len(mu))])

    def state(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = log_w + phi @ value
        dual = logits.logsumexp(1).mean() - value @ mu
        weights = logits.softmax(1)
        mean = torch.einsum("ck,ckf->cf", weights, phi)
        centred = phi - mean[:, None]
        hessian = torch.einsum("ck,ckf,ckg->fg", weights, centred, centred) / len(log_w)
        return dual, mean.mean(0) - mu, hessian

    value = torch.zeros_like(mu)
    dual, gradient, hessian = state(value)
    for _ in range(max_iterations):
        if gradient.abs().max() < tolerance or value.abs().max() > max_abs:
            break
        damping = 1e-8 * hessian.trace() + torch.finfo(hessian.dtype).tiny
        step = torch.linalg.solve(hessian + damping * torch.eye(len(mu), dtype=mu.dtype, device=mu.device), gradient)
        size = 1.0
        while size > 1e-10:
            trial = value - size * step
            dual_there, gradient_there, hessian_there = state(trial)
            # The last steps change the dual by less than its rounding.
            falls = dual_there <= dual - 1e-4 * size * (gradient @ step) + 1e-13 * (1 + dual.abs())
            # KL(weights, weights there), by which rare features do not take a step to where all weight is on them:
            # the Hessian is 0 there, and nothing leads back.
            if falls and dual_there - dual + size * (gradient @ step) <= _LARGEST_STEP:
                break
            size /= 2
        else:
            break
        value, dual, gradient, hessian = trial, dual_there, gradient_there, hessian_there
    if gradient.abs().max() >= max(tolerance, 1e-6) or value.abs().max() > max_abs:
        reached = (gradient + mu).tolist()
        raise ValueError(
            f"The moments {mu.tolist()} cannot be reached together with coefficients up to {max_abs:g}: the search "
            f"ended at {reached} with lambda {value.tolist()}. Ask for less, take more samples, or scale the features "
            "up. A moment at the edge of its feature is a hard constraint: give `None` for it."
        )
    return value


def _check_moments(log_w: torch.Tensor, phi: torch.Tensor, mu: torch.Tensor, names: Sequence[str]) -> None:
    if len(mu) != phi.shape[-1] or len(names) != len(mu):
        raise ValueError(f"There are {phi.shape[-1]} features, {len(mu)} moments and {len(names)} names of features.")
    wrong = ~phi.isfinite()
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{names[where[-1]]} is {phi[where].item()} for a sample. A feature has to be a finite number."
        )
    absent = (log_w == -math.inf)[..., None]
    low = torch.where(absent, math.inf, phi).amin(1).mean(0)
    high = torch.where(absent, -math.inf, phi).amax(1).mean(0)
    base = torch.einsum("ck,ckf->cf", log_w.softmax(1), phi).mean(0)
    for k, name in enumerate(names):
        found = f"mean {base[k]:.4g}, range [{low[k]:.4g}, {high[k]:.4g}] over {log_w.numel()} samples"
        if low[k] == high[k]:
            raise ValueError(f"{name} is constant in what the initial model writes ({found}): no moment but its own.")
        if not low[k] < mu[k] < high[k]:
            raise ValueError(
                f"The moment {mu[k]:.4g} of {name} is out of reach: in what the initial model writes it has {found}. "
                "A moment must lie inside the range; for a constraint that always holds give `None`."
            )
