# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Comparing models under several objectives at once: the Pareto front and the hypervolume it dominates.

A point is the scores of one model, one number per objective, larger is better throughout (negate what should be
small). Notation: `n` points, `m` objectives.
"""

from collections.abc import Sequence

import torch


Points = torch.Tensor | Sequence[Sequence[float]]


def pareto_front(points: Points) -> torch.Tensor:
    """
    Which points no other point dominates. `q` dominates `p` if `q >= p` in every objective and `q > p` in one; equal
    points do not dominate each other.

    Args:
        points (`torch.Tensor` of shape `(n, m)` or nested sequence): Larger is better in every objective.

    Returns:
        `torch.Tensor` of shape `(n,)`, bool: `points[pareto_front(points)]` are the points of the front.

    Raises:
        ValueError: `points` has another shape or holds NaN.
    """
    x = _as_points(points)
    at_least = (x[:, None] >= x[None]).all(-1)  # (q, p)
    return ~(at_least & ~at_least.T).any(0)


def hypervolume(points: Points, ref: torch.Tensor | Sequence[float]) -> float:
    r"""
    The volume that the points dominate above a reference point, exactly:

        volume of the union over points p of the boxes [ref_1, p_1] x ... x [ref_m, p_m]

    A single point gives the product of its sides `p_j - ref_j`; a point that is not above `ref` in every objective
    gives nothing, nor does a dominated one. Computed by slicing along one objective after the other, in
    `O(n^(m-1) log n)` for `m >= 2`: meant for two to four objectives.

    Args:
        points (`torch.Tensor` of shape `(n, m)` or nested sequence): Larger is better in every objective.
        ref (`torch.Tensor` of shape `(m,)` or sequence):
            The worst scores that count. Volumes are comparable only if they share it.

    Returns:
        `float`, at least 0, in float64 arithmetic.

    Raises:
        ValueError: `points` or `ref` has another shape or holds NaN or infinities.
    """
    x, origin = _as_points(points), torch.as_tensor(ref, dtype=torch.float64).cpu()
    if origin.shape != x.shape[1:]:
        raise ValueError(
            f"`ref` has the shape {tuple(origin.shape)}, but `points` of shape {tuple(x.shape)} needs "
            f"({x.shape[1]},), one number per objective."
        )
    if not (x.isfinite().all() and origin.isfinite().all()):
        raise ValueError("`points` and `ref` must be finite: an infinite side has no volume to compare.")
    sides = x - origin
    sides = sides[(sides > 0).all(1)]
    return _dominated_volume(sides[pareto_front(sides)].tolist()) if len(sides) else 0.0


def _dominated_volume(sides: list[list[float]]) -> float:
    """Volume of the union of the boxes `[0, sides_i]`, all of them positive."""
    if len(sides[0]) == 1:
        return max(side for (side,) in sides)
    if len(sides[0]) == 2:
        return _dominated_area(sides)
    # Slices between neighbouring heights along the last objective: each is as wide as what all points above dominate.
    by_height = sorted(sides, key=lambda side: side[-1], reverse=True)
    floors = [side[-1] for side in by_height[1:]] + [0.0]
    volume = 0.0
    for i, (side, floor) in enumerate(zip(by_height, floors, strict=True)):
        if side[-1] > floor:
            volume += (side[-1] - floor) * _dominated_volume([above[:-1] for above in by_height[: i + 1]])
    return volume


def _dominated_area(sides: list[list[float]]) -> float:
    """Two objectives: a staircase, from the widest step to the highest."""
    area = height = 0.0
    for width, side in sorted(sides, reverse=True):
        if side > height:
            area += width * (side - height)
            height = side
    return area


def _as_points(points: Points) -> torch.Tensor:
    x = torch.as_tensor(points, dtype=torch.float64).cpu()
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"`points` has the shape {tuple(x.shape)}, but must be (n, m): one row per point.")
    if x.isnan().any():
        raise ValueError("`points` holds NaN, which is neither better nor worse than anything.")
    return x
