# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Penalised logistic regression in float64: one fit for density ratios and for steering directions."""

import torch
import torch.nn.functional as F


def fit_logistic(
    x: torch.Tensor,  # (n, d)
    y: torch.Tensor,  # (n,)
    c: float,
    weights: torch.Tensor | None = None,  # (n,)
    start: torch.Tensor | None = None,  # (d,)
) -> tuple[torch.Tensor, float]:
    r"""
    The minimum of

        sum_i s_i * BCE(x_i w + b, y_i) + |w|^2 / (2 C)

    by L-BFGS. The bias is not penalised. The objective is `C` times smaller than `1/2 |w|^2 + C sum_i ...`, as
    scikit-learn writes it, and has the same minimum.

    Args:
        x (`torch.Tensor` of shape `(n, d)`, float64): Rows of features.
        y (`torch.Tensor` of shape `(n,)`, float64): 1 or 0.
        c (`float`): `C`, the inverse strength of the penalty; positive.
        weights (`torch.Tensor` of shape `(n,)`, *optional*): `s`; 1 by default.
        start (`torch.Tensor` of shape `(d,)`, *optional*): First value of `w`; 0 by default.

    Returns:
        `tuple[torch.Tensor, float]`: `w` of shape `(d,)`, and `b`.
    """
    w = (x.new_zeros(x.shape[1]) if start is None else start.clone()).requires_grad_()
    b = x.new_zeros(()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        bce = F.binary_cross_entropy_with_logits(x @ w + b, y, weight=weights, reduction="sum")
        loss = (bce + w.square().sum() / (2 * c)) / max(len(y), 1)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return w.detach(), b.item()
