# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Calibration of attention maps, as identities."""

import pytest
import torch

from alignext.functional.elbo_align import (
    calibrate,
    heat_maps,
    label_map,
    layer_weights,
    min_max,
    phrase_weights,
    temperatures,
)


def maps(seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_temperatures_run_from_one_to_the_strength():
    losses = torch.tensor([2.0, 5.0, 3.5])
    gamma = temperatures(losses, 3.0)
    torch.testing.assert_close(gamma, torch.tensor([1.0, 3.0, 3.0**0.5], dtype=torch.float64))
    assert torch.equal(temperatures(losses, 1.0), torch.ones(3, dtype=torch.float64))
    order = torch.tensor([2, 0, 1])
    assert torch.equal(temperatures(losses[order], 3.0), gamma[order])
    # The scale of the losses and what they share do not matter.
    torch.testing.assert_close(temperatures(10 * losses + 4, 3.0), gamma)


@pytest.mark.parametrize("losses", [[4.0], [2.0, 2.0]])
def test_equal_losses_and_one_class_change_nothing(losses: list[float]):
    assert (temperatures(torch.tensor(losses), 3.0) == 1).all()


def test_calibration_is_a_power_of_what_lies_between_zero_and_one():
    a = maps()
    assert torch.equal(calibrate(a, torch.ones(3)), min_max(a))
    powers = calibrate(5 * a - 2, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(powers, min_max(a) ** torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1))
    assert (powers.flatten(1).min(1).values == 0).all() and (powers.flatten(1).max(1).values == 1).all()
    assert (powers <= min_max(a) + 1e-12).all()


def test_a_constant_map_is_zero_and_no_nan():
    assert not min_max(torch.full((2, 3, 3), 0.7)).any()
    spread = heat_maps(torch.full((1, 2, 2), 0.7), torch.eye(4), torch.eye(4))
    assert not min_max(spread).any()


def test_maps_spread_along_rows_that_sum_to_one():
    first, second = (torch.rand(24, 24, generator=torch.Generator().manual_seed(i)).double() for i in range(2))
    first, second = first / first.sum(1, keepdim=True), second / second.sum(1, keepdim=True)
    a = maps()
    whole = (second @ first) @ a.flatten(1).T  # (hw, C)
    torch.testing.assert_close(heat_maps(a, first, second).flatten(1), whole.T)
    # What is the same everywhere stays so.
    torch.testing.assert_close(heat_maps(torch.ones_like(a), first, second), torch.ones_like(a))
    # Identity spreads nothing.
    eye = torch.eye(24, dtype=torch.float64)
    torch.testing.assert_close(heat_maps(a, eye, eye), a)


def test_weights_of_layers_are_a_gaussian_about_the_middle():
    weights = layer_weights(7, 3.0)
    assert weights.sum() == pytest.approx(1) and torch.equal(weights, weights.flip(0)) and weights.argmax() == 3
    assert (weights[2] / weights[3]).item() == pytest.approx(2.718281828 ** (-1 / 6))


def test_labels_are_the_highest_above_the_threshold():
    a = torch.tensor([[[0.6, 0.2], [0.5, 0.1]], [[0.7, 0.4], [0.3, 0.9]]])
    assert label_map(a, 0.5).tolist() == [[2, 0], [1, 2]]
    assert (label_map(a, 0.0) > 0).all()


def test_phrases_that_are_far_off_weigh_more():
    weights = phrase_weights(torch.tensor([0.1, 0.4, 0.2]), 1.2)
    assert weights.tolist() == [1.0, 1.2, round(1.2 ** (1 / 3), 2)]
    assert phrase_weights(torch.tensor([0.3, 0.3]), 1.2).tolist() == [1.0, 1.0]  # equal ones divide by nothing
