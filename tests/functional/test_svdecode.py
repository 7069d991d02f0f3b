# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Identities of steering vector decoding, in float64."""

import math

import pytest
import torch

from alignext.functional.svdecode import (
    Positions,
    fit_strength,
    kept_positions,
    mean_nll,
    plausible,
    steered_logits,
    steering,
)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Z, BASE = 2 * logits(0, 5, 11), 2 * logits(1, 5, 11)


def kl(z: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    log_p, log_q = z.log_softmax(-1), base.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def test_direction_is_minus_j_g_and_the_gradient_of_the_kl() -> None:
    found = steering(Z, BASE)
    for z, base, v in zip(Z, BASE, found, strict=True):
        p, d = z.softmax(-1), z.log_softmax(-1) - base.log_softmax(-1)
        jacobian = p.diag() - p[:, None] * p[None]
        assert torch.allclose(v, -jacobian @ -(d + 1), rtol=0, atol=1e-12)
    z = Z.clone().requires_grad_()
    kl(z, BASE).sum().backward()
    assert torch.allclose(found, z.grad, rtol=0, atol=1e-12)
    assert found.sum(-1).abs().max() < 1e-12
    assert torch.equal(steering(Z, Z), torch.zeros_like(Z))


def test_logit_difference_extrapolates() -> None:
    moved = steered_logits(Z, BASE, 1.5, alpha=0, direction="logit_difference")
    expected = Z.log_softmax(-1) + 1.5 * (Z.log_softmax(-1) - BASE.log_softmax(-1))
    assert torch.allclose(moved.log_softmax(-1), expected.log_softmax(-1), atol=1e-12)


@pytest.mark.parametrize("direction", ["kl_gradient", "logit_difference"])
def test_strength_leads_away_from_the_base(direction) -> None:
    distances = torch.stack([kl(steered_logits(Z, BASE, s, 0, direction), BASE) for s in (-0.3, -0.1, 0, 0.1, 0.3)])
    assert (distances.diff(dim=0) > 0).all()


def test_mask_is_that_of_min_p_and_comes_last() -> None:
    p = Z.softmax(-1)
    for alpha in (0.1, 0.5, 1.0):
        assert torch.equal(plausible(Z, alpha), p >= alpha * p.amax(-1, keepdim=True) * (1 - 1e-12))
        for strength in (-2.0, 0.0, 2.0):
            moved = steered_logits(Z, BASE, strength, alpha)
            assert torch.equal(moved == -math.inf, ~plausible(Z, alpha))
    assert steered_logits(Z, BASE, 0.0, alpha=0) is Z
    assert plausible(Z, 1.0).sum(-1).tolist() == [1] * 5


def test_tokens_that_a_model_excludes_stay_where_they_are() -> None:
    z, base = Z.clone(), BASE.clone()
    z[:, 2], base[:, 3] = -math.inf, -math.inf
    for direction in ("kl_gradient", "logit_difference"):
        moved = steered_logits(z, base, 1.0, 0, direction)
        assert not moved.isnan().any()
        assert (moved[:, 2] == -math.inf).all() and torch.equal(moved[:, 3], z[:, 3])
    half = steering(40 * Z.bfloat16(), BASE.bfloat16())
    assert half.dtype == torch.float32 and half.isfinite().all()


# Calibration


def drawn(step: float, n: int = 4000, tokens: int = 20) -> tuple[torch.Tensor, ...]:
    """Base, tuned, and tokens whose law lies beyond the tuned model by `step` times the tuning."""
    base = logits(2, n, tokens)
    change = logits(3, n, tokens)
    truth = (base + (1 + step) * change).softmax(-1)
    targets = truth.multinomial(1, generator=torch.Generator().manual_seed(4))[:, 0]
    return base + change, base, targets


def test_newton_finds_the_minimum_and_the_truth() -> None:
    tuned, base, targets = drawn(1.0)
    positions = kept_positions(tuned, base, targets, 0.0, "logit_difference")
    found = fit_strength(positions)
    assert found == pytest.approx(1.0, abs=0.1)  # the truth is z + d, up to a constant of every position
    for direction in ("kl_gradient", "logit_difference"):
        positions = kept_positions(tuned, base, targets, 0.0, direction)
        found = fit_strength(positions)
        around = [mean_nll(positions, s) for s in (found - 1e-2, found, found + 1e-2)]
        assert around[1] == min(around) < mean_nll(positions, 0.0)
        grid = fit_strength(positions, "grid", tuple(torch.linspace(0, 2 * found, 41).tolist()))
        assert grid == pytest.approx(found, abs=0.06 * found)
        # The denominator of the paper is too large: its step is in the right direction, and shorter.
        assert 0 < fit_strength(positions, "paper") < found or direction == "logit_difference"


def test_nothing_beyond_is_no_strength() -> None:
    tuned, base, targets = drawn(0.0)
    for alpha in (0.0, 0.1):
        assert abs(fit_strength(kept_positions(tuned, base, targets, alpha, "logit_difference"))) < 0.1
    assert fit_strength(kept_positions(tuned, tuned, targets, 0.1, "kl_gradient")) == 0
    assert fit_strength(kept_positions(tuned, tuned, targets, 0.1, "kl_gradient"), "paper") == 0


def test_kept_positions_are_the_plausible_tokens() -> None:
    tuned, base, targets = drawn(0.0, n=60)
    positions = kept_positions(tuned, base, targets, 0.2, "kl_gradient")
    mask = plausible(tuned, 0.2)
    inside = mask.gather(-1, targets[:, None])[:, 0]
    assert positions.excluded == (~inside).sum() > 0 and len(positions.targets) == inside.sum()
    moved = steered_logits(tuned, base, 0.7, 0.2)[inside].log_softmax(-1)
    expected = -moved.gather(-1, targets[inside, None]).mean()
    assert mean_nll(positions, 0.7) == pytest.approx(expected.item(), rel=1e-12)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="kl_gradient, logit_difference, received 'up'"):
        steering(Z, BASE, "up")
    with pytest.raises(ValueError, match="newton, paper, grid, received 'sgd'"):
        fit_strength(Positions(Z, Z, torch.zeros(5, dtype=torch.long), 0), "sgd")
    with pytest.raises(ValueError, match="at least one known token"):
        fit_strength(Positions(Z[:0], Z[:0], torch.zeros(0, dtype=torch.long), 5))
