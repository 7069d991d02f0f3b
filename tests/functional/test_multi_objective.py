# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The hypervolume against other ways of measuring the same volume, and the Pareto front against its definition."""

import itertools
import math

import pytest
import torch

from alignext.functional.multi_objective import hypervolume, pareto_front


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_inclusion_and_exclusion(points, ref):
    """The volume of a union of boxes, from those of all their intersections."""
    sides = (points - ref).clamp(min=0)
    total = 0.0
    for size in range(1, len(sides) + 1):
        for chosen in itertools.combinations(sides, size):
            total += (-1) ** (size + 1) * torch.stack(chosen).amin(0).prod().item()
    return total


def by_counting_cells(points, edge):
    """The same for points of a grid from 0 to `edge`: how many unit cells lie below one of them."""
    m = points.shape[1]
    cells = torch.cartesian_prod(*[torch.arange(edge)] * m).reshape(-1, m)
    return (cells[:, None] < points[None]).all(-1).any(-1).sum().item()


class TestHypervolume:
    @pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
    def test_of_one_point_is_the_product_of_its_sides(self, m):
        point, ref = 2 + rand(1, m), rand(m, seed=1)
        assert hypervolume(point, ref) == pytest.approx((point[0] - ref).prod().item(), rel=1e-14)

    @pytest.mark.parametrize("m", [1, 2, 3, 4])
    @pytest.mark.parametrize("seed", range(4))
    def test_is_the_volume_by_inclusion_and_exclusion(self, m, seed):
        points, ref = rand(7, m, seed=seed), torch.full((m,), 0.2, dtype=torch.float64)
        assert hypervolume(points, ref) == pytest.approx(by_inclusion_and_exclusion(points, ref), abs=1e-12)

    @pytest.mark.parametrize("m", [2, 3, 4])
    @pytest.mark.parametrize("seed", range(4))
    def test_counts_the_cells_of_a_grid_ties_and_all(self, m, seed):
        points = torch.randint(0, 7, (20, m), generator=torch.Generator().manual_seed(seed))
        assert hypervolume(points, [0] * m) == by_counting_cells(points, 7)

    @pytest.mark.parametrize("m", [2, 3, 4])
    def test_is_the_share_of_random_points_that_are_dominated(self, m):
        points, draws = rand(30, m), rand(200_000, m, seed=1)
        dominated = torch.zeros(len(draws), dtype=torch.bool)
        for point in points:
            dominated |= (draws <= point).all(1)
        share = dominated.double().mean().item()
        error = math.sqrt(share * (1 - share) / len(draws))
        assert abs(hypervolume(points, [0.0] * m) - share) < 5 * error

    @pytest.mark.parametrize("m", [2, 3, 4])
    def test_a_dominated_an_equal_and_a_hopeless_point_change_nothing(self, m):
        points, ref = 1 + rand(10, m), torch.ones(m)
        front = points[pareto_front(points)]
        below = torch.cat([torch.full((1, m - 1), 9.0), torch.ones(1, 1)], 1)  # on the reference in one objective
        extended = torch.cat([points, front[:1] - 0.01, front[-1:], below, below - 1])
        assert hypervolume(extended, ref) == hypervolume(points, ref) == hypervolume(front, ref)

    @pytest.mark.parametrize("m", [2, 3, 4])
    def test_a_point_that_no_other_dominates_adds_to_it(self, m):
        points = rand(10, m)
        better = torch.cat([points.amax(0)[:1] + 0.1, torch.full((m - 1,), 0.01)])[None]
        assert hypervolume(torch.cat([points, better]), [0.0] * m) > hypervolume(points, [0.0] * m)

    @pytest.mark.parametrize("m", [2, 3, 4])
    def test_neither_the_order_of_points_nor_of_objectives_nor_the_origin_matter(self, m):
        points, ref = rand(12, m), 0.1 * rand(m, seed=1)
        volume = hypervolume(points, ref)
        assert hypervolume(points.flip(0), ref) == volume
        assert hypervolume(points.roll(1, 1), ref.roll(1)) == pytest.approx(volume, rel=1e-12)
        assert hypervolume(points + 5, ref + 5) == pytest.approx(volume, rel=1e-12)
        assert hypervolume(3 * points, 3 * ref) == pytest.approx(3**m * volume, rel=1e-12)

    def test_of_no_point_above_the_reference_is_zero(self):
        assert hypervolume(rand(3, 2), [1.0, 0.0]) == 0.0
        assert hypervolume(torch.empty(0, 3), [0.0, 0.0, 0.0]) == 0.0

    def test_takes_lists_and_any_dtype(self):
        assert hypervolume([[2, 1], [1, 2]], [0, 0]) == 3.0
        assert hypervolume(torch.tensor([[2, 1], [1, 2]], dtype=torch.bfloat16), torch.zeros(2)) == 3.0

    @pytest.mark.parametrize(
        ("points", "ref", "message"),
        [
            ([1.0, 2.0], [0.0], "(n, m)"),
            ([[1.0, 2.0]], [0.0], "`ref`"),
            ([[1.0, 2.0]], 0.0, "`ref`"),
            ([[1.0, math.nan]], [0.0, 0.0], "NaN"),
            ([[1.0, math.inf]], [0.0, 0.0], "finite"),
            ([[1.0, 2.0]], [0.0, -math.inf], "finite"),
        ],
    )
    def test_bad_input_is_named(self, points, ref, message):
        with pytest.raises(ValueError, match=r"points|ref") as error:
            hypervolume(points, ref)
        assert message in str(error.value)


class TestParetoFront:
    @pytest.mark.parametrize("m", [1, 2, 3, 4])
    def test_is_what_no_other_point_dominates(self, m):
        points = torch.randint(0, 5, (40, m), generator=torch.Generator().manual_seed(m)).tolist()

        def dominated(p):
            return any(all(map(float.__ge__, q, p)) and q != p for q in floats)

        floats = [[float(value) for value in point] for point in points]
        assert pareto_front(points).tolist() == [not dominated(p) for p in floats]

    def test_equal_points_stay_together(self):
        assert pareto_front([[1, 2], [1, 2], [0, 2], [2, 0]]).tolist() == [True, True, False, True]

    def test_of_nothing_is_nothing(self):
        assert pareto_front(torch.empty(0, 2)).tolist() == []

    def test_nan_is_named(self):
        with pytest.raises(ValueError, match="NaN"):
            pareto_front([[0.0, math.nan]])
