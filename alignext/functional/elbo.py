# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""The evidence lower bound of a diffusion or flow model, as pure functions: terms, and differences of two models.

Notation of [`~alignext.functional.predictions`]: a level `(a, s)` makes `x = a x0 + s n`; `SNR = a^2 / s^2`. With
levels `k = 0..N`, clean side first, the bound of Kingma et al. ("Variational Diffusion Models",
[arXiv 2107.00630](https://huggingface.co/papers/2107.00630), not numbered here) is, up to terms that depend on the
levels alone,

    -log p(x0) <= sum_{k >= 2} W_k E |x0 - x0_theta(x_k)|^2,        W_k = (SNR_{k-1} - SNR_k) / 2

with the squared norm summed over dimensions. In terms of the noise, `|x0 - x0_theta|^2 = |n - n_theta|^2 / SNR`, which
makes the weight `(SNR_{k-1} / SNR_k - 1) / 2`; the form above also holds where `a = 0`.
"""

from typing import Any

import torch

from alignext.functional.predictions import add_noise, clean_and_noise, prediction_target


def row_mse(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Mean over all but the first dimension of `(prediction - target)^2`, in float32 or better; shape `(R,)`.

    Args:
        prediction, target (`torch.Tensor` of shape `(R, ...)`): What the network says, and what it should say.
        mask (`torch.Tensor`, *optional*): Weights of the mean that broadcast to `prediction`, `R` rows; the same mean
            where all of them are equal.
    """
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    squares = (prediction.to(dtype) - target.to(dtype)).square()
    if mask is None:
        return squares.flatten(1).mean(1)
    weights = mask.to(squares).expand_as(squares)
    return (weights * squares).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)


def denoising_loss(
    prediction: torch.Tensor,
    x0: torch.Tensor,
    noise: torch.Tensor,
    a: torch.Tensor | float,
    s: torch.Tensor | float,
    prediction_type: str,
) -> torch.Tensor:
    """
    The loss without weight that such networks are trained on: `mean (n - n_theta)^2` for diffusion, whatever the
    network predicts, and `mean ((n - x0) - v_theta)^2` for flow matching. A network that knows the noise has 0; one
    that predicts no noise at all has `mean n^2`, about 1.

    Args:
        prediction (`torch.Tensor` of shape `(R, ...)`): Output of the network at `a x0 + s n`.
        x0, noise (`torch.Tensor` of shape `(R, ...)`): Clean latents and their noise.
        a, s (`torch.Tensor` or `float`): The level; scalars, or of shape `(R,)`.
        prediction_type (`str`): One of `PREDICTION_TYPES`.

    Returns:
        `torch.Tensor` of shape `(R,)`, float32 or better.
    """
    if prediction_type != "flow_prediction":
        x = add_noise(x0, noise, a, s)
        prediction, prediction_type = clean_and_noise(prediction, x, a, s, prediction_type)[1], "epsilon"
    target = prediction_target(x0, noise, a, s, prediction_type)
    return row_mse(prediction, target)


def kl_weights(a: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """
    `W_k = (SNR_{k-1} - SNR_k) / 2` of levels `k = 2..N`.

    Args:
        a, s (`torch.Tensor` of shape `(N + 1,)`): Levels, clean side first; number 0 is the data itself, and `s > 0`
            from number 1 on.

    Returns:
        `torch.Tensor` of shape `(N - 1,)`, float64.

    Raises:
        ValueError: If the signal-to-noise ratio does not fall from level to level.
    """
    snr = (a[1:].double() / s[1:].double()).square()
    weights = (snr[:-1] - snr[1:]) / 2
    if not (weights > 0).all():
        raise ValueError("`a` and `s` must be levels from data to noise, received ratios a / s that do not fall.")
    return weights


def squared_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """
    `|x - y|^2`, summed over all but the first dimension, in float64.

    Args:
        x, y (`torch.Tensor` of shape `(R, ...)`): Rows to compare.
    """
    return (x.double() - y.double()).square().flatten(1).sum(1)


def _clean(prediction: torch.Tensor, x: torch.Tensor, a: Any, s: Any, prediction_type: str) -> torch.Tensor:
    return clean_and_noise(prediction.double(), x.double(), a, s, prediction_type)[0]


def kl_gap(
    prediction_p: torch.Tensor,
    prediction_q: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor | float,
    s: torch.Tensor | float,
    prediction_type: str,
) -> torch.Tensor:
    r"""
    `|x0_p(x) - x0_q(x)|^2`, which times `W_k` is the term of level `k` in `KL(p || q)` where `x` is a noised draw of
    `p`: then `x0_p` is the mean of `x0` given `x`, and `E[|x0 - x0_q|^2 - |x0 - x0_p|^2] = E |x0_p - x0_q|^2`. It is
    never negative, and has no noise of its own that would have to cancel.

    Args:
        prediction_p, prediction_q, x (`torch.Tensor` of shape `(R, ...)`): Outputs of both networks, and their input.
        a, s (`torch.Tensor` or `float`): The level; scalars, or of shape `(R,)`.
        prediction_type (`str`): One of `PREDICTION_TYPES`, of both.

    Returns:
        `torch.Tensor` of shape `(R,)`, float64.
    """
    x0_p, x0_q = (_clean(prediction, x, a, s, prediction_type) for prediction in (prediction_p, prediction_q))
    return squared_distance(x0_p, x0_q)


def elbo_difference(
    prediction_p: torch.Tensor,
    prediction_q: torch.Tensor,
    x0: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor | float,
    s: torch.Tensor | float,
    prediction_type: str,
) -> torch.Tensor:
    """
    `|x0 - x0_q|^2 - |x0 - x0_p|^2` at the same `x`: its expectation over draws of `p` is that of [`kl_gap`], with more
    variance and either sign.

    Args:
        prediction_p, prediction_q, x0, x (`torch.Tensor` of shape `(R, ...)`): Outputs of both networks, clean
            latents, and the networks' input.
        a, s (`torch.Tensor` or `float`): The level; scalars, or of shape `(R,)`.
        prediction_type (`str`): One of `PREDICTION_TYPES`, of both.

    Returns:
        `torch.Tensor` of shape `(R,)`, float64.
    """
    x0_p, x0_q = (_clean(prediction, x, a, s, prediction_type) for prediction in (prediction_p, prediction_q))
    return squared_distance(x0_q, x0) - squared_distance(x0_p, x0)


def level_proposal(weights: torch.Tensor, a: torch.Tensor, s: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """
    Probabilities to draw levels `2..N` with. Half follows the weight of an error of the network's own output, as most
    of it lies near the data (86 % below `t = 100` of 1,000 for Stable Diffusion); half is uniform, so that no level's
    share is drawn so rarely that it counts for much when it is.

    Args:
        weights (`torch.Tensor` of shape `(N - 1,)`): Of [`kl_weights`].
        a, s (`torch.Tensor` of shape `(N + 1,)`): The levels.
        prediction_type (`str`): One of `PREDICTION_TYPES`.
    """
    a, s = a[2:].double(), s[2:].double()
    # |x0_p - x0_q|^2 in units of the squared difference of outputs
    scale = {"epsilon": (s / a.clamp(min=1e-12)) ** 2, "sample": torch.ones_like(s)}.get(prediction_type, s**2)
    own = weights * scale
    return 0.5 * own / own.sum() + 0.5 / len(own)


def stratified_draws(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """
    `K` draws of a discrete distribution, one in each `K`-th of its mass.

    Args:
        probabilities (`torch.Tensor` of shape `(n,)`): Sum to 1.
        uniform (`torch.Tensor` of shape `(R, K)`): Uniform draws in `[0, 1)`.

    Returns:
        `torch.Tensor` of shape `(R, K)`, int64 in `[0, n)`.
    """
    K = uniform.shape[-1]
    u = (torch.arange(K, device=uniform.device) + uniform.double()) / K
    cumulative = probabilities.double().cumsum(0)
    return torch.searchsorted(cumulative / cumulative[-1], u, right=True).clamp(max=len(probabilities) - 1)
