# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Identities of the Diffusion-KTO equations, in float64."""

import pytest
import torch

from alignext.functional.bco import bco_loss
from alignext.functional.diffusion_kto import UTILITIES, divergence, utility_loss
from alignext.functional.diffusion_preference import implicit_rewards, preference_loss, preference_margin


REWARDS = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.arange(64) % 3 > 0


def loss(rewards: torch.Tensor, labels: torch.Tensor = LABELS, z: float = 0.4, **given) -> torch.Tensor:
    return utility_loss(rewards, labels, z, **given)


@pytest.mark.parametrize("utility", UTILITIES)
def test_a_thumb_down_is_a_thumb_up_mirrored_at_the_reference_point(utility: str):
    z = 0.4
    mirrored = loss(2 * z - REWARDS, ~LABELS, z, utility=utility)
    torch.testing.assert_close(loss(REWARDS, LABELS, z, utility=utility), mirrored)
    torch.testing.assert_close(loss(REWARDS + 5, LABELS, z + 5, utility=utility), mirrored)


@pytest.mark.parametrize("utility", UTILITIES)
def test_liked_pictures_gain_and_others_lose(utility: str):
    rewards = REWARDS.clone().requires_grad_()
    loss(rewards, utility=utility).sum().backward()
    assert (rewards.grad[LABELS] < 0).all() and (rewards.grad[~LABELS] > 0).all()


def test_kahneman_tversky_is_what_the_utility_lacks():
    d = torch.where(LABELS, REWARDS - 0.4, 0.4 - REWARDS)
    torch.testing.assert_close(loss(REWARDS), 1 - torch.sigmoid(d))
    torch.testing.assert_close(loss(REWARDS) + loss(REWARDS, ~LABELS), torch.ones(64, dtype=torch.float64))
    # Strongest at the reference point: a quarter, and less on both sides.
    rewards = torch.linspace(-6, 6, 41, dtype=torch.float64).requires_grad_()
    loss(rewards, torch.ones(41), 0.0).sum().backward()
    steep = rewards.grad.abs()
    assert steep.argmax() == 20 and steep[20] == 0.25
    torch.testing.assert_close(steep, steep.flip(0))


def test_loss_averse_is_the_loss_of_bco():
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    found = loss(REWARDS, utility="loss-averse", **weights)
    torch.testing.assert_close(found, bco_loss(REWARDS, LABELS, 0.4, **weights))


def test_curvatures_say_who_seeks_risk():
    r = torch.linspace(-3, 3, 61, dtype=torch.float64)
    up = torch.ones(61)
    bend = {name: -loss(r, up, 0.0, utility=name).diff().diff() for name in UTILITIES}  # of the utility
    assert (bend["loss-averse"] < 0).all() and (bend["risk-seeking"] > 0).all()
    assert (bend["kahneman-tversky"][:29] > 0).all() and (bend["kahneman-tversky"][30:] < 0).all()


def test_a_pair_around_its_own_mean_is_a_preference_of_half_the_margin():
    """Loss-averse, with BCO's shift of that pair: both votes then say what Diffusion-DPO says of the pair."""
    delta = torch.randn(2, dtype=torch.float64)
    rewards = implicit_rewards(delta, beta=2.0)
    shift = rewards.mean()
    votes = utility_loss(rewards, torch.tensor([True, False]), shift, utility="loss-averse")
    torch.testing.assert_close(votes[0], votes[1])
    torch.testing.assert_close(votes[:1], preference_loss(preference_margin(rewards) / 2))


def test_no_gradient_flows_into_the_reference_point():
    z = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    rewards = REWARDS.clone().requires_grad_()
    utility_loss(rewards, LABELS, z).sum().backward()
    assert z.grad is None and rewards.grad is not None
    assert divergence(-0.3) == 0 and divergence(0.3) == 0.3


def test_unknown_utilities_are_named():
    with pytest.raises(ValueError, match=r"`utility` must be one of kahneman-tversky.*received 'sigmoid'"):
        loss(REWARDS, utility="sigmoid")
