# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The rows that serve a target best."""

import math

from datasets import Dataset
from transformers.utils import logging

from alignext.checks import check_counts
from alignext.data.core import chosen_rows, groups_of, numbers, share_of


logger = logging.get_logger(__name__)  # one that works without a trainer, too


def select_for_task(
    dataset: Dataset,
    column: str = "gist",
    *,
    keep: float | None = None,
    top: int | None = None,
    by: str | None = None,
) -> Dataset:
    """
    The rows with the largest scores, the best first. Of equal ones, the one with more energy comes first, then the one
    that comes first in the dataset. Rows without a score are left out, and counted in the log.

    Args:
        dataset (`Dataset`): Of [`add_gradient_scores`].
        column (`str`, *optional*, defaults to `"gist"`): The score.
        keep (`float`, *optional*): Share that is kept, in (0, 1]; the papers have 0.05.
        top (`int`, *optional*): Number of rows. One of the two is given.
        by (`str`, *optional*): A column; the share or number is taken of each of its values.

    Raises:
        ValueError: If not exactly one of the two is given, it is out of range, or no row is left.
    """
    if (keep is None) == (top is None):
        raise ValueError(f"One of `keep` and `top` must be given, received keep={keep} and top={top}.")
    if top is not None:
        check_counts(top=top)
    scores = numbers(dataset, column)
    share = 1.0 if keep is None else share_of(keep, "keep")
    groups = groups_of(dataset, by)
    energy = numbers(dataset, "gist_energy") if "gist_energy" in dataset.column_names else [0.0] * len(scores)
    # Ranks instead of scores, so that equal ones are ordered by their energy.
    order = sorted((i for i, x in enumerate(scores) if math.isfinite(x)), key=lambda i: (-scores[i], -energy[i], i))
    ranks = [math.nan] * len(scores)
    for place, i in enumerate(order):
        ranks[i] = float(place)

    def count(n: int) -> int:
        return math.ceil(round(share * n, 9)) if top is None else top

    kept = chosen_rows(ranks, groups, count, largest=False)
    if len(order) < len(scores):
        logger.warning("%d of %d rows have no score and are left out.", len(scores) - len(order), len(scores))
    if not kept:
        raise ValueError(f"No row is left of {len(dataset)}: none has a score in {column!r}.")
    return dataset.select(kept)
