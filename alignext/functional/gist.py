# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""
Which training rows serve a target task, by the gradients of both.

GIST: "GIST: Targeted Data Selection for Instruction Tuning via Coupled Optimization Geometry", Min, Huang, Wan, Chen,
[arXiv 2602.18584](https://huggingface.co/papers/2602.18584). LESS: "LESS: Selecting Influential Data for Targeted
Instruction Tuning", Xia et al., [arXiv 2402.04333](https://huggingface.co/papers/2402.04333), ICML 2024. Equations are
not numbered here.

Notation: `g` is the gradient of the mean token loss of one row, `D` numbers; `G` `(N, D)` are those of the target's
rows, `K = G G^T = U S^2 U^T` their Gram matrix.
"""

import torch


def subspace(gram: torch.Tensor, rank: int | None = None, share: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The largest singular values of `G` and their left vectors, from `K`: the `D`-wide matrix is never decomposed.
    Directions below a millionth of the largest eigenvalue are left out, as duplicates among the target's rows make
    them.

    Args:
        gram (`torch.Tensor` of shape `(N, N)`): `K`.
        rank (`int`, *optional*): Directions at most; if not given, the fewest with `share` of the trace, at least 2.
        share (`float`, *optional*, defaults to 0.95): See `rank`.

    Returns:
        `torch.Tensor` of shape `(N, k)`, `U`, and `torch.Tensor` of shape `(k,)`, `S`; both float64, descending.

    Raises:
        ValueError: If `K` is zero or not finite, or `rank` is not positive.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"`rank` must be 1 or more, received {rank}.")
    if not gram.isfinite().all() or not gram.any():
        raise ValueError("`gram` must be finite and not zero: the target's gradients are all zero, or not finite.")
    values, vectors = torch.linalg.eigh(gram.double())
    values, vectors = values.flip(0), vectors.flip(1)
    usable = int((values > 1e-6 * values[0]).sum())
    if rank is None:
        covered = (values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()) < share
        rank = max(2, int(covered.sum()) + 1)
    k = min(rank, usable)
    return vectors[:, :k], values[:k].sqrt()


def basis(gradients: torch.Tensor, u: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """
    `P = G^T U S^-1`, whose columns are the leading right singular vectors of `G`. Also for some columns of `G`, which
    gives those rows of `P`.

    Args:
        gradients (`torch.Tensor` of shape `(N, D)`): `G`.
        u (`torch.Tensor` of shape `(N, k)`), s (`torch.Tensor` of shape `(k,)`): Of [`subspace`].

    Returns:
        `torch.Tensor` of shape `(D, k)`, in the type of `gradients`.
    """
    return gradients.T @ (u / s).to(gradients)


def group_means(features: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """
    The mean of each group.

    Args:
        features (`torch.Tensor` of shape `(N, k)`): Of the target's rows.
        groups (`torch.Tensor` of shape `(N,)`): Their groups, 0 to `M - 1`, each with a row.

    Returns:
        `torch.Tensor` of shape `(M, k)`.
    """
    count = int(groups.max()) + 1
    sums = features.new_zeros(count, features.shape[1]).index_add(0, groups, features)
    return sums / torch.bincount(groups, minlength=count)[:, None].to(features)


def gist_scores(features: torch.Tensor, targets: torch.Tensor, norms: torch.Tensor | None = None) -> torch.Tensor:
    """
    `max_m cos(z, t_m)`, the target's rows averaged in each group before the cosine.

    Args:
        features (`torch.Tensor` of shape `(n, k)`): `z = g P` of candidates.
        targets (`torch.Tensor` of shape `(M, k)`): `t_m`, see [`group_means`].
        norms (`torch.Tensor` of shape `(n,)`, *optional*): `|g|`. Divided by these instead of `|z|`, the score is the
            cosine in the whole space, and a row that hardly has a part in the subspace scores low.

    Returns:
        `torch.Tensor` of shape `(n,)`; NaN for a gradient of zero.
    """
    length = features.norm(dim=1) if norms is None else norms.to(features)
    return ((features @ torch.nn.functional.normalize(targets, dim=1).T) / length[:, None]).max(1).values


def adam_direction(
    g: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.Tensor:
    """
    LESS's feature of a candidate: the step that Adam would take with its gradient,
    `(b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + eps)`, without bias correction.

    Args:
        g (`torch.Tensor` of shape `(B, D)`): Gradients.
        first, second (`torch.Tensor` of shape `(D,)`): Adam's `m` and `v`.
        beta1, beta2, eps (`float`, *optional*): Adam's.
    """
    return (beta1 * first + (1 - beta1) * g) / (beta2 * second + (1 - beta2) * g**2 + eps).sqrt()


def count_sketch(x: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """
    A random projection that keeps inner products on average: each number is added, with a random sign, to one of
    `size` sums. What a matrix of random signs does in `D * size` products takes `D` sums here.

    Args:
        x (`torch.Tensor` of shape `(B, D)`): Rows.
        size (`int`): Width of the result.
        seed (`int`): Of buckets and signs.

    Returns:
        `torch.Tensor` of shape `(B, size)`.
    """
    generator = torch.Generator().manual_seed(seed)
    buckets = torch.randint(size, (x.shape[1],), generator=generator).to(x.device)
    signs = (torch.randint(2, (x.shape[1],), generator=generator) * 2 - 1).to(x)
    return x.new_zeros(len(x), size).index_add(1, buckets, x * signs)


def less_scores(features: torch.Tensor, targets: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """
    `max_m mean_v cos(f, g_v)` over the rows `v` of each group: the mean of cosines, not the cosine of the mean.

    Args:
        features (`torch.Tensor` of shape `(n, k)`): Of candidates.
        targets (`torch.Tensor` of shape `(N, k)`): Of the target's rows.
        groups (`torch.Tensor` of shape `(N,)`): Their groups.
    """
    cosines = torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(targets, dim=1).T
    return group_means(cosines.T, groups).T.max(1).values
