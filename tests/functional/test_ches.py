# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""CHES scores as identities, in float64."""

import pytest
import torch

from alignext.functional.ches import answer_sums, ches_scores, growth_kernel, ln_ches_scores


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_states_that_predict_the_answer_count_and_no_others() -> None:
    states, mask = drawn(2, 6, 3), torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0]])
    sums, lengths = answer_sums(states, mask)
    assert torch.equal(sums[0], states[0, 1] + states[0, 2] + states[0, 3])
    assert torch.equal(sums[1], states[1, 2])
    assert lengths.tolist() == [3, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter_whatever_its_states(side: str) -> None:
    states, mask, filler = drawn(1, 5, 3), torch.tensor([[0, 0, 1, 1, 1]]), torch.full((1, 2, 3), torch.nan)
    none = torch.zeros(1, 2, dtype=torch.long)
    parts, masks = ([filler, states], [none, mask]) if side == "left" else ([states, filler], [mask, none])
    for found, expected in zip(
        answer_sums(torch.cat(parts, 1), torch.cat(masks, 1)), answer_sums(states, mask), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_sums_of_half_precision_are_wide() -> None:
    states = drawn(1, 400, 8).to(torch.bfloat16)
    sums, _ = answer_sums(states, torch.ones(1, 400))
    assert sums.dtype == torch.float64
    assert torch.equal(sums[0], states[0, :-1].double().sum(0))


def test_scores_are_their_definitions() -> None:
    plus, minus = drawn(4, 5, 3), drawn(4, 7, 3, seed=1)
    a, b = plus.sum(1), minus.sum(1)
    by_pairs = torch.einsum("bkd,bld->b", plus, minus) - torch.einsum("bkd,bld->b", plus, plus)
    torch.testing.assert_close(ches_scores(a, b), by_pairs, rtol=1e-12, atol=1e-12)
    m, n = torch.full((4,), 5.0, dtype=torch.float64), torch.full((4,), 7.0, dtype=torch.float64)
    by_means = torch.einsum("bkd,bld->b", plus, minus) / 35 - torch.einsum("bkd,bld->b", plus, plus) / 25
    torch.testing.assert_close(ln_ches_scores(a, b, m, n), by_means, rtol=1e-12, atol=1e-12)


def test_equal_answers_score_nothing_and_the_two_are_not_alike() -> None:
    a, b, n = drawn(3, 4), drawn(3, 4, seed=1), torch.full((3,), 5.0, dtype=torch.float64)
    assert torch.equal(ches_scores(a, a), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(ln_ches_scores(a, a, n, n), torch.zeros(3, dtype=torch.float64))
    assert not torch.allclose(ches_scores(a, b), ches_scores(b, a))
    torch.testing.assert_close(ches_scores(3 * a, 3 * b), 9 * ches_scores(a, b))


def test_an_empty_answer_has_no_normalised_score() -> None:
    zero = torch.zeros(1, 4, dtype=torch.float64)
    assert ln_ches_scores(drawn(1, 4), zero, torch.tensor([2.0]), torch.tensor([0.0])).isnan().all()


def log_likelihood(layer: torch.Tensor, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return (states @ layer.T).log_softmax(-1).gather(1, tokens[:, None]).sum()


def test_kernel_is_the_inner_product_of_gradients_by_the_output_layer() -> None:
    layer = drawn(11, 3, seed=2).requires_grad_()
    answers = [(drawn(n, 3, seed=n), torch.arange(n) * 2 % 11) for n in (4, 6)]
    gradients, residuals = [], []
    for states, tokens in answers:
        gradients.append(torch.autograd.grad(log_likelihood(layer, states, tokens), layer)[0])
        residuals.append(torch.eye(11, dtype=torch.float64)[tokens] - (states @ layer.detach().T).softmax(-1))
    (plus, _), (minus, _) = answers
    for a, b in ((0, 0), (0, 1), (1, 1)):
        kernel = growth_kernel(answers[a][0], residuals[a], answers[b][0], residuals[b])
        torch.testing.assert_close(kernel, (gradients[a] * gradients[b]).sum(), rtol=1e-12, atol=1e-12)
    # with all coefficients 1, the growth of the chosen answer is CHES, its sign turned
    ones = [torch.ones(len(states), 1, dtype=torch.float64) for states, _ in answers]
    growth = growth_kernel(plus, ones[0], plus, ones[0]) - growth_kernel(plus, ones[0], minus, ones[1])
    torch.testing.assert_close(-growth, ches_scores(plus.sum(0), minus.sum(0)), rtol=1e-12, atol=1e-12)
