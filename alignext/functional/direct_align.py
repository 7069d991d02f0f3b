# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Direct-Align (SRPO, arXiv 2509.06942): a clean sample from one network call at any noise level, by known noise.

Levels and predictions are those of [`~alignext.functional.predictions`].
"""

import torch

from alignext.functional.predictions import add_noise, clean_and_noise


def direct_align(
    prediction: torch.Tensor,
    x: torch.Tensor,
    noise: torch.Tensor,
    level: tuple[torch.Tensor | float, torch.Tensor | float],
    next_level: tuple[torch.Tensor | float, torch.Tensor | float],
    prediction_type: str,
) -> torch.Tensor:
    """
    Step from `x = a x0 + s n` down to a cleaner level by the network's prediction, then take the known noise away:
    `x' = a' x0_hat + s' n_hat`, `x0 = (x' - s' n) / a'`. With a perfect prediction this is `x0` at every level. The
    share of the network in the result grows with the length of the step, and so do its errors.

    For flow matching this is `(x - ds v - (s - ds) n) / (1 - s + ds)`. With `s' = 0` it is the one-step estimate.

    Args:
        prediction, x (`torch.Tensor` of shape `(n, ...)`): Output and input of the network.
        noise (`torch.Tensor` of shape `(n, ...)`): The noise in `x`, that is `n`.
        level (`tuple`): `(a, s)` of `x`.
        next_level (`tuple`): `(a', s')`, `s' < s`.
        prediction_type (`str`): One of [`~alignext.functional.predictions.PREDICTION_TYPES`].
    """
    x0, n = clean_and_noise(prediction, x, *level, prediction_type)
    return clean_and_noise(noise, add_noise(x0, n, *next_level), *next_level, "epsilon")[0]
