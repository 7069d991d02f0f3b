# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards of two encoders, one of pictures and one of texts, whose unit vectors are compared."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from alignext.logs import pipeline_logger, warn_once
from alignext.rewards.pixels import check_images, over_frames
from alignext.rewards.protocol import as_prompts


logger = pipeline_logger(__name__)


class DualEncoderReward(ABC):
    """
    `scale * <encode_image(images), encode_text(prompts)>`, the mean over the frames of a video. Differentiable in the
    images. A subclass defines the two encoders, and `scale` where it is not 1.
    """

    differentiable = True

    @property
    def scale(self) -> float:
        """What multiplies the dot product."""
        return 1.0

    @abstractmethod
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors `(n, d)`, float32, of pictures `(n, 3, H, W)` in [0, 1]."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors `(n, d)`, float32; long texts are cut, with a warning."""

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None) -> torch.Tensor:
        check_images(images)
        prompts = as_prompts(prompts, len(images))
        if prompts is None:
            raise ValueError(f"{type(self).__name__} compares with the prompts: pass `prompt`, not embeddings alone.")
        unique = sorted(set(prompts))
        with torch.no_grad():  # it is the pictures that learn
            texts = self.encode_text(unique)[[unique.index(prompt) for prompt in prompts]]
        if images.ndim == 5:
            texts = texts.repeat_interleave(images.shape[1], dim=0)
        return self.scale * over_frames(lambda frames: (self.encode_image(frames) * texts).sum(-1), images)


def fitted(images: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures, the shorter side resized to `side` (bicubic, antialiased), and the centre cut out; differentiable."""
    height, width = images.shape[-2:]
    size = [max(side, round(side * x / min(height, width))) for x in (height, width)]
    if size != [height, width]:
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = ((x - side) // 2 for x in size)
    return images[..., top : top + side, left : left + side]


def normalised(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pictures minus the mean of each channel, by its standard deviation."""
    m, s = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images - m) / s


def warn_of_cut(texts: Sequence[str], lengths: Sequence[int], length: int) -> None:
    """A warning that names the first text of more than `length` tokens, if there is one."""
    for text, found in zip(texts, lengths, strict=True):
        if found > length:
            warn_once(
                logger,
                f"The text encoder of the reward reads {length} tokens; the rest is cut off prompts such as "
                f"{text[:80]!r}, of {found} tokens.",
            )
            return
