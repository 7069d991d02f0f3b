# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steering along a direction: projections, gates, and the fit, as identities in float64."""

import math

import pytest
import torch

from alignext.functional.logistic import fit_logistic
from alignext.functional.steering import (
    clamp_step,
    fit_direction,
    interchange,
    jensen_shannon,
    project,
    steer,
    stmp_step,
    sttp_step,
    swfc_step,
)


def states(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


V = torch.nn.functional.normalize(states(8, seed=1), dim=0)
M, MU, SIGMA = 0.2, 1.5, 0.25


def test_sttp_lifts_what_lies_below_to_the_target():
    h = states(50, 8)
    rho = project(h, V)
    after = project(steer(h, V, sttp_step(rho, 3.0, M, MU, SIGMA)), V)
    low = rho < M
    assert 0 < low.sum() < 50
    torch.testing.assert_close(after[low], torch.full_like(after[low], MU + 3 * SIGMA), rtol=0, atol=1e-12)
    assert torch.equal(after[~low], rho[~low])
    # What was lifted lies above the boundary: a second time changes nothing.
    assert not sttp_step(after, 3.0, M, MU, SIGMA).any()


@pytest.mark.parametrize(("alpha", "again"), [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0)])
def test_stmp_mirrors_at_the_boundary(alpha: float, again: float):
    h = states(50, 8)
    rho = project(h, V)
    steered = steer(h, V, stmp_step(rho, alpha, M))
    after, low = project(steered, V), rho < M
    torch.testing.assert_close(after[low], rho[low] + 2 * alpha * (M - rho[low]), rtol=0, atol=1e-12)
    if alpha == 1.0:
        torch.testing.assert_close(after[low], 2 * M - rho[low], rtol=0, atol=1e-12)
    if alpha > 0.5:
        assert not stmp_step(after, again, M).any()
    # Only the component along v changes.
    across = h - rho[:, None] * V
    torch.testing.assert_close(steered - after[:, None] * V, across, rtol=0, atol=1e-12)
    assert torch.equal(steered[~low], h[~low])


def test_swfc_adds_the_same_everywhere_and_clamping_sets_the_same():
    h = states(50, 8)
    rho = project(h, V)
    torch.testing.assert_close(steer(h, V, swfc_step(rho, 2.0, 1.7)), h + 3.4 * V)
    after = project(steer(h, V, clamp_step(rho, -0.7)), V)
    torch.testing.assert_close(after, torch.full_like(rho, -0.7), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_no_step_is_no_change_in_any_precision(dtype: torch.dtype):
    h = states(50, 8, dtype=dtype)
    h[0, 0] = -0.0
    assert torch.equal(steer(h, V, torch.zeros(50)).view(torch.uint8), h.view(torch.uint8))


def test_half_precision_is_rounded_once():
    """In bfloat16 the sum is that of float32, rounded: neither the projection nor the step is rounded before."""
    h = states(200, 8, dtype=torch.bfloat16)
    a = clamp_step(project(h, V), 1.3)
    assert a.dtype == torch.float32
    exact = h.double() + a.double()[:, None] * V
    assert torch.equal(steer(h, V, a), exact.bfloat16())
    early = h + (1.3 - h @ V.bfloat16())[:, None] * V.bfloat16()
    assert not torch.equal(early, exact.bfloat16())


def test_an_interchange_with_itself_changes_nothing():
    h = states(2, 5, 8)
    torch.testing.assert_close(interchange(h[:, :1], h[:, 0], V), h[:, :1], rtol=0, atol=1e-12)
    after = interchange(h, states(2, 8, seed=4), V)
    torch.testing.assert_close(project(after, V), project(states(2, 8, seed=4), V)[:, None].expand(2, 5))


def test_divergence_of_peaked_and_of_equal_distributions():
    p = torch.tensor([[200.0, -200.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[-200.0, 200.0, 0.0], [1.0, -1.0, 0.0]], dtype=torch.float64)
    found = jensen_shannon(p, q)
    assert found[0].item() == pytest.approx(math.log(2))
    torch.testing.assert_close(found, jensen_shannon(q, p))
    assert not jensen_shannon(p, p).any()
    a, b = p[1].softmax(-1), q[1].softmax(-1)
    m = (a + b) / 2
    assert found[1].item() == pytest.approx(float(((a * (a / m).log()).sum() + (b * (b / m).log()).sum()) / 2))


def test_the_fit_is_at_its_minimum():
    """The gradient of 1/2 |w|^2 + C sum log-loss is zero there; the bias is not penalised."""
    x, y = states(40, 3), (states(40, seed=9) > 0).double()
    w, b = fit_logistic(x, y, 2.5)
    residual = (x @ w + b).sigmoid() - y
    torch.testing.assert_close(w + 2.5 * x.T @ residual, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert residual.sum().abs() < 1e-6


@pytest.mark.parametrize("kind", ["logistic", "mean_difference"])
def test_the_direction_points_to_the_positive_answers(kind: str):
    truth = torch.nn.functional.normalize(states(8, seed=5), dim=0)
    positive, negative = states(400, 8) + 2 * truth, states(400, 8, seed=2) - truth
    fit = fit_direction(positive, negative, kind=kind)
    assert fit.v.norm().item() == pytest.approx(1)
    assert fit.v @ truth > 0.95
    assert fit.mu_positive > fit.boundary > fit.mu_negative
    assert fit.boundary == pytest.approx(0.5, abs=0.2)
    assert fit.sigma_positive == pytest.approx(float((positive @ fit.v).std(correction=0)))
    other = fit_direction(negative, positive, kind=kind)
    torch.testing.assert_close(other.v, -fit.v, rtol=0, atol=1e-6)


def test_answers_that_cannot_be_told_apart():
    x = states(4, 3)
    with pytest.raises(ValueError, match="must separate"):
        fit_direction(x, x, kind="logistic")
    with pytest.raises(ValueError, match=r"at least 2 answers each, received 1 and 4"):
        fit_direction(x[:1], x)
    with pytest.raises(ValueError, match="must be finite"):
        fit_direction(x, x / 0)
    with pytest.raises(ValueError, match="`kind` must be"):
        fit_direction(x, x + 1, kind="pca")
