# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards that need no model."""

from collections.abc import Callable, Sequence
from io import BytesIO

import torch
from PIL import Image


def check_images(images: torch.Tensor, video: bool = False) -> None:
    """
    Raises:
        ValueError: If these are not images `(n, 3, H, W)` or videos `(n, F, 3, H, W)`; with `video`, if not videos.
    """
    if images.ndim not in (4, 5) or images.shape[-3] != 3:
        raise ValueError(f"`images` must have shape (n, 3, H, W) or (n, F, 3, H, W), received {tuple(images.shape)}.")
    if video and (images.ndim == 4 or images.shape[1] < 2):
        raise ValueError(f"This reward is of videos (n, F, 3, H, W) with F >= 2, received {tuple(images.shape)}.")


def over_frames(score: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """`score` of images, `(m, 3, H, W) -> (m,)`, as one of images or videos: the mean over the frames."""
    check_images(images)
    return score(images) if images.ndim == 4 else score(images.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)


def brightness(images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
    """Mean pixel value, in [0, 1]. A toy: for trying things out. Differentiable."""
    return over_frames(lambda frames: frames.mean((1, 2, 3)), images)


brightness.differentiable = True  # ty: ignore[missing-attribute]


class CompressibilityReward:
    """
    Minus the size as a JPEG, in kB, of pictures or of the frames of a video (arXiv 2305.13301). Not differentiable: a
    black box, for search and policy gradients.

    Args:
        quality (`int`, *optional*, defaults to 95): Of the JPEG, 1 to 100.
        incompressible (`bool`, *optional*, defaults to `False`): The size instead of minus the size.

    Raises:
        ValueError: `quality` is out of range.
    """

    differentiable = False

    def __init__(self, quality: int = 95, incompressible: bool = False) -> None:
        if not 1 <= quality <= 100:
            raise ValueError(f"`quality` must be in 1..100, received {quality}.")
        self.quality, self.sign = quality, 1 if incompressible else -1

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
        return over_frames(self._score, images)

    def _score(self, frames: torch.Tensor) -> torch.Tensor:
        pixels = (frames.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        sizes = []
        for picture in pixels:
            file = BytesIO()
            Image.fromarray(picture).save(file, format="JPEG", quality=self.quality)
            sizes.append(self.sign * file.tell() / 1000)
        return torch.tensor(sizes, device=frames.device)


compressibility = CompressibilityReward()
incompressibility = CompressibilityReward(incompressible=True)


class PaletteReward:
    """
    Minus the mean distance of a picture's colours to the nearest one of a palette, in RGB. White paper counts little:
    a pixel weighs as much as its least channel is below 1. So that an empty sheet is not the best picture, each has a
    share of ink at distance 1 that only matters where there is hardly any other. Differentiable.

    Args:
        colors (`Sequence[Sequence[float]]`): RGB in [0, 1].

    Raises:
        ValueError: `colors` are not RGB in [0, 1].
    """

    differentiable = True
    _SPARE = 0.01  # ink of a blank sheet, as a share of its pixels

    def __init__(self, colors: Sequence[Sequence[float]]) -> None:
        self.colors = torch.tensor([list(color) for color in colors], dtype=torch.float32)
        if self.colors.ndim != 2 or self.colors.shape[1] != 3 or not ((self.colors >= 0) & (self.colors <= 1)).all():
            raise ValueError(f"`colors` must be RGB in [0, 1], such as [(1, 0, 0)], received {colors!r}.")

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
        return over_frames(self._score, images)

    def _score(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames.flatten(2).unsqueeze(1)  # (n, 1, 3, pixels)
        away = (x - self.colors.to(x)[None, :, :, None]).square().sum(2).add(1e-8).sqrt().amin(1)
        ink = 1 - x[:, 0].amin(1)
        return -((ink * away).mean(1) + self._SPARE) / (ink.mean(1) + self._SPARE)


def dynamics(images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
    """Mean absolute difference of consecutive frames, in [0, 1]: a light stand-in for optical flow. Differentiable."""
    check_images(images, video=True)
    return (images[:, 1:] - images[:, :-1]).abs().flatten(1).mean(1)


dynamics.differentiable = True  # ty: ignore[missing-attribute]
