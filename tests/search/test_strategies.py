# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Who survives."""

import math

import pytest
import torch

from alignext.search.strategies import SMC, beam_parents, local_parents, systematic_resample


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_beam_pools_all_candidates_and_repeats_each_survivor():
    assert beam_parents(rows([1, 9, 2, 8, 7, 3]), 2).tolist() == [[1, 1, 1, 3, 3, 3]]


def test_one_parent_may_take_all_places():
    assert beam_parents(rows([5, 6, 1, 2], [1, 2, 6, 5]), 2).tolist() == [[1, 1, 0, 0], [2, 2, 3, 3]]


@pytest.mark.parametrize("n, beams", [(6, 2), (32, 4), (64, 32)])
def test_ties_keep_the_lower_index(n, beams):
    assert beam_parents(torch.zeros(2, n), beams)[:, :: n // beams].tolist() == [list(range(beams))] * 2
    first = [b * (n // beams) for b in range(beams)]
    assert local_parents(torch.zeros(2, n), beams)[:, :: n // beams].tolist() == [first] * 2


def test_minus_infinity_ranks_last():
    assert beam_parents(rows([-math.inf, 1, -math.inf, 0]), 2).tolist() == [[1, 1, 3, 3]]


def test_cap_bounds_the_children_of_a_beam():
    rewards = rows([9, 8, 7, 1, 2, 3])  # two beams of three candidates
    assert beam_parents(rewards, 2, cap=1)[:, ::3].tolist() == [[0, 5]]
    rewards = rows([9, 8, 7, 6, 1, 2, 3, 0, 4, 4, 4, 4])  # three beams of four
    assert beam_parents(rewards, 3, cap=2)[:, ::4].tolist() == [[0, 1, 8]]
    assert beam_parents(rewards, 3, cap=4).tolist() == beam_parents(rewards, 3).tolist()


def test_local_has_no_competition_between_beams():
    assert local_parents(rows([9, 8, 1, 2]), 2).tolist() == [[0, 0, 3, 3]]


def test_systematic_resampling_gives_floor_or_ceil_of_the_expected_copies():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        W = torch.rand(4, 9, generator=generator, dtype=torch.float64).pow(4)
        W = W / W.sum(1, keepdim=True)
        parents = systematic_resample(W, torch.rand(4, generator=generator, dtype=torch.float64))
        copies = torch.nn.functional.one_hot(parents, 9).sum(1)
        assert ((copies - 9 * W).abs() < 1).all()


def test_systematic_resampling_never_picks_what_has_no_weight():
    W = rows([0, 1, 0, 0]) * (1 - 1e-12)
    assert systematic_resample(W, torch.tensor([0.999999999999999], dtype=torch.float64)).tolist() == [[1, 1, 1, 1]]
    assert systematic_resample(rows([0, 0.5, 0, 0.5]), torch.zeros(1)).tolist() == [[1, 1, 3, 3]]


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
