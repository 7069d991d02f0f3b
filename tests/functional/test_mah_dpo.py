# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Identities and closed forms of the MAH-DPO equations, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from alignext.functional.mah_dpo import (
    LOSS_TYPES,
    mix_heads,
    mix_logits,
    multi_objective_loss,
    normalize_weights,
    pair_losses,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IDS = torch.tensor([0, 2, 1, 0, 2, 1, 0])
ONES = torch.ones(3)


class TestPairLosses:
    @pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
    def test_is_log_2_at_the_reference(self, beta):
        c, r = randn(5), randn(5, seed=1)
        for smoothing in (0.0, 0.2):
            losses = pair_losses(c, r, c, r, beta=beta, label_smoothing=smoothing)
            torch.testing.assert_close(losses, torch.full_like(c, math.log(2)))

    def test_is_the_formula(self):
        c, r, rc, rr = (randn(6, seed=seed) for seed in range(4))
        d = (c - r) - (rc - rr)
        plus, minus = torch.log(torch.sigmoid(0.5 * d)), torch.log(torch.sigmoid(-0.5 * d))
        torch.testing.assert_close(pair_losses(c, r, rc, rr, beta=0.5), -plus)
        torch.testing.assert_close(pair_losses(c, r, rc, rr, beta=0.5, label_smoothing=0.2), -0.8 * plus - 0.2 * minus)
        torch.testing.assert_close(
            pair_losses(c, r, rc, rr, beta=0.5, label_smoothing=0.2, loss_type="robust"),
            (-0.8 * plus + 0.2 * minus) / 0.6,
        )
        torch.testing.assert_close(pair_losses(c, r, beta=0.5), -F.logsigmoid(0.5 * (c - r)))  # reference-free

    def test_authors_ipo_is_ours_with_lengths_of_one(self):
        c, r, rc, rr = (randn(6, seed=seed) for seed in range(4))
        ones = torch.ones(6)
        ours = pair_losses(c, r, rc, rr, beta=0.1, loss_type="ipo", chosen_lengths=ones, rejected_lengths=ones)
        torch.testing.assert_close(ours, ((c - r) - (rc - rr) - 5.0) ** 2)

    @pytest.mark.parametrize("loss_type", LOSS_TYPES)
    def test_falls_when_the_chosen_one_gains(self, loss_type):
        c = torch.linspace(-1, 1, 9, dtype=torch.float64)
        zeros, lengths = torch.zeros_like(c), torch.full_like(c, 4)
        losses = pair_losses(c, zeros, loss_type=loss_type, chosen_lengths=lengths, rejected_lengths=lengths)
        assert (losses.diff() < 0).all()

    @pytest.mark.parametrize("margin", [-1e5, 1e5])
    def test_is_finite_far_out(self, margin):
        x = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
        loss = pair_losses(x, torch.zeros(1, dtype=torch.float64)).sum()
        loss.backward()
        assert loss.isfinite() and x.grad.isfinite().all()

    def test_wrong_loss_is_named(self):
        with pytest.raises(ValueError, match="aot"):
            pair_losses(ONES, ONES, loss_type="aot")
        with pytest.raises(ValueError, match="chosen_lengths"):
            pair_losses(ONES, ONES, loss_type="ipo")


class TestMultiObjectiveLoss:
    def test_is_the_mean_of_means(self):
        losses = randn(7)
        means = torch.stack([losses[IDS == k].mean() for k in range(3)])
        torch.testing.assert_close(multi_objective_loss(losses, IDS, ONES), means.mean())
        assert not torch.isclose(multi_objective_loss(losses, IDS, ONES), losses.mean())
        weights = torch.tensor([1.0, 0.5, 2.0])
        torch.testing.assert_close(
            multi_objective_loss(losses, IDS, weights), (weights.double() * means).sum() / weights.sum()
        )

    def test_example_mean_is_the_weighted_mean_of_rows(self):
        losses, weights = randn(7), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
        by_row = weights[IDS]
        loss = multi_objective_loss(losses, IDS, weights, reduction="example_mean")
        torch.testing.assert_close(loss, (by_row * losses).sum() / by_row.sum())
        torch.testing.assert_close(multi_objective_loss(losses, IDS, ONES, reduction="example_mean"), losses.mean())

    def test_absent_objective_does_not_count(self):
        losses, ids = randn(4), torch.tensor([0, 2, 2, 0])
        expected = (losses[ids == 0].mean() + losses[ids == 2].mean()) / 2
        torch.testing.assert_close(multi_objective_loss(losses, ids, ONES), expected)
        only = torch.tensor([0.0, 1.0, 0.0])  # nothing with a weight is there
        assert multi_objective_loss(losses.requires_grad_(), ids, only) == 0

    def test_one_weight_is_dpo_on_its_rows(self):
        losses = randn(7)
        only = multi_objective_loss(losses, IDS, torch.tensor([1.0, 0.0, 0.0]))
        torch.testing.assert_close(only, losses[IDS == 0].mean())

    def test_order_of_rows_does_not_matter_but_whose_they_are_does(self):
        losses, order = randn(7), torch.randperm(7)
        loss = multi_objective_loss(losses, IDS, ONES)
        torch.testing.assert_close(multi_objective_loss(losses[order], IDS[order], ONES), loss)
        swapped = IDS.clone()
        swapped[0], swapped[1] = IDS[1], IDS[0]
        assert not torch.isclose(multi_objective_loss(losses, swapped, ONES), loss)

    @pytest.mark.parametrize("reduction", ["objective_mean", "example_mean"])
    @pytest.mark.parametrize("split", [[0, 3], [0, 1, 3], [0, 2, 3, 4, 5]], ids=str)
    def test_any_split_over_processes_is_one_batch(self, reduction, split):
        weights = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
        alone = randn(7).requires_grad_()
        loss = multi_objective_loss(alone, IDS, weights, reduction=reduction)
        loss.backward()
        parts, counts = [*split[1:], 7], torch.bincount(IDS, minlength=3)
        losses, rank_losses = randn(7).requires_grad_(), []
        for start, end in zip(split, parts, strict=True):
            rank_losses.append(
                multi_objective_loss(
                    losses[start:end],
                    IDS[start:end],
                    weights,
                    reduction=reduction,
                    counts=counts,
                    world_size=len(split),
                )
            )
        torch.stack(rank_losses).mean().backward()  # what DDP does with gradients
        torch.testing.assert_close(torch.stack(rank_losses).mean(), loss)
        torch.testing.assert_close(losses.grad, alone.grad)

    def test_wrong_reduction_is_named(self):
        with pytest.raises(ValueError, match="'sum'"):
            multi_objective_loss(randn(7), IDS, ONES, reduction="sum")


class TestMixing:
    def test_one_hot_is_a_single_head_exactly(self):
        heads = list(torch.randn(3, 7, 4).bfloat16())
        assert torch.equal(mix_heads(heads, torch.tensor([0.0, 1.0, 0.0])), heads[1].float())

    def test_folding_is_mixing(self):
        heads, h, w = randn(3, 7, 4), randn(2, 4, seed=1), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
        logits = torch.einsum("kvd,bd->kbv", heads, h)
        torch.testing.assert_close(h @ mix_heads(list(heads), w).T, mix_logits(logits, w))

    def test_weights_by_row(self):
        logits, w = randn(3, 2, 5, 7), normalize_weights(randn(2, 3).abs())
        mixed = mix_logits(logits, w)
        for b in range(2):
            torch.testing.assert_close(mixed[b], mix_logits(logits[:, b], w[b]))

    def test_is_the_product_of_the_policies_not_their_average(self):
        logits, w = randn(3, 2, 7), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
        p = logits.softmax(-1)
        mixed = mix_logits(logits, w).softmax(-1)
        product = (p ** w[:, None, None]).prod(0)
        torch.testing.assert_close(mixed, product / product.sum(-1, keepdim=True))
        assert not torch.allclose(mixed, (w[:, None, None] * p).sum(0), atol=1e-3)

    def test_is_the_optimum_for_the_mixed_reward(self):
        ref, w, beta = randn(7), torch.tensor([0.2, 0.8], dtype=torch.float64), 0.3
        rewards = randn(2, 7, seed=1)
        heads = ref + rewards / beta  # each head the optimum for its reward
        optimum = (ref.log_softmax(-1) + (w[:, None] * rewards).sum(0) / beta).softmax(-1)
        torch.testing.assert_close(mix_logits(heads, w).softmax(-1), optimum)

    def test_only_ratios_of_weights_matter(self):
        w = torch.tensor([0.2, 1.0, 0.0])
        torch.testing.assert_close(normalize_weights(w), normalize_weights(7 * w))
        assert normalize_weights(w).sum() == 1
        assert torch.equal(normalize_weights(w - 0.5, normalize=False), w - 0.5)

    @pytest.mark.parametrize(
        "weights", [[0.0, 0.0], [1.0, math.nan], [1.0, math.inf], [1.5, -0.5], [[1.0, 1.0], [0.0, 0.0]]]
    )
    def test_wrong_weights_are_shown(self, weights):
        with pytest.raises(ValueError, match=r"`objective_weights` are \["):
            normalize_weights(torch.tensor(weights))
