# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a network of a diffusion or flow model predicts: conversions that every method shares, as pure functions.

Notation: a noise level is a pair `(a, s)` with `x = a x0 + s n`: `a = sqrt(abar_t)`, `s = sqrt(1 - abar_t)` for
diffusion, `a = 1 - sigma`, `s = sigma` for flow matching.

A denoiser is a callable `denoiser(x, t, **conditioning)` of `x` (`R`, C, h, w), timesteps `t` (`R`,) and tensors of
`R` rows that returns a prediction of the shape of `x`. `prediction_type` says of what: `"epsilon"` the noise `n`,
`"v_prediction"` `a n - s x0`, `"flow_prediction"` `n - x0`, `"sample"` `x0`.
"""

from collections.abc import Callable, Mapping

import torch


Denoiser = Callable[..., torch.Tensor]

PREDICTION_TYPES = ("epsilon", "v_prediction", "flow_prediction", "sample")


def _like(value: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor | float:
    """A number, a scalar, or one value per row of `x`, so that it multiplies `x` row by row."""
    if not isinstance(value, torch.Tensor):
        return value
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return value.view(-1, *(1,) * (x.dim() - 1)) if value.dim() else value


def add_noise(x0: torch.Tensor, noise: torch.Tensor, a: torch.Tensor | float, s: torch.Tensor | float) -> torch.Tensor:
    """
    `x = a x0 + s n`.

    Args:
        x0, noise (`torch.Tensor` of shape `(R, C, h, w)`): Clean latents and their noise.
        a, s (`torch.Tensor` or `float`): The level; scalars, or of shape `(R,)`.
    """
    return _like(a, x0) * x0 + _like(s, x0) * noise


def recovered_noise(
    x: torch.Tensor, x0: torch.Tensor, a: torch.Tensor | float, s: torch.Tensor | float
) -> torch.Tensor:
    """
    `n = (x - a x0) / s`, the noise that leads from `x0` to `x`: inverse of [`add_noise`].

    Args:
        x, x0 (`torch.Tensor` of shape `(R, C, h, w)`): Noisy and clean latents.
        a, s (`torch.Tensor` or `float`): The level of `x`; scalars, or of shape `(R,)`. `s` must not be 0.
    """
    return (x - _like(a, x) * x0) / _like(s, x)


def prediction_target(
    x0: torch.Tensor, noise: torch.Tensor, a: torch.Tensor | float, s: torch.Tensor | float, prediction_type: str
) -> torch.Tensor:
    """
    What a perfect network says at `a x0 + s n`: `n`, `a n - s x0`, `n - x0` or `x0`.

    Args:
        x0, noise (`torch.Tensor` of shape `(R, C, h, w)`): Clean latents and their noise.
        a, s (`torch.Tensor` or `float`): The level; scalars, or of shape `(R,)`.
        prediction_type (`str`): One of `PREDICTION_TYPES`.

    Raises:
        ValueError: There is no such `prediction_type`.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return _like(a, x0) * noise - _like(s, x0) * x0
    if prediction_type == "flow_prediction":
        return noise - x0
    if prediction_type == "sample":
        return x0
    raise ValueError(f"`prediction_type` must be one of {', '.join(PREDICTION_TYPES)}, received {prediction_type!r}.")


def clean_and_noise(
    prediction: torch.Tensor, x: torch.Tensor, a: torch.Tensor | float, s: torch.Tensor | float, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The `(x0, n)` that a prediction at `x` stands for, with `a x0 + s n = x`. Inverse of [`prediction_target`].

    Args:
        prediction, x (`torch.Tensor` of shape `(R, C, h, w)`): Output and input of the network.
        a, s (`torch.Tensor` or `float`): The level of `x`; scalars, or of shape `(R,)`. `a > 0` for `"epsilon"`,
            `s > 0` for `"sample"`.
        prediction_type (`str`): One of `PREDICTION_TYPES`.
    """
    a, s = _like(a, x), _like(s, x)
    if prediction_type == "epsilon":
        return (x - s * prediction) / a, prediction
    if prediction_type == "v_prediction":  # a^2 + s^2 = 1
        return a * x - s * prediction, s * x + a * prediction
    if prediction_type == "flow_prediction":  # a + s = 1
        return x - s * prediction, x + a * prediction
    if prediction_type == "sample":
        return prediction, (x - a * prediction) / s
    raise ValueError(f"`prediction_type` must be one of {', '.join(PREDICTION_TYPES)}, received {prediction_type!r}.")


def prediction_of_noise(
    noise: torch.Tensor, x: torch.Tensor, a: torch.Tensor | float, s: torch.Tensor | float, prediction_type: str
) -> torch.Tensor:
    """
    The prediction at `x` that stands for a given noise: `n`, `(n - s x) / a` for v, `(n - x) / a` for flow, or
    `(x - s n) / a`. Singular at `a = 0`, but for the first.

    Args:
        noise, x (`torch.Tensor` of shape `(R, C, h, w)`): The noise, and the input of the network.
        a, s (`torch.Tensor` or `float`): The level of `x`; scalars, or of shape `(R,)`.
        prediction_type (`str`): One of `PREDICTION_TYPES`.
    """
    a, s = _like(a, x), _like(s, x)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":  # a^2 + s^2 = 1
        return (noise - s * x) / a
    if prediction_type == "flow_prediction":  # a + s = 1
        return (noise - x) / a
    if prediction_type == "sample":
        return (x - s * noise) / a
    raise ValueError(f"`prediction_type` must be one of {', '.join(PREDICTION_TYPES)}, received {prediction_type!r}.")


def step_weight(a: torch.Tensor, s: torch.Tensor, prediction_type: str) -> torch.Tensor:
    r"""
    The factor `w` with which a squared error of the prediction is one of `x0` in units of twice the noise variance,
    `|x0_theta - x0_ref|^2 / (2 s^2)`: `1 / (2 a^2)` for epsilon, `1 / 2` for v (where `n` differs by `a` times as much
    as `v`) and flow, `1 / (2 s^2)` for `x0` itself.

    Args:
        a, s (`torch.Tensor`): The level the step leads to.
        prediction_type (`str`): One of `PREDICTION_TYPES`.
    """
    if prediction_type == "epsilon":
        return 1 / (2 * a**2)
    if prediction_type == "sample":
        return 1 / (2 * s**2)
    return torch.full_like(a, 0.5)


def guide(denoiser: Denoiser, unconditional: Mapping[str, torch.Tensor], scale: float) -> Denoiser:
    """
    Classifier-free guidance, `e_u + g (e_c - e_u)`, in one call of rows `[unconditional; conditional]`. A `scale` of 1
    gives back `denoiser` itself.

    Args:
        denoiser (`Callable`): As in the notation above.
        unconditional (`Mapping[str, torch.Tensor]`): The conditioning of an empty prompt, one row each.
        scale (`float`): `g`.
    """
    if scale == 1:
        return denoiser

    def guided(x: torch.Tensor, t: torch.Tensor, **conditioning: torch.Tensor) -> torch.Tensor:
        both = {
            name: torch.cat([unconditional[name].to(value).expand_as(value), value])
            for name, value in conditioning.items()
        }
        e_u, e_c = denoiser(torch.cat([x, x]), torch.cat([t, t]), **both).chunk(2)
        return e_u + scale * (e_c - e_u)

    return guided
