# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Identities of Transfer Q*, in float64, on all completions of a small language model."""

import functools
import math

import pytest
import torch

from alignext.functional.transfer_q import candidate_values, tilted_scores

from ..decoding import toy


ALPHA = 0.9
STATES = toy.states()
R = torch.tensor([toy.reward(state) for state in STATES], dtype=torch.float64)
BASELINE = torch.tensor([float(state.count(3)) for state in STATES], dtype=torch.float64)


@pytest.fixture(scope="module")
def log_p() -> torch.Tensor:
    return toy.log_probs()


@functools.cache
def begins_with(prefix: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([state[: len(prefix)] == prefix for state in STATES])


def policy(log_p: torch.Tensor, value: str, rewards: torch.Tensor = R, **settings: object) -> torch.Tensor:
    """The law of whole completions where each token is drawn by its value over all rollouts."""
    found = torch.zeros_like(log_p)
    prefixes = {state[:i] for state in STATES for i in range(len(state))}
    for prefix in prefixes:
        scores, values = toy.next_log_probs(prefix), []
        for token in range(toy.VOCABULARY):
            inside = begins_with((*prefix, token))
            of_rollouts = torch.where(inside, log_p, -math.inf).log_softmax(0)
            more = {name: given.where(inside, 0.0) for name, given in settings.items() if torch.is_tensor(given)}
            more |= {name: given for name, given in settings.items() if not torch.is_tensor(given)}
            values.append(
                candidate_values(rewards.where(inside, 0.0), value, alpha=ALPHA, log_weights=of_rollouts, **more)
            )
        step = tilted_scores(scores, torch.stack(values), ALPHA).log_softmax(0)
        for token in range(toy.VOCABULARY):
            found[begins_with((*prefix, token))] += step[token]
    return found


def test_soft_values_sample_the_tilt(log_p) -> None:
    assert torch.allclose(policy(log_p, "soft").exp(), (log_p + R / ALPHA).softmax(0), rtol=0, atol=1e-12)


def test_indirect_soft_values_sample_the_tilt_of_the_difference(log_p) -> None:
    found = policy(log_p, "soft", baseline_rewards=BASELINE)
    assert torch.allclose(found.exp(), (log_p + (R - BASELINE) / ALPHA).softmax(0), rtol=0, atol=1e-12)


def test_mean_values_are_a_tilt_that_is_off(log_p) -> None:
    target = (log_p + R / ALPHA).softmax(0)
    gap = float((policy(log_p, "mean").exp() - target).abs().sum() / 2)
    assert 0.001 < gap < float((log_p.exp() - target).abs().sum() / 2)


@pytest.mark.parametrize("value", ["mean", "soft", "max"])
def test_a_constant_reward_changes_nothing(log_p, value) -> None:
    assert torch.allclose(policy(log_p, value, torch.full_like(R, 1.7)), log_p, atol=1e-12)


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("value", ["mean", "soft", "max"])
def test_shifts_shift_values_and_no_choice(value) -> None:
    rewards, scores = draws(0, 3, 6), draws(1, 3)
    before = candidate_values(rewards, value, alpha=ALPHA)
    after = candidate_values(rewards - 4, value, alpha=ALPHA)
    assert torch.allclose(after, before - 4, atol=1e-12)
    tilted = [tilted_scores(scores, q, ALPHA).softmax(-1) for q in (before, after)]
    assert torch.allclose(*tilted, atol=1e-12)


@pytest.mark.parametrize("value", ["mean", "soft"])
def test_shifting_both_rewards_changes_no_indirect_choice(value) -> None:
    rewards, baseline = draws(0, 3, 6), draws(2, 3, 6)
    chosen = [
        candidate_values(rewards + c, value, alpha=ALPHA, beta=ALPHA, baseline_rewards=baseline + c).softmax(-1)
        for c in (0.0, -4.0)
    ]
    assert torch.allclose(*chosen, atol=1e-12)
    # without the sum of weights below, it would be another choice
    unnormalised = [(((rewards - baseline) / ALPHA).exp() * (rewards + c)).mean(-1).softmax(-1) for c in (0.0, -4.0)]
    assert not torch.allclose(*unnormalised, atol=1e-3)


def test_the_indirect_mean_is_that_of_the_other_policy(log_p) -> None:
    """A model aligned to `BASELINE`, weighted, gives expectations of one aligned to `R`."""
    sft = log_p
    aligned = (sft + BASELINE / 0.7).log_softmax(0)
    found = candidate_values(R, baseline_rewards=BASELINE, beta=0.7, log_weights=aligned)
    assert float(found) == pytest.approx(float(((sft + R / 0.7).softmax(0) * R).sum()), abs=1e-12)


def test_limits_and_order() -> None:
    rewards = draws(3, 4, 5)
    mean, soft, most = (candidate_values(rewards, value, alpha=ALPHA) for value in ("mean", "soft", "max"))
    assert (mean < soft).all() and (soft < most).all()
    assert torch.allclose(candidate_values(rewards, "soft", alpha=math.inf), mean)
    assert torch.allclose(candidate_values(rewards, "soft", alpha=1e-4), most, atol=1e-3)
    one = draws(4, 4, 1)
    for value in ("mean", "soft", "max"):
        assert torch.allclose(candidate_values(one, value, alpha=ALPHA), one[:, 0])
    scores = draws(5, 4)
    assert tilted_scores(scores, mean, math.inf) is scores
    assert tilted_scores(scores.float(), mean, 0.5).dtype == torch.float32


def test_few_rollouts_make_soft_values_too_low() -> None:
    rewards = draws(6, 20_000, 4)
    few = candidate_values(rewards, "soft", alpha=0.5).mean()
    assert few < 0.5 * (rewards / 0.5).exp().mean().log() - 0.1


def test_wrong_arguments_are_named() -> None:
    rewards = draws(0, 3, 1)
    with pytest.raises(ValueError, match="mean, soft, max"):
        candidate_values(rewards, "best")
    with pytest.raises(ValueError, match="at least 2 rollouts"):
        candidate_values(rewards, baseline_rewards=rewards)
    with pytest.raises(ValueError, match="received 'max'"):
        candidate_values(rewards, "max", baseline_rewards=rewards)
