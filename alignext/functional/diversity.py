# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""
How unlike the pictures of one prompt are: distances, effective number, tones, near-duplicates.

The Vendi score is of "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", Friedman and Dieng, arXiv
2210.02410; the perceptual hash is the sign of the lowest frequencies of the grey picture. All take `m` pictures of
each of `P` prompts.
"""

import math

import torch
import torch.nn.functional as F


def pairwise_distance(e: torch.Tensor) -> torch.Tensor:
    """
    `1 - cos`, the mean over all pairs of a prompt's pictures: 0 for copies.

    Args:
        e (`torch.Tensor` of shape `(P, m, d)`): Features, `m >= 2`; they are normalised here.

    Returns:
        `torch.Tensor` of shape `(P,)`, in [0, 2].
    """
    e = F.normalize(e, dim=-1)
    m = e.shape[1]
    # The sum over all ordered pairs is the square of the sum, less the m squares.
    return 1 - (e.sum(1).square().sum(-1) - e.square().sum((1, 2))) / (m * (m - 1))


def vendi_score(e: torch.Tensor) -> torch.Tensor:
    """
    `exp(-sum_i l_i log l_i)` of the eigenvalues `l` of `K / m`, with `K` the cosines: the effective number of
    pictures, 1 for copies, `m` for orthogonal features.

    Args:
        e (`torch.Tensor` of shape `(P, m, d)`): Features; they are normalised here.

    Returns:
        `torch.Tensor` of shape `(P,)`, in [1, m].
    """
    e = F.normalize(e.double(), dim=-1)
    values = torch.linalg.eigvalsh(e @ e.mT / e.shape[1]).clamp(min=0)
    return torch.special.entr(values).sum(-1).exp().to(torch.get_default_dtype())


TONES = ("brightness", "contrast", "saturation", "warmth")


def tones(images: torch.Tensor) -> torch.Tensor:
    """
    Brightness (mean luma), RMS contrast (standard deviation of luma), saturation (mean of largest less least channel)
    and warmth (mean of red less blue).

    Args:
        images (`torch.Tensor` of shape `(..., 3, H, W)`): In [0, 1].

    Returns:
        `torch.Tensor` of shape `(..., 4)`.
    """
    luma = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3)
    saturation = (images.amax(-3) - images.amin(-3)).mean((-2, -1))
    warmth = (images[..., 0, :, :] - images[..., 2, :, :]).mean((-2, -1))
    return torch.stack([luma.mean((-2, -1)), luma.std((-2, -1), correction=0), saturation, warmth], -1)


def tonal_variance(images: torch.Tensor) -> torch.Tensor:
    """
    The standard deviation of each of [`tones`] across the pictures of a prompt: 0 for copies.

    Args:
        images (`torch.Tensor` of shape `(P, m, 3, H, W)`): In [0, 1], `m >= 2`.

    Returns:
        `torch.Tensor` of shape `(P, 4)`.
    """
    return tones(images).std(1)


def perceptual_hash(images: torch.Tensor) -> torch.Tensor:
    """
    64 bits of a picture: its grey values at 32 x 32, the 8 x 8 lowest frequencies of their cosine transform, and
    whether each is above the median of those without the constant.

    Args:
        images (`torch.Tensor` of shape `(..., 3, H, W)`): In [0, 1].

    Returns:
        `torch.Tensor` of shape `(..., 64)`, bool.
    """
    luma = (images.double() * images.new_tensor([0.299, 0.587, 0.114]).double().view(3, 1, 1)).sum(-3)
    small = F.interpolate(luma.reshape(-1, 1, *luma.shape[-2:]), size=(32, 32), mode="bilinear", antialias=True)[:, 0]
    k, x = torch.arange(8, dtype=torch.float64), torch.arange(32, dtype=torch.float64)
    basis = torch.cos(math.pi * (x + 0.5) * k[:, None] / 32).to(small.device)
    # Rounded: where the picture is flat, what is left of the sums must not decide.
    low = (basis @ small @ basis.T).flatten(1).mul(1e6).round()
    return (low > low[:, 1:].median(1, keepdim=True).values).view(*images.shape[:-3], 64)


def duplicate_rate(hashes: torch.Tensor, max_bits: int = 4) -> torch.Tensor:
    """
    The share of pairs whose hashes differ in `max_bits` bits or fewer: 1 for copies.

    Args:
        hashes (`torch.Tensor` of shape `(P, m, 64)`): Of [`perceptual_hash`], `m >= 2`.
        max_bits (`int`, *optional*, defaults to 4): Of 64.

    Returns:
        `torch.Tensor` of shape `(P,)`, in [0, 1].
    """
    m = hashes.shape[1]
    i, j = torch.triu_indices(m, m, 1)
    return ((hashes[:, i] != hashes[:, j]).sum(-1) <= max_bits).double().mean(-1).to(torch.get_default_dtype())


def bootstrap(
    values: torch.Tensor, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """
    Mean and percentile interval of a bootstrap over the values.

    Args:
        values (`torch.Tensor` of shape `(P,)`): One for each prompt.
        draws (`int`, *optional*, defaults to 2000): Resamples.
        level (`float`, *optional*, defaults to 0.95): Of the interval.
        seed (`int`, *optional*, defaults to 0): Of the resamples.

    Returns:
        `tuple[float, float, float]`: Mean, lower and upper end.
    """
    values = values.double().cpu()
    rows = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(seed))
    ends = values[rows].mean(1).quantile(values.new_tensor([(1 - level) / 2, (1 + level) / 2]))
    return values.mean().item(), *ends.tolist()
