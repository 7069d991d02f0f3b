# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Closed forms of the labels and the loss of process rewards, in float64."""

import math

import pytest
import torch

from alignext.functional.process_reward import hindsight_targets, majority_vote, process_reward_loss, rollout_mean


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestHindsight:
    def test_adds_the_discounted_outcome_by_hand(self):
        assert hindsight_targets([0.0, 1.0, 2.0], 1.0, gamma=0.5).tolist() == [0.25, 1.5, 3.0]

    def test_of_a_batch_is_that_of_each(self):
        rewards, outcomes = randn(3, 5), randn(3, seed=1)
        together = hindsight_targets(rewards, outcomes)
        for row, r, z in zip(together, rewards, outcomes.tolist(), strict=True):
            expected = [r[t - 1].item() + 0.9 ** (5 - t) * z for t in range(1, 6)]
            assert row.tolist() == pytest.approx(expected, rel=1e-14)

    @pytest.mark.parametrize(("gamma", "shares"), [(1.0, [1.0] * 4), (0.0, [0.0, 0.0, 0.0, 1.0])])
    def test_at_the_ends_of_gamma(self, gamma, shares):
        assert hindsight_targets(torch.zeros(4), 1.0, gamma).tolist() == shares

    @pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan])
    def test_refuses_a_discount_that_is_none(self, gamma):
        with pytest.raises(ValueError, match="`gamma`"):
            hindsight_targets([0.0], 1.0, gamma)


class TestRollouts:
    def test_the_value_is_the_mean_over_rollouts(self):
        values = randn(4, 6)
        torch.testing.assert_close(rollout_mean(values), sum(values) / 4)
        assert rollout_mean([0, 1, 1, 0]).item() == 0.5

    def test_a_tie_is_no_majority(self):
        assert majority_vote([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]]).tolist() == [0.0, 1.0, 0.0]

    def test_takes_probabilities(self):
        assert majority_vote(torch.tensor([[0.9, 0.4], [0.2, 0.5]])).tolist() == [1.0, 0.0]

    @pytest.mark.parametrize("function", [rollout_mean, majority_vote])
    def test_needs_a_rollout(self, function):
        with pytest.raises(ValueError, match="rollout"):
            function(torch.empty(0, 3))


class TestLoss:
    LABELS = torch.tensor([[-100.0, 1.0, -100.0, 0.25], [-100.0, 0.0, -100.0, -100.0]], dtype=torch.float64)

    def test_bce_is_the_cross_entropy_of_the_labelled_positions(self):
        s = randn(2, 4)
        p = s.sigmoid()
        first = -(p[0, 1].log() + 0.25 * p[0, 3].log() + 0.75 * (1 - p[0, 3]).log()) / 2
        expected = torch.stack([first, -(1 - p[1, 1]).log()])
        torch.testing.assert_close(process_reward_loss(s, self.LABELS), expected)

    def test_mse_is_the_squared_error_of_the_labelled_positions(self):
        s = randn(2, 4)
        expected = torch.stack([((s[0, 1] - 1) ** 2 + (s[0, 3] - 0.25) ** 2) / 2, s[1, 1] ** 2])
        torch.testing.assert_close(process_reward_loss(s, self.LABELS, loss_type="mse"), expected)

    @pytest.mark.parametrize("loss_type", ["bce", "mse"])
    def test_positions_without_label_get_no_gradient(self, loss_type):
        s = randn(2, 4).requires_grad_()
        process_reward_loss(s, self.LABELS, loss_type=loss_type).sum().backward()
        assert torch.equal(s.grad != 0, self.LABELS != -100)

    def test_a_solution_without_labels_costs_nothing(self):
        assert process_reward_loss(randn(1, 3), torch.full((1, 3), -100.0)).tolist() == [0.0]

    def test_is_computed_in_float32_at_least(self):
        s = randn(2, 4)
        low = process_reward_loss(s.bfloat16(), self.LABELS.float())
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, process_reward_loss(s.bfloat16().double(), self.LABELS).float())

    def test_refuses_another_loss(self):
        with pytest.raises(ValueError, match="`loss_type` is 'hinge'"):
            process_reward_loss(randn(1, 1), randn(1, 1), loss_type="hinge")
