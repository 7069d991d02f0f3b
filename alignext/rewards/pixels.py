# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards that need no model."""

from collections.abc import Callable
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


def compressibility(images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
    """Minus the size as a JPEG of quality 95, in kB (arXiv 2305.13301). A toy. Not differentiable."""

    def score(frames: torch.Tensor) -> torch.Tensor:
        pixels = (frames.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        sizes = []
        for picture in pixels:
            file = BytesIO()
            Image.fromarray(picture).save(file, format="JPEG", quality=95)
            sizes.append(-file.tell() / 1000)
        return torch.tensor(sizes, device=frames.device)

    return over_frames(score, images)


compressibility.differentiable = False  # ty: ignore[missing-attribute]


def dynamics(images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
    """Mean absolute difference of consecutive frames, in [0, 1]: a light stand-in for optical flow. Differentiable."""
    check_images(images, video=True)
    return (images[:, 1:] - images[:, :-1]).abs().flatten(1).mean(1)


dynamics.differentiable = True  # ty: ignore[missing-attribute]
