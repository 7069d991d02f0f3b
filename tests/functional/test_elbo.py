# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Terms of the evidence lower bound: networks whose answer is known, and Gaussians whose divergence is."""

import math

import pytest
import torch

from alignext.functional.elbo import (
    denoising_loss,
    elbo_difference,
    kl_gap,
    kl_weights,
    level_proposal,
    stratified_draws,
)
from alignext.functional.predictions import PREDICTION_TYPES, add_noise, prediction_target


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def diffusion_levels(T: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64) ** 2 * 1000 / T
    abar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas).cumprod(0)])
    return abar.sqrt(), (1 - abar).sqrt()


def flow_levels(T: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    s = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    return 1 - s, s


LEVEL = {"flow_prediction": (0.7, 0.3)}


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_a_network_that_knows_has_no_loss(kind: str):
    a, s = LEVEL.get(kind, (0.8, 0.6))
    x0, noise = randn(3, 4, 8, 8, seed=0), randn(3, 4, 8, 8, seed=1)
    perfect = prediction_target(x0, noise, a, s, kind)
    torch.testing.assert_close(denoising_loss(perfect, x0, noise, a, s, kind), torch.zeros(3, dtype=torch.float64))


def test_a_network_that_says_nothing_has_the_noise_as_its_loss():
    x0, noise = randn(64, 4, 16, 16, seed=0), randn(64, 4, 16, 16, seed=1)
    loss = denoising_loss(torch.zeros_like(noise), x0, noise, 0.8, 0.6, "epsilon")
    torch.testing.assert_close(loss, noise.square().flatten(1).mean(1))
    assert abs(loss.mean() - 1) < 4 * (2 / noise.numel()) ** 0.5
    # For flow the target is n - x0, of twice the variance here.
    loss = denoising_loss(torch.zeros_like(noise), x0, noise, 0.7, 0.3, "flow_prediction")
    assert abs(loss.mean() - 2) < 8 * (2 / noise.numel()) ** 0.5


def test_one_guess_at_the_picture_has_one_loss_however_it_is_said():
    """Epsilon, v and sample agree; flow has the known factor: n - n' is a / s (x0' - x0), v - v' is that over s."""
    x0, noise, guess = (randn(3, 4, 8, 8, seed=i) for i in range(3))
    a, s = 0.8, 0.6
    x = add_noise(x0, noise, a, s)
    n = (x - a * guess) / s
    losses = [
        denoising_loss(p, x0, noise, a, s, kind)
        for kind, p in (("epsilon", n), ("v_prediction", a * n - s * guess), ("sample", guess))
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses[0], (a / s) ** 2 * (guess - x0).square().flatten(1).mean(1), rtol=1e-12, atol=0)

    a, s = 0.7, 0.3
    velocity = (add_noise(x0, noise, a, s) - guess) / s
    flow = denoising_loss(velocity, x0, noise, a, s, "flow_prediction")
    torch.testing.assert_close(flow, (guess - x0).square().flatten(1).mean(1) / s**2, rtol=1e-10, atol=0)


def gaussian_x0(x: torch.Tensor, a: torch.Tensor, s: torch.Tensor, mean: float, variance: float) -> torch.Tensor:
    """Mean of x0 given x for x0 ~ N(mean, variance): the best network of these data."""
    return mean + a * variance / (a**2 * variance + s**2) * (x - a * mean)


def as_output(x0: torch.Tensor, x: torch.Tensor, a: torch.Tensor, s: torch.Tensor, kind: str) -> torch.Tensor:
    return {
        "sample": x0,
        "epsilon": (x - a * x0) / s,
        "v_prediction": a * (x - a * x0) / s - s * x0,
        "flow_prediction": (x - x0) / s,
    }[kind]


def kl(p: tuple[float, float], q: tuple[float, float]) -> float:
    (m, v), (n, w) = p, q
    return 0.5 * (v / w + (m - n) ** 2 / w - 1 + math.log(w / v))


CASES = [((0.0, 1.0), (0.5, 1.0)), ((0.0, 1.0), (0.0, 2.0)), ((0.3, 0.25), (0.0, 1.0))]


def draws_of(kind: str, p: tuple[float, float], q: tuple[float, float], T: int, R: int) -> dict[str, torch.Tensor]:
    """Gap and difference of the two bounds at every level, (R, N - 1), and the weights."""
    a, s = flow_levels(T) if kind == "flow_prediction" else diffusion_levels(T)
    weights = kl_weights(a, s)
    A, S = (level[2:].expand(R, -1).flatten() for level in (a, s))
    x0 = p[0] + p[1] ** 0.5 * randn(R * (T - 1), seed=3)
    x = A * x0 + S * randn(R * (T - 1), seed=4)
    outputs = [as_output(gaussian_x0(x, A, S, *of), x, A, S, kind)[:, None] for of in (p, q)]
    gap = kl_gap(*outputs, x[:, None], A, S, kind)
    difference = elbo_difference(*outputs, x0[:, None], x[:, None], A, S, kind)
    noise_error = difference.view(R, -1) * (a / s)[2:] ** 2  # of |n - n_q|^2 - |n - n_p|^2
    return {"gap": gap.view(R, -1) * weights, "elbo": difference.view(R, -1) * weights, "simple": noise_error}


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize(("p", "q"), CASES)
def test_the_sum_over_levels_is_the_divergence_of_two_gaussians(kind: str, p, q):
    found = draws_of(kind, p, q, T=1000, R=200)
    for name in ("gap", "elbo"):
        total, expected = found[name].sum(1), kl(p, q)
        error = total.std() / len(total) ** 0.5
        # The step grid itself is off by up to 3 %; it vanishes with more levels, as the next test shows.
        assert abs(total.mean() - expected) < 4 * error + 0.03 * expected, name
    assert (found["gap"] >= 0).all() and (found["elbo"] < 0).any()
    assert found["gap"].sum(1).std() < found["elbo"].sum(1).std()
    # The mean difference of losses without weights, as it is reported at times, is no divergence.
    assert not abs(found["simple"].mean() - expected) < 0.5 * expected


def test_more_levels_come_nearer():
    p, q = CASES[2]

    def exact(T: int) -> float:
        a, s = diffusion_levels(T)
        weights = kl_weights(a, s)
        a, s = a[2:], s[2:]
        # x ~ N(a m, a^2 v + s^2) under p; both guesses are linear in x.
        mean, variance = a * p[0], a**2 * p[1] + s**2
        slope = [a * v / (a**2 * v + s**2) for _, v in (p, q)]
        offset = [m - k * a * m for (m, _), k in zip((p, q), slope, strict=True)]
        dk, do = slope[0] - slope[1], offset[0] - offset[1]
        return float((weights * (dk**2 * variance + (dk * mean + do) ** 2)).sum())

    coarse, fine = (abs(exact(T) / kl(p, q) - 1) for T in (1000, 20_000))
    assert fine < 0.003 < coarse < 0.03


def test_pure_noise_has_a_finite_term():
    """At a = 0 the weight in terms of the noise is infinite; that in terms of x0 is not."""
    a, s = flow_levels(10)
    weights = kl_weights(a, s)
    assert weights.isfinite().all() and a[-1] == 0
    x = randn(2, 3, seed=0)
    assert kl_gap(x, x + 1, x, 0.0, 1.0, "flow_prediction").tolist() == pytest.approx([3.0, 3.0])


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction"])
def test_levels_are_drawn_as_often_as_the_proposal_says(kind: str):
    a, s = flow_levels(50) if kind == "flow_prediction" else diffusion_levels(50)
    weights = kl_weights(a, s)
    chances = level_proposal(weights, a, s, kind)
    assert chances.sum() == pytest.approx(1) and (chances >= 0.5 / 49).all()
    uniform = torch.rand(4000, 10, generator=torch.Generator().manual_seed(0))
    drawn = stratified_draws(chances, uniform)
    counts = torch.bincount(drawn.flatten(), minlength=49).double() / drawn.numel()
    torch.testing.assert_close(counts, chances, rtol=0, atol=4 * (0.25 / drawn.numel()) ** 0.5)
    # Each draw comes from its own tenth of the mass, and so their order never falls.
    assert (drawn.diff(dim=1) >= 0).all()
    # The estimate of a sum from few levels is unbiased.
    values = randn(49, seed=2)
    estimates = (values[drawn] / chances[drawn]).mean(1)
    assert abs(estimates.mean() - values.sum()) < 4 * estimates.std() / len(estimates) ** 0.5


def test_levels_must_fall():
    a, s = diffusion_levels(10)
    with pytest.raises(ValueError, match="from data to noise"):
        kl_weights(a.flip(0), s.flip(0).clamp(min=0.1))
