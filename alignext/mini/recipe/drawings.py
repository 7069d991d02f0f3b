# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The drawings that models are trained on, and what happens to them on the way."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from alignext.mini.recipe import render


def pictures(*splits: str) -> tuple[torch.Tensor, list[dict]]:
    """Pictures of these splits, uint8 (N, 3, 64, 64), and their rows."""
    images, rows = render.load(*splits)
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), rows


def augment(
    images: torch.Tensor, rng: torch.Generator, shift: float = 0.06, scale: float = 0.1, angle: float = 0.0
) -> torch.Tensor:
    """Random flips and small affine motions of pictures (B, 3, H, W) in [0, 1]; what moves in is white."""
    n = len(images)
    uniform = torch.rand(5, n, generator=rng) * 2 - 1
    zoom, turn = torch.exp(uniform[0] * scale), uniform[1] * angle * math.pi / 180
    flip = torch.where(uniform[2] < 0, -1.0, 1.0)
    across = [flip * zoom * turn.cos(), -zoom * turn.sin(), uniform[3] * 2 * shift]
    down = [flip * zoom * turn.sin(), zoom * turn.cos(), uniform[4] * 2 * shift]
    theta = torch.stack([*across, *down], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return 1 - F.grid_sample(1 - images, grid, align_corners=False)


def nudge(images: torch.Tensor, rng: torch.Generator, most: int) -> torch.Tensor:
    """Random flips and shifts by whole pixels, `most` at most: unlike [`augment`], no edge gets softer."""
    h, w = images.shape[2:]
    wide = F.pad(images, (most,) * 4, value=1.0)
    places = torch.randint(2 * most + 1, (len(images), 2), generator=rng).tolist()
    flips = (torch.rand(len(images), generator=rng) < 0.5).tolist()
    moved = [x[:, i : i + h, j : j + w] for x, (i, j) in zip(wide, places, strict=True)]
    return torch.stack([x.flip(2) if flip else x for x, flip in zip(moved, flips, strict=True)])


def corrupt(images: torch.Tensor, rng: torch.Generator, colour: float) -> torch.Tensor:
    """What a generated picture may suffer, in half of the pictures each: other colours, greyscale, blur, noise."""

    def some(p: float) -> torch.Tensor:
        return (torch.rand(len(images), 1, 1, 1, generator=rng) < p).float()

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(len(images), *shape, generator=rng) * 2 - 1

    tinted = (images - 0.5) * (1 + 0.4 * uniform(3, 1, 1)) + 0.5 + 0.15 * uniform(3, 1, 1)
    images = torch.lerp(images, tinted, some(0.5 * colour))
    images = torch.lerp(images, images.mean(dim=1, keepdim=True).expand_as(images), some(0.3 * colour))
    size = int(torch.randint(20, 49, (), generator=rng))
    soft = F.interpolate(F.interpolate(images, size=size, mode="area"), size=images.shape[-1], mode="bilinear")
    images = torch.lerp(images, soft, some(0.5))
    coarse = F.interpolate(torch.randn(len(images), 3, 16, 16, generator=rng), size=images.shape[-1], mode="bilinear")
    images = images + 0.06 * some(0.5) * coarse + 0.04 * some(0.5) * torch.randn(images.shape, generator=rng)
    return images.clamp(0, 1)


def disturb(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """What the dual encoder must not mind, each in a part of the pictures: light, softness, a patch of another grey.

    Not what the judges are trained with ([`corrupt`]), so that what fools these need not fool it.
    """

    def some(p: float) -> torch.Tensor:
        return (torch.rand(len(images), 1, 1, 1, generator=rng) < p).float()

    gain, offset = torch.rand(2, len(images), 1, 1, 1, generator=rng) * 2 - 1
    images = 1 - (1 - images) * (1 + 0.25 * gain) - 0.08 * offset
    soft = F.avg_pool2d(F.pad(images, (1,) * 4, mode="replicate"), 3, stride=1)
    images = torch.lerp(images, soft, some(0.4) * torch.rand(len(images), 1, 1, 1, generator=rng))
    side = images.shape[-1]
    corner = torch.rand(2, len(images), generator=rng) * side
    size = (0.1 + 0.2 * torch.rand(2, len(images), generator=rng)) * side
    across, below = (
        ((torch.arange(side) - corner[i, :, None]).abs() < size[i, :, None] / 2).float() for i in range(2)
    )
    patch = below[:, None, :, None] * across[:, None, None, :] * some(0.5)
    images = torch.lerp(images, torch.rand(len(images), 1, 1, 1, generator=rng).expand_as(images), patch)
    return images.clamp(0, 1)
