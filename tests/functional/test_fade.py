# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Estimators of the divergence of two text models, on a toy whose every text can be listed."""

import itertools
import math

import pytest
import torch

from alignext.functional.fade import estimate, token_kl, token_log_ratios


V, L, END = 5, 4, 0


def toy(seed: int) -> dict[tuple[int, ...], torch.Tensor]:
    """Log-probabilities of the next of 5 tokens after every text of up to 3; token 0 ends it."""
    generator = torch.Generator().manual_seed(seed)
    logits = {}
    for length in range(L):
        for prefix in itertools.product(range(1, V), repeat=length):
            logits[prefix] = torch.randn(V, generator=generator, dtype=torch.float64).log_softmax(-1)
    return logits


def texts() -> list[tuple[int, ...]]:
    """All texts: those that end, and those that are cut after four tokens."""
    found = []
    for length in range(L):
        found += [(*prefix, END) for prefix in itertools.product(range(1, V), repeat=length)]
    return found + list(itertools.product(range(1, V), repeat=L))


def per_token(model: dict, text: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([model[text[:i]][token] for i, token in enumerate(text)])


P = toy(0)
# Near P, as models after a little training are.
Q = {prefix: (P[prefix] + 0.3 * other).log_softmax(-1) for prefix, other in toy(1).items()}


def true_divergence(p: dict, q: dict) -> float:
    return sum(
        per_token(p, text).sum().exp().item() * (per_token(p, text) - per_token(q, text)).sum().item()
        for text in texts()
    )


def padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float("nan"))


def test_both_estimators_have_the_divergence_as_their_mean():
    """The sum over all texts with their probabilities, so without any noise."""
    every = texts()
    mask = padded([torch.ones(len(text)) for text in every]).nan_to_num(0)
    chances = torch.stack([per_token(P, text).sum().exp() for text in every])
    assert chances.sum().item() == pytest.approx(1, abs=1e-12)
    monte_carlo = token_log_ratios(
        padded([per_token(P, text) for text in every]), padded([per_token(Q, text) for text in every]), mask
    )
    blackwell = torch.stack(
        [sum(token_kl(P[text[:i]], Q[text[:i]]) for i in range(len(text))) for text in every]  # type: ignore[misc]
    )
    expected = true_divergence(P, Q)
    assert (chances * monte_carlo).sum().item() == pytest.approx(expected, abs=1e-12)
    assert (chances * blackwell).sum().item() == pytest.approx(expected, abs=1e-12)
    # One is never negative and varies less; absolute values of the other would have another mean.
    assert (blackwell >= 0).all() and (monte_carlo < 0).any()
    spread = [(chances * (values - expected) ** 2).sum().item() for values in (monte_carlo, blackwell)]
    assert spread[1] < spread[0] / 3
    assert (chances * monte_carlo.abs()).sum().item() > 1.2 * expected


def test_the_divergence_from_itself_is_exactly_zero():
    logits = torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(0))
    assert not token_kl(logits, logits).any()
    assert not token_log_ratios(logits[..., 0], logits[..., 0], torch.ones(3, 7)).any()


def test_a_token_that_only_one_model_allows():
    p = torch.tensor([0.5, 0.5, 0.0]).log()
    q = torch.tensor([0.5, 0.25, 0.25]).log()
    assert token_kl(p, q).item() == pytest.approx(0.5 * math.log(2))
    assert token_kl(q, p).item() == math.inf


def test_half_precision_is_summed_in_float32():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    other = logits + 0.05 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(1))
    found = token_kl(logits.bfloat16(), other.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, token_kl(logits.bfloat16().double(), other.bfloat16().double()).float())


def test_standard_errors_are_those_of_the_draws():
    """Prompts differ much and that is no error: only draws vary."""
    generator = torch.Generator().manual_seed(0)
    level = torch.tensor([0.0, 10.0, 20.0])[:, None]
    means = []
    for _ in range(300):
        found = estimate(level + torch.randn(3, 8, generator=generator))
        means.append(found.mean)
        assert found.stderr < 1
    spread = torch.tensor(means).std().item()
    assert spread == pytest.approx((1 / 24) ** 0.5, rel=0.15)
    assert found.stderr == pytest.approx(spread, rel=0.6)
    assert math.isnan(estimate(torch.zeros(2, 1)).stderr)
