# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""How many steps carry a reward's gradient, and what is minimised."""

import pytest
import torch

from alignext.functional.alignprop import backprop_steps, parse_backprop_steps, reward_loss


def drawn(rule, T: int, count: int = 4000) -> torch.Tensor:
    rule = parse_backprop_steps(rule)
    return torch.tensor([backprop_steps(rule, T, (i + 0.5) / count) for i in range(count)], dtype=torch.float64)


def test_fixed_rules() -> None:
    assert drawn("all", 50, 10).unique().tolist() == [50]
    assert drawn(7, 50, 10).unique().tolist() == drawn("7", 50, 10).unique().tolist() == [7]
    assert drawn(50, 50, 10).unique().tolist() == [50]


def test_the_gaussian_one_is_about_the_reference_s() -> None:
    """There s = int(N(42, 5)) is drawn again until 1 <= s < 50, and K = 50 - s; here K is clipped."""
    g = torch.Generator().manual_seed(0)
    s = (42 + 5 * torch.randn(200_000, generator=g, dtype=torch.float64)).floor()
    theirs = 50 - s[(s >= 1) & (s < 50)]
    ours = drawn("gaussian", 50)
    assert (ours.mean().item(), theirs.mean().item()) == (pytest.approx(8.65, abs=0.05), pytest.approx(9.1, abs=0.05))
    inside = ours[ours > 1]
    assert inside.mean().item() == pytest.approx(theirs[theirs > 1].mean().item(), abs=0.02)
    assert ours.min() == 1 and ours.max() <= 50
    assert drawn(("gaussian", 8, 5), 4).max() == 4
    assert torch.equal(drawn("gaussian:8:5", 50), ours)


def test_the_uniform_one_takes_every_number_alike() -> None:
    counts = drawn("uniform", 50).long().bincount()
    assert counts[0] == 0 and len(counts) == 50 and (counts[1:] - 4000 / 49).abs().max() <= 1
    assert drawn(("uniform", 3, 5), 50, 30).long().bincount().tolist() == [0, 0, 0, 10, 10, 10]
    assert drawn("uniform", 1, 10).unique().tolist() == [1]


@pytest.mark.parametrize(
    "rule",
    [0, -1, "none", True, 1.5, ("gaussian", 8), ("gaussian", 8, -1), ("uniform", 0, 3), ("uniform", 4, 3), None],
)
def test_other_rules_are_refused(rule) -> None:
    with pytest.raises(ValueError, match=r"`backprop_steps` must be a number of steps of 1 or more, 'all'"):
        parse_backprop_steps(rule)


def test_more_steps_than_there_are() -> None:
    for rule in (5, ("uniform", 1, 5)):
        with pytest.raises(ValueError, match="must be at most `num_inference_steps`, 4, received 5"):
            backprop_steps(rule, 4, 0.5)


def test_losses() -> None:
    r = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.equal(reward_loss(r), -r)
    assert reward_loss(r, target=1.0).tolist() == [2.0, 0.5, 1.0]
    assert reward_loss(r, margin=1.0).tolist() == [2.0, 0.5, 0.0]
    (gradient,) = torch.autograd.grad(reward_loss(r, margin=1.0).sum(), r)
    assert gradient.tolist() == [-1.0, -1.0, 0.0]  # a sample that is good enough is left alone
    with pytest.raises(ValueError, match="Give one of them"):
        reward_loss(r, target=1.0, margin=1.0)
