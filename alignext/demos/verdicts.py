# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sentences that say who won, and by how much against the error, made of what was measured."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev


def paired(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """
    The mean difference of values that belong together, and its standard error.

    Args:
        values (`Sequence[float]`): One per picture, prompt or set; at least two.
        others (`Sequence[float]`): What the other method has for the same.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else float("inf")
    return fmean(differences), error


def shares(hits: Sequence[bool], others: Sequence[bool]) -> tuple[float, float]:
    """
    The difference of two shares, and its standard error; a share of 0 or 1 has one, too.

    Args:
        hits (`Sequence[bool]`): Of one method.
        others (`Sequence[bool]`): Of the other, of any length.
    """
    variance = 0.0
    for each in (hits, others):
        share = (sum(each) + 1) / (len(each) + 2)
        variance += share * (1 - share) / len(each)
    return sum(hits) / len(hits) - sum(others) / len(others), sqrt(variance)


def moved(what: str, found: tuple[float, float], of: str) -> str:
    """
    How far from nothing a mean is, in terms of its error.

    Args:
        what (`str`): What was measured, a distance.
        found (`tuple[float, float]`): Its mean and standard error.
        of (`str`): What the error is over.
    """
    mean, error = found
    told = "more than" if mean > 2 * error else "no more than"
    return f"{what} is {mean:.3f}, {told} twice its standard error of {error:.3f} over {of}."


def verdict(what: str, name: str, other: str, found: tuple[float, float], of: str) -> str:
    """
    Who is ahead, if the difference is more than twice its error.

    Args:
        what (`str`): What was measured, larger being more of what was wanted.
        name (`str`): One method.
        other (`str`): The other one.
        found (`tuple[float, float]`): The difference of the first to the second, and its standard error.
        of (`str`): What the error is over, such as `"4 pictures"`.
    """
    difference, error = found
    if abs(difference) <= 2 * error:
        return (
            f"In {what}, {name} and {other} cannot be told apart here: {difference:+.3f}, with a standard error of "
            f"{error:.3f} over {of}."
        )
    first, second = (name, other) if difference > 0 else (other, name)
    return (
        f"In {what}, {first} is ahead of {second} by {abs(difference):.3f}, with a standard error of {error:.3f} over "
        f"{of}."
    )
