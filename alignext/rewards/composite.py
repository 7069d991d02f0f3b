# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Several rewards as one, and how to choose their weights from ratings."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from alignext.rewards.protocol import CheckedReward, as_prompts


class WeightedReward:
    """
    The weighted sum of rewards, `sum_k w_k r_k`. A member is called only for the samples in which its weight is not
    0, so that a member that is expensive, infinite or NaN there costs nothing and spoils nothing.

    Args:
        members (`Mapping[str, Callable]`): The rewards by name; with `input_type = "latent"`, of `latents`.
        weights (`Mapping[str, float]`, *optional*): Their weights; 1 each by default, 0 for names left out.
        weights_by_class (`Mapping[str, Mapping[str, float]]`, *optional*): Other weights for classes of prompts.
        prompt_class (`Callable[[str], str]`, *optional*): The class of a prompt; prompts of a class that has no
            weights of its own take `weights`.

    Raises:
        ValueError: For weights of unknown members, or one of the last two arguments without the other.
    """

    def __init__(
        self,
        members: Mapping[str, Callable[..., Any]],
        weights: Mapping[str, float] | None = None,
        weights_by_class: Mapping[str, Mapping[str, float]] | None = None,
        prompt_class: Callable[[str], str] | None = None,
    ) -> None:
        if (weights_by_class is None) != (prompt_class is None):
            raise ValueError("`weights_by_class` and `prompt_class` belong together: pass both, or none.")
        self.members, self.prompt_class = dict(members), prompt_class
        self.weights = dict.fromkeys(self.members, 1.0) if weights is None else dict(weights)
        self.weights_by_class = {name: dict(values) for name, values in (weights_by_class or {}).items()}
        for values in (self.weights, *self.weights_by_class.values()):
            if unknown := sorted(values.keys() - self.members.keys()):
                raise ValueError(f"Weights for {', '.join(unknown)}, and the members are {', '.join(self.members)}.")

    @property
    def differentiable(self) -> bool:
        """Whether all members that count are."""
        used = [self.weights, *self.weights_by_class.values()]
        names = [name for name in self.members if any(w.get(name) for w in used)]
        return all(getattr(self.members[name], "differentiable", False) for name in names)

    def scores(
        self, images: torch.Tensor, prompts: str | list[str] | None = None, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Each member's own rewards, `(n,)` by name; NaN for samples in which it does not count."""
        return {name: values for name, (values, _) in self._members(images, prompts, kwargs).items()}

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None = None, **kwargs: Any) -> torch.Tensor:
        total = torch.zeros(len(images), device=images.device)
        for values, weights in self._members(images, prompts, kwargs).values():
            # What a member cannot score stays last, also where its weight is negative.
            weighted = torch.where(values == -torch.inf, values, weights * values)
            total = total + torch.where(weights != 0, weighted, torch.zeros_like(values))
        return total

    def _members(self, images: torch.Tensor, prompts: str | list[str] | None, kwargs: dict[str, Any]):
        found, prompts = {}, as_prompts(prompts, len(images))
        for name, member in self.members.items():
            reward = CheckedReward.of(member)
            weights = self._weights(name, len(images), prompts).to(images.device)
            rows = weights.nonzero()[:, 0]
            if len(rows):
                given = images
                if reward.input_type == "latent":
                    if "latents" not in kwargs:
                        raise ValueError(f"Member {name!r} is a reward of latents: pass `latents`, as a search does.")
                    given = kwargs["latents"]
                texts = prompts and [prompts[i] for i in rows.tolist()]
                optional = {k: _of_rows(v, rows, len(images)) for k, v in kwargs.items()}
                values = reward(given[rows], texts, **optional)
                full = torch.full((len(images),), torch.nan, device=images.device)
                found[name] = full.index_put((rows,), values.to(full)), weights
        return found

    def _weights(self, name: str, n: int, prompts: list[str] | None) -> torch.Tensor:
        if self.prompt_class is None:
            return torch.full((n,), float(self.weights.get(name, 0)))
        if prompts is None:
            raise ValueError("`weights_by_class` needs the prompts: pass `prompt`, not embeddings alone.")
        rows = [self.weights_by_class.get(self.prompt_class(prompt), self.weights) for prompt in prompts]
        return torch.tensor([float(row.get(name, 0)) for row in rows])


def _of_rows(value: Any, rows: torch.Tensor, n: int) -> Any:
    """An argument that has an entry for each of `n` samples, for these alone; any other as it is."""
    if isinstance(value, torch.Tensor):
        return value[rows.to(value.device)] if value.ndim and len(value) == n else value
    if isinstance(value, list | tuple) and len(value) == n:
        return [value[i] for i in rows.tolist()]
    return value


class Calibration(NamedTuple):
    """
    What [`calibrate_weights`] found.

    Attributes:
        weights (`torch.Tensor` of shape `(k,)`): In [0, 1], the largest 1; only their ratios count.
        correlation (`float`): Pearson correlation of the weighted sum with the target.
        held_out (`float`, *optional*): The mean correlation on folds that the weights were not chosen on.
    """

    weights: torch.Tensor
    correlation: float
    held_out: float | None


def calibrate_weights(
    metrics: torch.Tensor,  # (N, k)
    target: torch.Tensor,  # (N,)
    step: float = 0.25,
    folds: int = 0,
) -> Calibration:
    r"""
    The weights on the grid `{0, step, .., 1}^k` whose sum of metrics correlates best (Pearson) with a target, such as
    ratings. With `C = cov(metrics)` and `b = cov(metrics, target)`:

        corr(w) = w.b / sqrt(w' C w  var(target))

    Weights with `w' C w < 1e-12` are left out. Of equal correlations the smallest sum wins, then the first in
    lexicographic order.

    Args:
        metrics (`torch.Tensor` of shape `(N, k)`): A row per rated sample.
        target (`torch.Tensor` of shape `(N,)`): The ratings.
        step (`float`, *optional*, defaults to 0.25): A divisor of 1.
        folds (`int`, *optional*, defaults to 0): With 2 or more, also how well weights chosen on the others do on each
            fold (row i is in fold `i % folds`), at most N / 2 for a correlation within each.

    Returns:
        [`Calibration`]

    Raises:
        ValueError: For shapes that do not match, a `step` that does not divide 1, too many folds, or data without
            variance.
    """
    metrics, target = metrics.double(), target.double()
    if metrics.ndim != 2 or target.shape != metrics.shape[:1] or len(metrics) < 2:
        raise ValueError(
            f"`metrics` must be (N, k) and `target` (N,) with N >= 2, received {tuple(metrics.shape)} and "
            f"{tuple(target.shape)}."
        )
    levels = round(1 / step) if step > 0 else 0
    if levels < 1 or abs(levels * step - 1) > 1e-9:
        raise ValueError(f"`step` must divide 1, received {step!r}.")
    if folds > len(target) // 2:
        raise ValueError(f"`folds` must leave two rows or more in each, {len(target)} in all, received {folds}.")
    held_out = None
    if folds > 1:
        fold = torch.arange(len(target)) % folds
        found = [(_best(metrics[fold != i], target[fold != i], levels)[0], fold == i) for i in range(folds)]
        parts = [torch.corrcoef(torch.stack([metrics[rows] @ w, target[rows]]))[0, 1] for w, rows in found]
        held_out = torch.stack(parts).mean().item()
    weights, correlation = _best(metrics, target, levels)
    return Calibration(weights / weights.max(), correlation, held_out)


def _best(metrics: torch.Tensor, target: torch.Tensor, levels: int) -> tuple[torch.Tensor, float]:
    k = metrics.shape[1]
    grid = torch.tensor(list(itertools.product(range(levels + 1), repeat=k))[1:], dtype=torch.float64) / levels
    x, y = metrics - metrics.mean(0), target - target.mean()
    C, b, variance = x.T @ x / (len(y) - 1), x.T @ y / (len(y) - 1), y.square().sum() / (len(y) - 1)
    spread = ((grid @ C) * grid).sum(1)
    correlation = torch.where(spread < 1e-12, torch.nan, (grid @ b) / (spread * variance).sqrt())
    if not correlation.isfinite().any():
        raise ValueError("`metrics` or `target` do not vary, so that nothing correlates.")
    top = correlation.nan_to_num(nan=-2.0).max()
    ties = (correlation >= top - 1e-12).nonzero()[:, 0]  # in lexicographic order
    chosen = ties[grid[ties].sum(1).argmin()]
    return grid[chosen], correlation[chosen].item()
