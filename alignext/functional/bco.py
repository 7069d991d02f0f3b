# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The equations of BCO (Jung, Han, Nam, On: "Binary Classifier Optimization for Large Language Model Alignment",
[arXiv 2404.04656](https://huggingface.co/papers/2404.04656), ACL 2025).

Notation: `r = beta * (log pi(y|x) - log pi_ref(y|x))` the implicit reward of a completion, `delta` the reward shift,
`+` the desirable and `-` the undesirable class. Underlying distribution matching (UDM) is from the first version of
the paper. The shift is its Eq. 7; the other equations are not numbered here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from alignext.functional.logistic import fit_logistic


def bco_loss(
    rewards: torch.Tensor,  # (B,)
    labels: torch.Tensor,  # (B,)
    shift: float | torch.Tensor = 0.0,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    density_ratio: torch.Tensor | None = None,  # (B,)
) -> torch.Tensor:
    r"""
    The loss of each completion, a binary classifier whose logit is the shifted reward:

        -log sigmoid(r - delta)     for desirable completions
        -log sigmoid(-(r - delta))  for undesirable ones

    times the weight of its class. The paper's loss is the mean over all rows.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): Implicit rewards.
        labels (`torch.Tensor` of shape `(B,)`): True or 1 for desirable completions.
        shift (`float` or `torch.Tensor`, *optional*, defaults to 0.0): `delta`; no gradient flows into it.
        desirable_weight (`float`, *optional*, defaults to 1.0): Factor of the desirable rows.
        undesirable_weight (`float`, *optional*, defaults to 1.0): Factor of the undesirable rows.
        density_ratio (`torch.Tensor` of shape `(B,)`, *optional*):
            `p(desirable|x) / p(undesirable|x)` of the prompts, a factor of the undesirable rows only.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    desirable = labels.bool()
    weights = torch.where(desirable, desirable_weight, undesirable_weight)
    if density_ratio is not None:
        weights = torch.where(desirable, weights, weights * density_ratio)
    if isinstance(shift, torch.Tensor):
        shift = shift.detach()
    logits = rewards - shift
    return weights * F.softplus(torch.where(desirable, -logits, logits))


def reward_sums(rewards: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    The sums behind the shift: `(sum of r over -, sum of r over +, number of -, number of +)`. Sums of several batches
    or processes add up to those of all their rows.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): Implicit rewards; detached here.
        labels (`torch.Tensor` of shape `(B,)`): True or 1 for desirable completions.

    Returns:
        `torch.Tensor` of shape `(4,)`, float64 (float32 on MPS, which has no other).
    """
    dtype = torch.float32 if rewards.device.type == "mps" else torch.float64
    desirable, rewards = labels.to(dtype), rewards.detach().to(dtype)
    return torch.stack(
        [(rewards * (1 - desirable)).sum(), (rewards * desirable).sum(), (1 - desirable).sum(), desirable.sum()]
    )


def update_sums(sums: torch.Tensor, new: torch.Tensor, decay: float = 1.0) -> torch.Tensor:
    """
    Exponential moving sums. Sums and counts decay together, so that the mean of a class that is absent from `new`
    stays what it was, and the first rows ever seen have their plain mean (no bias towards zero).

    Args:
        sums (`torch.Tensor` of shape `(4,)`): As from [`reward_sums`][alignext.functional.bco.reward_sums].
        new (`torch.Tensor` of shape `(4,)`): Of the latest rows.
        decay (`float`, *optional*, defaults to 1.0): Factor of the past; 1 forgets nothing.

    Returns:
        `torch.Tensor` of shape `(4,)`.
    """
    return decay * sums + new


def class_mean_shift(sums: torch.Tensor) -> float:
    """
    The shift of the paper (its Eq. 7), the average of the two class means: `delta = (E_+[r] + E_-[r]) / 2`. With one
    class seen it is the mean of that class, with none 0.

    Args:
        sums (`torch.Tensor` of shape `(4,)`): As from [`reward_sums`][alignext.functional.bco.reward_sums].

    Returns:
        `float`.
    """
    total, count = sums.tolist()[:2], sums.tolist()[2:]
    means = [s / n for s, n in zip(total, count, strict=True) if n > 0]
    return sum(means) / len(means) if means else 0.0


def pooled_mean_shift(sums: torch.Tensor) -> float:
    """
    The shift of the implementation that TRL had: the mean of all rewards, whatever their class. On unbalanced data it
    sits on top of the larger class.

    Args:
        sums (`torch.Tensor` of shape `(4,)`): As from [`reward_sums`][alignext.functional.bco.reward_sums].

    Returns:
        `float`.
    """
    minus, plus, n_minus, n_plus = sums.tolist()
    count = n_minus + n_plus
    return (minus + plus) / count if count > 0 else 0.0


# Underlying distribution matching


@dataclass(frozen=True)
class DensityRatio:
    """
    A logistic classifier of prompts, whose odds are the density ratio `p(x|+) / p(x|-)`: both classes weigh the same
    in its fit, however many rows they have.

    Attributes:
        weight (`torch.Tensor` of shape `(d,)`): Of the scaled embedding, float64.
        bias (`float`): The intercept.
        center (`torch.Tensor` of shape `(d,)`): Subtracted from an embedding first.
        scale (`float`): Divides it then.
        regularization (`float`): `C`, the inverse strength of the penalty, given or chosen.
        auc (`float`): Area under the ROC curve on held-out prompts: 0.5 where the classes have the same prompts.
    """

    weight: torch.Tensor
    bias: float
    center: torch.Tensor
    scale: float
    regularization: float
    auc: float

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Log density ratios of shape `(n,)`, float64, of embeddings of shape `(n, d)`."""
        return (embeddings.to(self.weight) - self.center) / self.scale @ self.weight + self.bias

    def weights(self, embeddings: torch.Tensor, minimum: float = 0.5, maximum: float = 10.0) -> torch.Tensor:
        """Density ratios of shape `(n,)`, float64, clipped to `[minimum, maximum]`."""
        return self.logits(embeddings).exp().clamp(minimum, maximum)


def fit_density_ratio(
    embeddings: torch.Tensor,  # (n, d)
    labels: torch.Tensor,  # (n,)
    *,
    regularization: float | None = None,
    groups: torch.Tensor | None = None,  # (n,)
    folds: int = 5,
    generator: torch.Generator | None = None,
) -> DensityRatio:
    r"""
    Fit the classifier that tells prompts of desirable from prompts of undesirable completions. It minimises

        sum_i s_i * BCE(x_i w + b, y_i) + |w|^2 / (2 C),  s_i = n / (2 * size of the class of i)

    in float64. Without a given `C`, embeddings are centred and divided by their mean norm, and `C` is the strongest
    penalty of 1e-3, 1e-2, ... 1e3 whose held-out loss is within one standard error of the best. Where both classes
    have the same prompts that gives weights of about 1, which a fixed `C` on raw embeddings does not.

    Args:
        embeddings (`torch.Tensor` of shape `(n, d)`): Of the prompts.
        labels (`torch.Tensor` of shape `(n,)`): True or 1 for prompts of desirable completions.
        regularization (`float`, *optional*): `C` on the raw embeddings; cross-validated if not given.
        groups (`torch.Tensor` of shape `(n,)`, *optional*):
            Rows of one group are held out together; give the same number to rows of the same prompt.
        folds (`int`, *optional*, defaults to 5): Parts of the cross-validation; fewer where groups are fewer.
        generator (`torch.Generator`, *optional*): Draws the folds; the seed 0 if not given.

    Returns:
        [`DensityRatio`][alignext.functional.bco.DensityRatio].

    Raises:
        ValueError: A class has fewer than two rows.
    """
    x, y = embeddings.double().cpu(), labels.double().cpu()
    n, sizes = len(y), (int((y == 0).sum()), int((y == 1).sum()))
    if min(sizes) < 2:
        raise ValueError(
            f"`labels` has {sizes[0]} undesirable and {sizes[1]} desirable rows, but a density ratio needs at least "
            "two of each."
        )
    center, scale = torch.zeros_like(x[0]), 1.0
    if regularization is None:
        center = x.mean(0)
        scale = float((x - center).norm(dim=1).mean()) or 1.0
    x = (x - center) / scale
    candidates = [10.0**k for k in range(-3, 4)] if regularization is None else [float(regularization)]
    s = torch.where(y == 1, n / (2 * sizes[1]), n / (2 * sizes[0]))

    held_out = torch.zeros(len(candidates), n, dtype=torch.float64)
    fold = _folds(y, groups, folds, generator)
    for k in fold.unique():
        rest = fold != k
        w = None
        for row, c in zip(held_out, candidates, strict=True):
            w, b = fit_logistic(x[rest], y[rest], c, s[rest], start=w)
            row[~rest] = x[~rest] @ w + b
    losses = s * F.binary_cross_entropy_with_logits(held_out, y.expand_as(held_out), reduction="none")
    excess = losses - losses[losses.mean(1).argmin()]
    chosen = int((excess.mean(1) <= excess.std(1) / n**0.5).nonzero()[0])  # the strongest penalty comes first
    w, b = fit_logistic(x, y, candidates[chosen], s)
    return DensityRatio(w, b, center, scale, candidates[chosen], _auc(held_out[chosen], y))


def _folds(
    y: torch.Tensor, groups: torch.Tensor | None, folds: int, generator: torch.Generator | None
) -> torch.Tensor:
    """The fold of each row. Groups are dealt in the order of their share of desirable rows, at random within it."""
    groups = torch.arange(len(y)) if groups is None else groups.unique(return_inverse=True)[1].cpu()
    counts = groups.bincount()
    share = torch.zeros(len(counts), dtype=y.dtype).index_add_(0, groups, y) / counts
    shuffled = torch.randperm(len(counts), generator=generator or torch.Generator().manual_seed(0))
    dealt = shuffled[share[shuffled].argsort(stable=True)]
    fold = torch.empty_like(dealt)
    fold[dealt] = torch.arange(len(dealt)) % folds
    return fold[groups]


def _auc(scores: torch.Tensor, y: torch.Tensor) -> float:
    """The chance that a desirable row scores above an undesirable one; a tie counts half."""
    plus, minus = scores[y == 1], scores[y == 0].sort().values
    below = torch.searchsorted(minus, plus) + torch.searchsorted(minus, plus, right=True)
    return float(below.double().mean() / (2 * len(minus)))
