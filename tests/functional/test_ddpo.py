# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sampling as a policy of Gaussians: log-probabilities, divergences, advantages, the loss."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from alignext.functional.ddpo import (
    ddim_deviation,
    flow_sde_step,
    gaussian_kl,
    gaussian_log_prob,
    normalised,
    policy_loss,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_log_probabilities_are_torch_s_in_the_mean() -> None:
    x, mean = normal(3, 4, 5, 5), normal(3, 4, 5, 5, seed=1)
    known = torch.distributions.Normal(mean, 0.3).log_prob(x).flatten(1).mean(1)
    assert (gaussian_log_prob(x, mean, 0.3) - known).abs().max() < 1e-12


def test_the_divergence_is_exact_and_what_samples_mean() -> None:
    mean, base, sd = normal(1, 256), normal(1, 256) + 0.02 * normal(1, 256, seed=1), 0.5
    exact = gaussian_kl(mean, base, sd)
    known = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, sd), torch.distributions.Normal(base, sd)
    )
    assert (exact - known.mean()).abs() < 1e-12
    x = mean + sd * normal(4000, 256, seed=2)
    sampled = gaussian_log_prob(x, mean.expand_as(x), sd) - gaussian_log_prob(x, base.expand_as(x), sd)
    assert (sampled.mean() - exact).abs() < 4 * sampled.std() / len(x) ** 0.5
    assert sampled.std() > 2 * exact and (sampled < 0).double().mean() > 0.2  # of one sample little can be said


def test_advantages_are_those_within_a_group() -> None:
    rewards = torch.tensor([1.0, 3.0, 10.0, 30.0, 5.0, 5.00001], dtype=torch.float64)
    found, taken = normalised(rewards, 2)
    assert found[:4].tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0], abs=1e-5)
    assert found[4:].tolist() == [0.0, 0.0]  # hardly any difference: noise
    assert taken.tolist() == [True] * 4 + [False] * 2
    moved, _ = normalised(rewards + 100, 2)
    assert torch.allclose(moved[:4], found[:4])


def test_a_divergence_normalised_in_its_group_does_not_see_how_large_it_is() -> None:
    kl = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(normalised(kl + 100, 4)[0], normalised(kl, 4)[0], atol=1e-6)


def test_the_loss_is_that_of_ppo() -> None:
    log_probs = torch.tensor([[0.0, 0.3, -0.3]], dtype=torch.float64)
    for advantage, kept in ((1.0, [1.0, 1.1, math.exp(-0.3)]), (-1.0, [1.0, math.exp(0.3), 0.9])):
        losses, ratio = policy_loss(log_probs, torch.zeros(1, 3), torch.full((3,), advantage), 0.1)
        assert losses[0].tolist() == pytest.approx([-advantage * value for value in kept])
        assert torch.allclose(ratio, log_probs.exp())


def test_the_first_gradient_is_that_of_reinforce() -> None:
    theta = normal(2, 3).requires_grad_()
    advantages = normal(3, seed=1)
    losses, ratio = policy_loss(theta, theta.detach(), advantages, 1e-4)
    assert torch.equal(ratio, torch.ones(2, 3, dtype=torch.float64))
    (found,) = torch.autograd.grad(losses.mean(), theta)
    (known,) = torch.autograd.grad(-(advantages * theta).mean(), theta)
    assert torch.equal(found, known)


def test_one_update_follows_the_analytic_gradient() -> None:
    """x ~ N(theta, sd^2), r = c . x: the gradient of the expected reward is c. Means over dimensions scale it."""
    n, d, sd = 100_000, 4, 0.7
    theta, c = normal(d).requires_grad_(), normal(d, seed=1)
    x = (theta + sd * normal(n, d, seed=2)).detach()
    rewards = x @ c
    log_probs = gaussian_log_prob(x, theta.expand(n, d), sd)
    losses, _ = policy_loss(log_probs[None], log_probs.detach()[None], rewards - rewards.mean(), 1e-4)
    (found,) = torch.autograd.grad(losses.mean(), theta)
    terms = (rewards - rewards.mean())[:, None] * (x - theta.detach()) / sd**2 / d
    error = terms.std(0) / n**0.5
    assert ((found + c / d).abs() < 4 * error).all()
    assert error.max() < 0.02 * (c / d).abs().max()


# The distributions of steps


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_deviation_and_factor_of_ddim(kind: str) -> None:
    """x' = mean + sd z, and the mean moves by a known factor times the prediction."""
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    x, e, other, z = (normal(2, 4, 3, 3, seed=i) for i in range(4))
    zero = torch.zeros_like(x)
    for t in scheduler.timesteps[:-1]:
        then = t - 100
        abar, next_abar = (scheduler.alphas_cumprod[i].double() for i in (t, then))
        sd = ddim_deviation(abar, next_abar, 0.8)
        mean, stepped, shifted = (
            scheduler.step(p, t, x, eta=0.8, variance_noise=noise).prev_sample
            for p, noise in ((e, zero), (e, z), (other, zero))
        )
        assert (stepped - mean - sd * z).abs().max() < 1e-6
        if kind == "epsilon":
            factor = -(next_abar * (1 - abar) / abar).sqrt() + (1 - next_abar - sd**2).sqrt()
            assert (shifted - mean - factor * (other - e)).abs().max() < 2e-6
    assert ddim_deviation(abar, 1.0, 1.0) == 0  # a last step onto the picture itself has no noise


def test_the_sde_of_a_flow() -> None:
    x, v = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)
    mean, sd = flow_sde_step(x, v, 0.6, 0.5, 0.0, 0.9)
    assert sd == 0 and torch.allclose(mean, x - 0.1 * v)  # Euler
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    for i, t in enumerate(scheduler.timesteps):
        s, then = scheduler.sigmas[i], scheduler.sigmas[i + 1]
        stepped = scheduler.step(v.float(), t, x.float()).prev_sample
        assert (flow_sde_step(x, v, s, then, 0.0, scheduler.sigmas[1])[0] - stepped).abs().max() < 1e-5
    mean, sd = flow_sde_step(x, v, 0.6, 0.5, 0.7, 0.9)
    g = 0.7 * (0.6 / 0.4) ** 0.5
    assert sd.item() == pytest.approx(g * 0.1**0.5)
    known = x * (1 - g**2 * 0.1 / 1.2) - v * (1 + g**2 * 0.4 / 1.2) * 0.1
    assert torch.allclose(mean, known)
    first, _ = flow_sde_step(x, v, 1.0, 0.9, 0.7, 0.9)  # the pole at s = 1
    assert first.isfinite().all()


def test_the_sde_keeps_the_marginals_of_the_flow() -> None:
    """Data N(0, c^2): the flow's velocity is known, and in small steps the variance is that of its levels."""
    c, steps = 0.5, 300
    sigmas = torch.linspace(0.98, 0.3, steps + 1, dtype=torch.float64)

    def variance(s: torch.Tensor) -> torch.Tensor:
        return ((1 - s) * c) ** 2 + s**2

    x = variance(sigmas[0]).sqrt() * normal(8000, 1)
    g = torch.Generator().manual_seed(1)
    for s, then in itertools.pairwise(sigmas):
        velocity = x * (s - (1 - s) * c**2) / variance(s)  # E[n - x0 | x]
        mean, sd = flow_sde_step(x, velocity, s, then, 0.7, sigmas[1])
        x = mean + sd * torch.randn(x.shape, generator=g, dtype=torch.float64)
    assert x.var().item() == pytest.approx(variance(sigmas[-1]).item(), rel=0.04)
