# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Which layer and how strong: a table of settings, scored by the user's own measure."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from alignext.steering.vector import SteeringVector


class Setting(NamedTuple):
    """
    A row of the table.

    Attributes:
        layer (`int`): Decoder layer; -1 for the model without steering.
        method (`str`): Of steering.
        alpha (`float`): Strength.
        trait (`float`): How much of the trait the scorer saw.
        coherence (`float`): How coherent it found the model.
    """

    layer: int
    method: str
    alpha: float
    trait: float
    coherence: float


def sweep_steering(
    model: Any,
    vectors: SteeringVector | Sequence[SteeringVector],
    score: Callable[[Any], tuple[float, float]],
    *,
    methods: Sequence[str] = ("stmp",),
    alphas: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
    keep_coherence: float = 0.9,
    progress: bool = True,
    **kwargs: Any,
) -> tuple[list[Setting], Setting]:
    """
    Score the model under every combination of vector, method and strength. A layer is not chosen by how well its
    probe separates answers: almost every layer's does.

    Args:
        model (`PreTrainedModel`): The model.
        vectors ([`SteeringVector`] or a sequence of them): One per layer, as [`fit_steering`] returns them.
        score (`Callable`): `score(model)` returns trait and coherence, larger is better, of the model as it is then
            steered. It is called once without steering, too.
        methods (`Sequence[str]`, *optional*, defaults to `("stmp",)`): See [`SteeringVector.step`].
        alphas (`Sequence[float]`, *optional*): Strengths.
        keep_coherence (`float`, *optional*, defaults to 0.9): Share of the plain model's coherence that a setting must
            keep to be chosen; in [0, 1].
        progress (`bool`, *optional*, defaults to `True`): Show a bar.
        **kwargs: Further arguments of [`SteeringVector.apply`].

    Returns:
        `tuple[list[Setting], Setting]`: All rows, the plain model first, and the chosen one: the largest trait among
        those that keep their coherence. The plain model is chosen where none does better.

    Raises:
        ValueError: If there is nothing to try, or `keep_coherence` is out of range.
    """
    vectors = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
    grid = list(itertools.product(vectors, methods, alphas))
    if not grid:
        raise ValueError("`vectors`, `methods` and `alphas` must each have at least one entry.")
    if not 0 <= keep_coherence <= 1:
        raise ValueError(f"`keep_coherence` must be in [0, 1], received {keep_coherence}.")
    for vector, method, alpha in grid:
        vector.check(method, alpha)  # before the first of many runs
    rows = [Setting(-1, "none", 0.0, *score(model))]
    for vector, method, alpha in tqdm(grid, desc="Trying settings", disable=not progress):
        with vector.apply(model, method, alpha, **kwargs):
            rows.append(Setting(vector.layer, method, alpha, *score(model)))
    coherent = [row for row in rows if row.coherence >= keep_coherence * rows[0].coherence]
    return rows, max(coherent, key=lambda row: row.trait)
