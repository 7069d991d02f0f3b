# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""The equations of ELBO-T2IAlign: where in a picture a text-to-image model sees what.

Zhou et al.: "ELBO-T2IAlign: A Generic ELBO-Based Method for Calibrating Pixel-level Text-Image Alignment in Diffusion
Models", [arXiv 2506.09740](https://huggingface.co/papers/2506.09740). Equations are not numbered here.

`C` classes, maps of `h x w` positions. `L_c` is the sum of the diffusion losses of class `c`: high where the model
hardly sees it. Its attention map is then sharpened, so that a large thing does not swallow a small one.
"""

import torch
import torch.nn.functional as F


def temperatures(losses: torch.Tensor, strength: float) -> torch.Tensor:
    """
    `gamma_c = strength^m_c` with `m_c = (L_c - min L) / (max L - min L)`: 1 for the class that the model sees best,
    `strength` for that it sees worst. 1 for all where the losses are equal, and for a single class.

    Args:
        losses (`torch.Tensor` of shape `(C,)`): `L_c`.
        strength (`float`): Above 0; 1 leaves all maps as they are.
    """
    losses = losses.double()
    spread = losses.max() - losses.min()
    m = (losses - losses.min()) / spread if spread > 0 else torch.zeros_like(losses)
    return strength**m


def min_max(maps: torch.Tensor) -> torch.Tensor:
    """
    `(A - min A) / (max A - min A)` of every map; zeros for a map that is constant.

    Args:
        maps (`torch.Tensor` of shape `(C, ...)`): Maps.
    """
    flat = maps.flatten(1)
    low, high = (v.view(-1, *[1] * (maps.ndim - 1)) for v in (flat.min(1).values, flat.max(1).values))
    return torch.where(high > low, (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny), 0.0)


def calibrate(maps: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """
    `((A_c - min A_c) / (max A_c - min A_c))^gamma_c`.

    Args:
        maps (`torch.Tensor` of shape `(C, h, w)`): `A_c`.
        gamma (`torch.Tensor` of shape `(C,)`): Temperatures.
    """
    return min_max(maps) ** gamma.to(maps).view(-1, 1, 1)


def layer_weights(num_layers: int, centre: float, variance: float = 3.0) -> torch.Tensor:
    """
    Weights of the layers, a Gaussian over their index, `exp(-(i - centre)^2 / (2 variance))`, with sum 1.

    Args:
        num_layers (`int`): Layers in the order in which they run.
        centre (`float`): Index of the middle: of the U-Net's mid block, or of the stack.
        variance (`float`, *optional*, defaults to 3.0): In squared layers.
    """
    i = torch.arange(num_layers, dtype=torch.float64)
    weights = torch.exp(-((i - centre) ** 2) / (2 * variance))
    return weights / weights.sum()


def resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Maps at another size, bilinear.

    Args:
        maps (`torch.Tensor` of shape `(C, h, w)`): Maps.
        size (`tuple[int, int]`): Height and width.
    """
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def heat_maps(maps: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """
    `S A_c` with `S = S_2 S_1`: what a position attends to passes its share on, so that a map fills its object.

    Args:
        maps (`torch.Tensor` of shape `(C, h, w)`): Calibrated maps.
        first, second (`torch.Tensor` of shape `(h w, h w)`): `S_1` and `S_2`, rows of queries that sum to 1.
    """
    flat = maps.flatten(1).to(first)  # (C, hw)
    return (flat @ first.T @ second.T).view_as(maps)


def label_map(maps: torch.Tensor, threshold: float) -> torch.Tensor:
    """
    The class of every pixel: 0 where no map reaches the threshold, else 1 plus the index of the highest.

    Args:
        maps (`torch.Tensor` of shape `(C, H, W)`): Heat maps in [0, 1].
        threshold (`float`): In [0, 1].
    """
    value, index = maps.max(0)
    return torch.where(value >= threshold, index + 1, 0)


def phrase_weights(distances: torch.Tensor, strength: float) -> torch.Tensor:
    """
    Weights of phrases while generating, `strength^m_k` with `m_k` the distance of the phrase's prediction from that of
    the prompt, from 0 (least) to 1 (most), rounded to two digits: what the picture lacks counts more.

    Args:
        distances (`torch.Tensor` of shape `(K,)`): `mean (eps(prompt) - eps(phrase))^2`.
        strength (`float`): Weight of the phrase that is farthest off.
    """
    return (temperatures(distances, strength) * 100).round() / 100
