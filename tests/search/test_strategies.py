# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Steering by weights over several nodes."""

import math

import pytest
import torch

from alignext.search.strategies import SMC


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


U = torch.tensor([0.5])


@pytest.mark.parametrize("potential", ["diff", "max", "add", "rt"])
def test_the_potentials_multiply_to_the_exponentiated_final_reward(potential):
    """Without resampling the weight of a path is exp(lambda r(x0)), whatever it went through."""
    smc = SMC(2.0, potential, threshold=0.0)
    for rewards in ([1, -3, 0.5], [4, 0, 0.5], [-2, 2, 0.5]):
        smc.select(rows(rewards), U)
    smc.select(rows([0.3, 0.1, -0.4]), U, last=True)
    torch.testing.assert_close(smc.log_weights, 2 * rows([0.3, 0.1, -0.4]))


def test_potentials_by_hand():
    def weights(potential):
        smc = SMC(1.0, potential, threshold=0.0)
        smc.select(rows([3, 1]), U)
        smc.select(rows([2, 5]), U)
        return smc.log_weights.tolist()

    assert weights("diff") == [[2, 5]]
    assert weights("max") == [[3 + 3, 1 + 5]]
    assert weights("add") == [[3 + 5, 1 + 6]]
    assert weights("rt") == [[3 + 2, 1 + 5]]


def test_weights_are_kept_where_nothing_is_resampled_and_reset_where_something_is():
    smc = SMC(1.0, "diff", threshold=0.5)
    assert smc.select(rows([0.0, 0.1, 0.2, 0.3]), U).tolist() == [[0, 1, 2, 3]]
    torch.testing.assert_close(smc.log_weights, rows([0.0, 0.1, 0.2, 0.3]))
    assert smc.select(rows([0.0, 0.1, 9.0, 0.3]), U).tolist() == [[2, 2, 2, 2]]
    assert smc.log_weights.tolist() == [[0, 0, 0, 0]]
    smc.select(rows([9.0, 9.1, 9.2, 9.3]), U)  # the ancestor's 9 is what is taken off
    torch.testing.assert_close(smc.log_weights, rows([0.0, 0.1, 0.2, 0.3]))


@pytest.mark.parametrize("potential", ["diff", "max", "add", "rt"])
def test_no_reward_weight_means_no_resampling(potential):
    smc = SMC(0.0, potential, threshold=1.0)
    for last in (False, True):
        for n in (3, 7):
            assert (
                SMC(0.0, potential, 1.0).select(torch.randn(2, n), torch.rand(2), last).tolist()
                == [list(range(n))] * 2
            )
    assert smc.select(torch.randn(1, 5), U).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("potential", ["diff", "add", "rt"])  # for max it keeps what it had
def test_a_dead_particle_has_no_children_and_poisons_nothing(potential):
    smc = SMC(1.0, potential, threshold=0.0)
    smc.select(rows([1, -math.inf, 2]), U)
    smc.select(rows([1, 7, 2]), U)
    assert smc.log_weights[0, 1] == -math.inf and smc.log_weights[0, [0, 2]].isfinite().all()
    smc.threshold = 1.0
    assert 1 not in smc.select(rows([1, 50, 2]), U)[0].tolist()


def test_large_weights_do_not_overflow():
    smc = SMC(1e6, "diff", threshold=1.0)
    assert smc.select(rows([1, 2, 3]), U).tolist() == [[2, 2, 2]]
