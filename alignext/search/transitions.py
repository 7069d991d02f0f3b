# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""One stochastic step for every diffusion and flow model, as pure functions of levels.

A node has levels `(alpha, sigma)` with `z = alpha x0 + sigma eps`. Variance-preserving models: `alpha =
sqrt(alpha_bar)`, `sigma = sqrt(1 - alpha_bar)`. Flow models: `alpha = 1 - sigma`, velocity `v = eps - x0`. Levels are
Python floats. A prime (`alpha_next`, `sigma_next`) is the following, cleaner node.
"""

import math

import torch


def predict(
    prediction: str,
    m: torch.Tensor,  # model output, the shape of z
    z: torch.Tensor,
    alpha: float,
    sigma: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Clean sample and noise that a model output stands for:

        epsilon       x0 = (z - sigma m) / alpha     eps = m
        v_prediction  x0 = alpha z - sigma m         eps = alpha m + sigma z
        sample        x0 = m                         eps = (z - alpha m) / sigma
        flow          x0 = z - sigma m               eps = z + alpha m

    Args:
        prediction (`str`): `"epsilon"`, `"v_prediction"`, `"sample"` or `"flow"` (also `"flow_prediction"`).
        m (`torch.Tensor`): Model output after guidance.
        z (`torch.Tensor`): The noisy sample it was given.
        alpha, sigma (`float`): Levels of `z`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `x0` and `eps`.

    Raises:
        ValueError: For an unknown `prediction`.
    """
    if prediction == "epsilon":
        return (z - sigma * m) / alpha, m
    if prediction == "v_prediction":
        return alpha * z - sigma * m, alpha * m + sigma * z
    if prediction == "sample":
        return m, (z - alpha * m) / sigma
    if prediction in ("flow", "flow_prediction"):
        return z - sigma * m, z + alpha * m
    raise ValueError(
        f"`prediction` must be 'epsilon', 'v_prediction', 'sample' or 'flow_prediction', received {prediction!r}."
    )


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
    sigma_max: float | None = None,
) -> torch.Tensor:
    """
    The next noisy sample `z' = alpha' x0 + sqrt(max(0, sigma'^2 - s^2)) eps + s fresh` with the `s` of
    [`noise_scale`]. `eta = 0` is the deterministic step: DDIM, for flow models Euler.

    `"flow_grpo"` is the step that Flow-GRPO trains with (arXiv 2505.05470), `a = eta`, `dt = sigma' - sigma`:

        q = a sqrt(sigma / (1 - sigma))
        z' = z (1 + q^2 / (2 sigma) dt) + v (1 + q^2 (1 - sigma) / (2 sigma)) dt + q sqrt(-dt) fresh

    It does not keep the coefficients: the sample has more noise left than its level says.

    Args:
        noise (`str`): `"ddpm"`, `"rf_ancestral"`, `"cps"`, `"renoise"` or `"flow_grpo"`.
        x0, eps (`torch.Tensor`): Clean sample and noise predicted at the node, see [`predict`].
        fresh (`torch.Tensor`): Standard normal noise.
        alpha, sigma (`float`): Levels of the node.
        alpha_next, sigma_next (`float`): Levels of the next node.
        eta (`float`, *optional*, defaults to 1.0): Noise strength.
        sigma_max (`float`, *optional*): Flow-GRPO only: takes the place of a `sigma` of 1 inside the root of `q`,
            which would be infinite; by default `sigma_next` (in the first step, the second sigma of the schedule).

    Returns:
        `torch.Tensor`: `z'`.
    """
    if noise == "flow_grpo":
        z, v = alpha * x0 + sigma * eps, eps - x0
        inside = sigma if sigma < 1 else (sigma_next if sigma_max is None else sigma_max)
        q = eta * math.sqrt(inside / (1 - inside))
        dt = sigma_next - sigma
        mean = z * (1 + q * q / (2 * sigma) * dt) + v * (1 + q * q * (1 - sigma) / (2 * sigma)) * dt
        return mean + q * math.sqrt(-dt) * fresh
    s = noise_scale(noise, alpha, sigma, alpha_next, sigma_next, eta)
    return alpha_next * x0 + math.sqrt(max(0.0, sigma_next**2 - s * s)) * eps + s * fresh
