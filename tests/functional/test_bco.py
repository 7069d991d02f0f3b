# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Identities and closed forms of the BCO equations, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from alignext.functional.bco import (
    bco_loss,
    class_mean_shift,
    fit_density_ratio,
    pooled_mean_shift,
    reward_sums,
    update_sums,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REWARDS = torch.tensor([1.0, 2.0, 1.5, -0.5], dtype=torch.float64)
LABELS = torch.tensor([True, True, True, False])


class TestLoss:
    def test_is_the_log_sigmoid_of_the_shifted_reward(self):
        r, delta = randn(64), 0.7
        plus, minus = torch.ones(64, dtype=torch.bool), torch.zeros(64, dtype=torch.bool)
        torch.testing.assert_close(bco_loss(r, plus, delta), -torch.log(torch.sigmoid(r - delta)))
        torch.testing.assert_close(bco_loss(r, minus, delta), -torch.log(1 - torch.sigmoid(r - delta)))

    @pytest.mark.parametrize("reward", [-1e4, 1e4])
    def test_is_finite_far_out(self, reward):
        r = torch.tensor([reward, reward], dtype=torch.float64)
        loss = bco_loss(r, torch.tensor([True, False]))
        assert loss.tolist() == ([0.0, 1e4] if reward > 0 else [1e4, 0.0])

    @pytest.mark.parametrize(
        ("shift", "expected"),
        [
            (pooled_mean_shift, [0.6931, 0.3133, 0.4741, 0.2014]),
            (class_mean_shift, [0.4741, 0.2014, 0.3133, 0.3133]),
        ],
    )
    def test_of_a_batch_worked_out_by_hand(self, shift, expected):
        loss = bco_loss(REWARDS, LABELS, shift(reward_sums(REWARDS, LABELS)))
        torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5e-5)

    def test_without_rewards_it_is_ln_2_times_the_weight(self):
        loss = bco_loss(torch.zeros(4), LABELS, desirable_weight=2.0, undesirable_weight=0.5)
        torch.testing.assert_close(loss, math.log(2) * torch.tensor([2.0, 2.0, 2.0, 0.5]))

    def test_gradient_is_that_of_a_constant_shift(self):
        r = REWARDS.clone().requires_grad_()
        delta = r.mean()  # carries a gradient, which must not be followed
        ratio = torch.full((4,), 3.0, dtype=torch.float64)
        bco_loss(r, LABELS, delta, desirable_weight=0.5, density_ratio=ratio).mean().backward()
        weight = torch.tensor([0.5, 0.5, 0.5, 3.0], dtype=torch.float64)
        u = (REWARDS - REWARDS.mean()).detach()
        expected = weight * torch.where(LABELS, -torch.sigmoid(-u), torch.sigmoid(u)) / 4
        torch.testing.assert_close(r.grad, expected, rtol=1e-12, atol=0)

    def test_density_ratio_weighs_undesirable_rows_only(self):
        ratio = torch.tensor([5.0, 5.0, 5.0, 0.5], dtype=torch.float64)
        plain, matched = bco_loss(REWARDS, LABELS), bco_loss(REWARDS, LABELS, density_ratio=ratio)
        assert torch.equal(matched[:3], plain[:3])
        assert matched[3] == 0.5 * plain[3]
        assert torch.equal(bco_loss(REWARDS, LABELS, density_ratio=torch.ones(4, dtype=torch.float64)), plain)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
    def test_labels_are_bools_or_numbers(self, dtype):
        assert torch.equal(bco_loss(REWARDS, LABELS.to(dtype), 0.3), bco_loss(REWARDS, LABELS, 0.3))
        assert torch.equal(reward_sums(REWARDS, LABELS.to(dtype)), reward_sums(REWARDS, LABELS))


class TestBoundOnDPO:
    """Theorem: the classifier's loss on a pair bounds DPO's from above, and the shift decides how tightly."""

    chosen, rejected = randn(200), randn(200, seed=1)

    def bce(self, delta):
        plus, minus = torch.ones(200, dtype=torch.bool), torch.zeros(200, dtype=torch.bool)
        return bco_loss(self.chosen, plus, delta) + bco_loss(self.rejected, minus, delta)

    def test_gap_has_its_closed_form(self):
        delta = randn(200, seed=2)
        dpo = -F.logsigmoid(self.chosen - self.rejected)
        a, b = self.chosen - delta, delta - self.rejected
        gap = torch.log1p((torch.exp(-a) + torch.exp(-b)) / (1 + torch.exp(-a - b)))
        torch.testing.assert_close(self.bce(delta) - dpo, gap, rtol=0, atol=1e-12)
        assert (gap > 0).all()

    def test_gap_is_least_in_the_middle(self):
        middle = (self.chosen + self.rejected) / 2
        least = self.bce(middle)
        for offset in (-1.0, -1e-3, 1e-3, 1.0):
            assert (self.bce(middle + offset) > least).all()
        a, b = self.chosen - middle, middle - self.rejected
        torch.testing.assert_close(
            torch.exp(-a) + torch.exp(-b), 2 * torch.exp(-(self.chosen - self.rejected) / 2), rtol=1e-12, atol=0
        )


class TestShift:
    def test_worked_out_by_hand(self):
        sums = reward_sums(REWARDS, LABELS)
        assert sums.tolist() == [-0.5, 4.5, 1.0, 3.0]
        assert pooled_mean_shift(sums) == 1.0
        assert class_mean_shift(sums) == 0.5

    def test_of_nothing_is_zero_and_of_one_class_its_mean(self):
        nothing = torch.zeros(4, dtype=torch.float64)
        assert class_mean_shift(nothing) == pooled_mean_shift(nothing) == 0.0
        assert class_mean_shift(reward_sums(REWARDS[:3], LABELS[:3])) == 1.5
        assert class_mean_shift(reward_sums(REWARDS[3:], LABELS[3:])) == -0.5

    def test_sums_of_parts_add_up(self):
        r, y = randn(40), randn(40, seed=1) > 0
        parts = reward_sums(r[:13], y[:13]) + reward_sums(r[13:], y[13:])
        torch.testing.assert_close(parts, reward_sums(r, y), rtol=1e-12, atol=1e-12)

    def test_running_mean_is_the_mean_of_all_rewards(self):
        r, y = randn(40), randn(40, seed=1) > 0
        sums = torch.zeros(4, dtype=torch.float64)
        for part in range(0, 40, 8):
            sums = update_sums(sums, reward_sums(r[part : part + 8], y[part : part + 8]))
            assert pooled_mean_shift(sums) == pytest.approx(float(r[: part + 8].mean()), abs=1e-12)

    def test_moving_average_weighs_each_row_by_its_age(self):
        r, y = randn(6, 8), randn(6, 8, seed=1) > 0
        sums, decay = torch.zeros(4, dtype=torch.float64), 0.8
        for rewards, labels in zip(r, y, strict=True):
            sums = update_sums(sums, reward_sums(rewards, labels), decay)
        age = decay ** torch.arange(5, -1, -1, dtype=torch.float64)[:, None]
        means = [(r * age)[y == k].sum() / age.expand_as(r)[y == k].sum() for k in (False, True)]
        assert class_mean_shift(sums) == pytest.approx(float(sum(means)) / 2, abs=1e-12)

    def test_class_that_is_absent_keeps_its_mean(self):
        sums = reward_sums(REWARDS, LABELS)
        for _ in range(50):
            sums = update_sums(sums, reward_sums(REWARDS[:3], LABELS[:3]), 0.9)
        assert class_mean_shift(sums) == pytest.approx(0.5, abs=1e-12)

    def test_takes_no_gradient_with_it(self):
        assert not reward_sums(REWARDS.clone().requires_grad_(), LABELS).requires_grad


def prompts(d, n, shift=0.0, seed=0):
    """Embeddings of `n` prompts a class, the desirable ones moved along the first axis, and of held-out bad ones."""
    x = randn(2 * n + 1000, d, seed=seed)
    x[:n, 0] += shift
    labels = torch.arange(2 * n) < n
    return x[: 2 * n], labels, x[2 * n :]


def true_ratio(x, shift):
    return torch.exp(shift * x[:, 0] - shift**2 / 2)


class TestDensityRatio:
    @pytest.mark.parametrize("regularization", [0.01, 1.0, 100.0])
    def test_fit_is_where_the_gradient_vanishes(self, regularization):
        x, y, _ = prompts(5, 60, shift=1.0)
        x, y = x[:90], y[:90]  # twice as many desirable ones
        fit = fit_density_ratio(x, y, regularization=regularization)
        target = y.double()
        s = torch.where(y, 90 / (2 * 60), 90 / (2 * 30)).double()
        residual = s * (torch.sigmoid(x @ fit.weight + fit.bias) - target)
        torch.testing.assert_close(
            x.T @ residual + fit.weight / regularization, torch.zeros_like(fit.weight), rtol=0, atol=1e-5
        )
        assert abs(residual.sum()) < 1e-5  # the bias is not penalised

    def test_is_the_ratio_of_the_densities(self):
        x, y, bad = prompts(2, 2000, shift=1.0)
        fit = fit_density_ratio(x, y)
        ratio, truth = fit.logits(bad).exp(), true_ratio(bad, 1.0)
        assert torch.corrcoef(torch.stack([ratio, truth]))[0, 1] > 0.9
        assert float(ratio.mean()) == pytest.approx(1.0, abs=0.1)  # it is a density ratio: its mean over - is 1
        assert fit.auc > 0.7

    def test_does_not_depend_on_how_many_rows_a_class_has(self):
        x, y, bad = prompts(2, 2000, shift=1.0)
        fewer = torch.cat([torch.arange(2000), torch.arange(2000, 2500)])
        ratio = fit_density_ratio(x[fewer], y[fewer]).logits(bad).exp()
        assert (ratio - true_ratio(bad, 1.0)).abs().mean() < 0.2

    def test_same_prompts_in_both_classes_weigh_about_one(self):
        x, y, bad = prompts(128, 256)
        fit = fit_density_ratio(x, y)
        weights = fit.weights(bad)
        assert abs(weights.mean() - 1) < 0.02 and weights.std() < 0.2
        assert 0.4 < fit.auc < 0.6
        overfitted = fit_density_ratio(x, y, regularization=1.0).weights(bad)
        assert overfitted.mean() > 1.5 and overfitted.std() > 1  # what a fixed C on raw embeddings does

    def test_real_shift_is_found_among_many_dimensions(self):
        x, y, bad = prompts(128, 256, shift=1.0)
        truth = true_ratio(bad, 1.0).clamp(0.5, 10)
        assert (fit_density_ratio(x, y).weights(bad) - truth).abs().mean() < 0.6
        assert (fit_density_ratio(x, y, regularization=1.0).weights(bad) - truth).abs().mean() > 1.1

    def test_scale_and_origin_of_the_embeddings_do_not_matter(self):
        x, y, bad = prompts(8, 200, shift=1.0)
        plain, moved = fit_density_ratio(x, y), fit_density_ratio(1e3 * x + 7, y)
        torch.testing.assert_close(moved.weights(1e3 * bad + 7), plain.weights(bad), rtol=1e-4, atol=0)

    def test_repeated_prompts_are_held_out_together(self):
        """A prompt that stands in both folds would be recognised, and what is learnt by heart would look real."""
        x, y, _ = prompts(32, 30)
        x, y, groups = x.repeat(4, 1), y.repeat(4), torch.arange(60).repeat(4)
        assert fit_density_ratio(x, y, folds=3).auc > 0.9
        assert fit_density_ratio(x, y, groups=groups, folds=3).auc < 0.7

    def test_of_one_prompt_is_one(self):
        x, y = torch.ones(20, 3), torch.arange(20) < 5
        fit = fit_density_ratio(x, y, groups=torch.zeros(20, dtype=torch.long))
        torch.testing.assert_close(fit.weights(x), torch.ones(20, dtype=torch.float64), rtol=1e-6, atol=0)

    def test_is_clipped(self):
        x, y, bad = prompts(2, 500, shift=3.0)
        weights = fit_density_ratio(x, y).weights(bad, 0.9, 1.1)
        assert weights.min() == 0.9 and weights.max() == 1.1

    def test_is_the_same_every_time(self):
        x, y, bad = prompts(8, 50, shift=1.0)
        first = fit_density_ratio(x, y, folds=2).weights(bad)
        torch.manual_seed(123)
        assert torch.equal(fit_density_ratio(x, y, folds=2).weights(bad), first)

    def test_needs_both_classes(self):
        x, y, _ = prompts(2, 10)
        with pytest.raises(ValueError, match="0 undesirable and 10 desirable"):
            fit_density_ratio(x[:10], y[:10])
