# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""
Steering of a residual stream along one direction, and the fit of that direction.

SwFC, StTP and StMP: "Activation Steering for Aligned Open-ended Generation without Sacrificing Coherence", Herbster et
al., arXiv 2604.08169. Clamping and the interchange intervention: "Faithful Bi-Directional Model Steering via
Distribution Matching and Distributed Interchange Interventions", Bao et al., arXiv 2602.05234. Equations are not
numbered here.

All methods change a state `h` by a multiple `a` of the unit vector `v`, as a function of the projection `rho = h . v`:

    h' = h + a(rho) v
"""

import math
from typing import NamedTuple

import torch

from alignext.functional.logistic import fit_logistic


class Direction(NamedTuple):
    """
    A direction and the projections of the answers it was fitted to.

    Attributes:
        v (`torch.Tensor` of shape `(d,)`): Unit vector; it points to the positive answers.
        boundary (`float`): `m`, the projection at which positive and negative answers are equally likely.
        mu_positive, mu_negative (`float`): Mean projections, `mu+` and `mu-`.
        sigma_positive (`float`): Population standard deviation of the positive answers' projections, `sigma+`.
    """

    v: torch.Tensor
    boundary: float
    mu_positive: float
    mu_negative: float
    sigma_positive: float


def fit_direction(
    positive: torch.Tensor,  # (n, d)
    negative: torch.Tensor,  # (n', d)
    *,
    kind: str = "logistic",
    c: float = 1.0,
) -> Direction:
    r"""
    The direction between two sets of states, each state the mean over the tokens of an answer.

    `kind="logistic"`: `w, b` minimise `1/2 |w|^2 + C sum log-loss`; `v = w / |w|`, `m = -b / |w|`.
    `kind="mean_difference"`: `v` is along `mean(positive) - mean(negative)`, and `m` halfway between the mean
    projections.

    Args:
        positive (`torch.Tensor` of shape `(n, d)`): States of positive answers, `n >= 2`.
        negative (`torch.Tensor` of shape `(n', d)`): States of negative answers, `n' >= 2`.
        kind (`str`, *optional*, defaults to `"logistic"`): `"logistic"` or `"mean_difference"`.
        c (`float`, *optional*, defaults to 1.0): `C` of the logistic regression; positive.

    Returns:
        [`Direction`]: Computed in float64; `v` is float64.

    Raises:
        ValueError: If there are fewer than two answers of a kind, states are not finite, or the direction does not
            separate the two sets, `mu+ > m > mu-`.
    """
    if min(len(positive), len(negative)) < 2:
        raise ValueError(
            "`positive` and `negative` must have at least 2 answers each, "
            f"received {len(positive)} and {len(negative)}."
        )
    positive, negative = positive.double(), negative.double()
    if not (positive.isfinite().all() and negative.isfinite().all()):
        raise ValueError("`positive` and `negative` must be finite, received NaN or infinite states.")
    if kind == "logistic":
        x = torch.cat([positive, negative])
        y = torch.cat([x.new_ones(len(positive)), x.new_zeros(len(negative))])
        w, b = fit_logistic(x, y, c)
        length = float(w.norm()) or 1.0  # identical answers give no direction, which the check below says
        v, m = w / length, -b / length
    elif kind == "mean_difference":
        w = positive.mean(0) - negative.mean(0)
        v = w / (float(w.norm()) or 1.0)
        m = float((positive.mean(0) + negative.mean(0)) @ v / 2)
    else:
        raise ValueError(f"`kind` must be 'logistic' or 'mean_difference', received {kind!r}.")
    mu_positive, mu_negative = float((positive @ v).mean()), float((negative @ v).mean())
    if not mu_positive > m > mu_negative:
        raise ValueError(
            f"The direction must separate positive from negative answers, but their mean projections are "
            f"{mu_positive:.4g} and {mu_negative:.4g} with a boundary of {m:.4g}. Use more answers, another layer, or "
            "pairs that differ in the trait alone."
        )
    return Direction(v, m, mu_positive, mu_negative, float((positive @ v).std(correction=0)))


def project(h: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """
    `rho = h . v`, in float32 or more.

    Args:
        h (`torch.Tensor` of shape `(..., d)`): States.
        v (`torch.Tensor` of shape `(d,)`): Unit vector.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    dtype = torch.promote_types(h.dtype, torch.float32)
    if not torch.is_autocast_enabled(h.device.type):
        return h.to(dtype) @ v.to(dtype)
    with torch.autocast(h.device.type, enabled=False):
        return h.to(dtype) @ v.to(dtype)


def steer(h: torch.Tensor, v: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """
    `h' = h + a v`, computed in float32 or more and rounded once. States with `a = 0` are copied bit for bit.

    Args:
        h (`torch.Tensor` of shape `(..., d)`): States.
        v (`torch.Tensor` of shape `(d,)`): Unit vector.
        a (`torch.Tensor` of shape `(...)`): Step along it, one per state.
    """
    dtype = torch.promote_types(h.dtype, torch.float32)
    a = a.to(dtype)[..., None]
    return torch.where(a == 0, h, (h.to(dtype) + a * v.to(dtype)).to(h.dtype))


def swfc_step(rho: torch.Tensor, alpha: float, delta: float) -> torch.Tensor:
    """
    SwFC: `a = alpha Delta` at every state.

    Args:
        rho (`torch.Tensor`): Projections of states.
        alpha (`float`): Strength.
        delta (`float`): `Delta = mu+ - mu-`.
    """
    return torch.full_like(rho, alpha * delta)


def sttp_step(rho: torch.Tensor, alpha: float, boundary: float, mu: float, sigma: float) -> torch.Tensor:
    """
    StTP: where `rho < m`, `a = (mu+ + alpha sigma+) - rho`, so that the projection becomes that target; else 0.

    Args:
        rho (`torch.Tensor`): Projections of states.
        alpha (`float`): Strength.
        boundary (`float`): `m`.
        mu (`float`): `mu+`.
        sigma (`float`): `sigma+`, of answers, not of tokens.
    """
    return torch.where(rho < boundary, mu + alpha * sigma - rho, 0.0)


def stmp_step(rho: torch.Tensor, alpha: float, boundary: float) -> torch.Tensor:
    """
    StMP: where `rho < m`, `a = 2 alpha (m - rho)`: the mirror image at `alpha = 1`, the boundary at 1/2; else 0.

    Args:
        rho (`torch.Tensor`): Projections of states.
        alpha (`float`): Strength.
        boundary (`float`): `m`.
    """
    return torch.where(rho < boundary, 2 * alpha * (boundary - rho), 0.0)


def clamp_step(rho: torch.Tensor, factor: float) -> torch.Tensor:
    """
    Clamping: `a = factor - rho` at every state, so that the projection becomes `factor`.

    Args:
        rho (`torch.Tensor`): Projections of states.
        factor (`float`): Projection of all states afterwards.
    """
    return factor - rho


def clamp_factor(alpha: float, mu_positive: float | None, mu_negative: float | None) -> float:
    """
    The factor of a strength: `m + alpha (mu+ - m)` about the midpoint `m = (mu+ + mu-) / 2`, so that 1 is the positive
    factor, -1 the negative one, and a larger strength goes further in the same sense. Scaled about zero instead, as
    the reference code does, the negative one of two positive factors would grow towards the positive one.

    Args:
        alpha (`float`): Strength.
        mu_positive, mu_negative (`float`, *optional*): The two factors; without the second, `alpha mu+`, without both,
            `alpha`.
    """
    if mu_positive is None:
        return alpha
    middle = 0.0 if mu_negative is None else (mu_positive + mu_negative) / 2
    return middle + alpha * (mu_positive - middle)


def interchange(h: torch.Tensor, source: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """
    Distributed interchange intervention: `h' = h + (v . h_source - v . h) v`.

    Args:
        h (`torch.Tensor` of shape `(B, L, d)`): Base states.
        source (`torch.Tensor` of shape `(B, d)`): A source state per row.
        v (`torch.Tensor` of shape `(d,)`): Unit vector.
    """
    return steer(h, v, project(source, v)[..., None] - project(h, v))


def jensen_shannon(logits_p: torch.Tensor, logits_q: torch.Tensor) -> torch.Tensor:
    r"""
    `JSD(p, q) = 1/2 KL(p || m) + 1/2 KL(q || m)` with `m = (p + q) / 2`, in nats; at most `log 2`.
    `log m = logaddexp(log p, log q) - log 2`, which is finite for any finite logits.

    Args:
        logits_p, logits_q (`torch.Tensor` of shape `(..., V)`): Logits of the two distributions.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    p, q = logits_p.log_softmax(-1), logits_q.log_softmax(-1)
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1))
