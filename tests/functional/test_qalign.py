# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Identities of QAlign, in float64, on all completions of a small language model."""

import math

import pytest
import torch

from alignext.functional.qalign import (
    effective_sample_size,
    log_acceptance,
    majority,
    minimum_bayes_risk,
    rouge_1,
    split_rhat,
    suffix_starts,
    tilt_weights,
)

from ..decoding import toy


BETA = 0.7
STATES = toy.states()
REWARDS = torch.tensor([toy.reward(state) for state in STATES], dtype=torch.float64)
LENGTHS = torch.tensor([len(state) for state in STATES])


@pytest.fixture(scope="module")
def log_p() -> torch.Tensor:
    return toy.log_probs()


@pytest.fixture(scope="module")
def target(log_p) -> torch.Tensor:
    return (log_p + REWARDS / BETA).softmax(0)


@pytest.fixture(scope="module")
def proposals(log_p) -> torch.Tensor:
    """The probability that a state `y` proposes `y'`: over all indices, and all ways behind them."""
    rest = [[math.exp(toy.log_prob(state, start)) for start in range(len(state))] for state in STATES]
    return torch.tensor(
        [
            [
                sum(p for start, p in enumerate(of[: len(state)]) if other[:start] == state[:start]) / len(state)
                for other, of in zip(STATES, rest, strict=True)
            ]
            for state in STATES
        ],
        dtype=torch.float64,
    )


def kernel(proposals: torch.Tensor, log_ratio: torch.Tensor) -> torch.Tensor:
    """The transition matrix; what is not accepted stays."""
    moves = proposals * log_ratio.exp().clamp(max=1)
    return moves - moves.sum(1).diag() + torch.eye(len(moves), dtype=moves.dtype)


def stationary(matrix: torch.Tensor) -> torch.Tensor:
    law = torch.full((len(matrix),), 1 / len(matrix), dtype=matrix.dtype)
    for _ in range(12):
        matrix = matrix @ matrix
    return law @ matrix


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().sum() / 2)


def pairs() -> tuple[torch.Tensor, ...]:
    n = len(STATES)
    return REWARDS[:, None].expand(n, n), REWARDS.expand(n, n), LENGTHS[:, None].expand(n, n), LENGTHS.expand(n, n)


def test_every_completion_is_a_state(log_p, proposals) -> None:
    assert len(STATES) == len(set(STATES)) == 341
    assert abs(float(log_p.exp().sum()) - 1) < 1e-12
    assert (proposals.sum(1) - 1).abs().max() < 1e-12


def test_the_target_is_invariant(target, proposals) -> None:
    matrix = kernel(proposals, log_acceptance(*pairs(), BETA))
    assert (matrix.sum(1) - 1).abs().max() < 1e-12
    assert (target @ matrix - target).abs().max() < 1e-12
    # not only the sum over indices: moves by every index for itself are in balance
    flow = target[:, None] * matrix
    assert (flow - flow.T).abs().max() < 1e-12
    assert distance(stationary(matrix), target) < 1e-9


def test_deliberate_mistakes_are_told_apart(log_p, target, proposals) -> None:
    r, new, length, new_length = pairs()
    mean_log_p = log_p / LENGTHS
    mistakes = {
        "no length term": (new - r) / BETA,
        "inverted length ratio": (new - r) / BETA + new_length.log() - length.log(),
        "lengths as a factor of the reward": BETA * (new - r) * length / new_length,
        "mean log-probabilities in the ratio": log_acceptance(r, new, length, new_length, BETA)
        + mean_log_p[None] - mean_log_p[:, None],
    }  # fmt: skip
    found = {name: distance(stationary(kernel(proposals, ratio)), target) for name, ratio in mistakes.items()}
    assert all(gap > 0.01 for gap in found.values()), found
    matrix = kernel(proposals, log_acceptance(r, new, length, new_length, BETA))
    accepted = target * (1 - matrix.diag())  # a chain that lists accepted proposals alone
    assert distance(target @ (matrix - matrix.diag().diag()) / accepted.sum(), target) > 0.01


def test_a_constant_reward_keeps_the_model_and_rejects(log_p, proposals) -> None:
    zero = torch.zeros(len(STATES), len(STATES), dtype=torch.float64)
    ratio = log_acceptance(zero, zero, *pairs()[2:], BETA)
    assert (log_p.exp() @ kernel(proposals, ratio) - log_p.exp()).abs().max() < 1e-12
    assert ((proposals > 0) & (ratio < 0)).any()  # a version that accepts always is biased


def test_shifts_and_temperatures() -> None:
    args = (
        torch.tensor([1.0, 2.0]).double(),
        torch.tensor([0.5, 2.5]).double(),
        torch.tensor([3, 3]),
        torch.tensor([3, 4]),
    )
    plain = log_acceptance(*args, 0.5)
    assert torch.allclose(log_acceptance(args[0] + 7, args[1] + 7, *args[2:], 0.5), plain, atol=1e-12)
    assert plain[0] == pytest.approx(-1.0) and plain[1] == pytest.approx(1.0 + math.log(3 / 4))
    assert log_acceptance(*args, 1e9)[1] == pytest.approx(math.log(3 / 4))  # keeps p
    assert log_acceptance(*args, 1e-9)[0] < -1e8  # rejects every decrease


def test_starts_are_uniform() -> None:
    u = (torch.arange(6000) + 0.5) / 6000
    for length in (1, 3, 5):
        starts = suffix_starts(u, torch.full((6000,), length))
        assert starts.bincount(minlength=length).tolist() == [6000 // length] * length
    assert suffix_starts(torch.tensor([1.0]), torch.tensor([4])).item() == 3  # a draw rounded up
    assert torch.equal(suffix_starts(torch.tensor([0.5, 0.5]), torch.tensor([2, 9])), torch.tensor([1, 4]))


def test_weights_of_independent_draws(log_p, target) -> None:
    assert torch.allclose(tilt_weights(REWARDS + log_p * BETA, BETA), target, atol=1e-12)


def test_rhat_and_effective_size() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 2000, generator=generator, dtype=torch.float64)
    assert split_rhat(noise) < 1.01
    assert 0.8 * noise.numel() < effective_sample_size(noise) < 1.3 * noise.numel()
    assert split_rhat(noise + torch.arange(4)[:, None]) > 1.3
    assert split_rhat(noise[:1] + torch.linspace(0, 3, 2000)) > 1.2  # a single chain that drifts
    ar = noise.clone()
    for t in range(1, 2000):
        ar[:, t] += 0.8 * ar[:, t - 1]
    # (1 + a) / (1 - a) = 9 states of such a chain are worth one
    assert float(effective_sample_size(ar)) == pytest.approx(noise.numel() / 9, rel=0.2)
    assert split_rhat(torch.ones(2, 8)) == 1 and effective_sample_size(torch.ones(2, 8)).isnan()
    assert split_rhat(torch.ones(2, 3)).isnan() and effective_sample_size(noise[:, :3]).isnan()


def test_answers() -> None:
    assert rouge_1("a b b c".split(), "b b d".split()) == pytest.approx(2 * 2 / 7)
    assert rouge_1([], []) == 1 and rouge_1([], [1]) == 0
    texts = [[1, 2], [1, 3], [1, 3], [7, 8]]
    assert minimum_bayes_risk(texts) == 1
    assert minimum_bayes_risk(texts, [0.01, 0.01, 0.01, 0.97]) == 3
    assert majority(["a", None, "b", "b"]) == 2 and majority([None, None]) == 0
    assert majority(["a", "b", "b"], [0.7, 0.1, 0.1]) == 0
