# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Whether the frames of a video show the same thing."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from alignext.rewards.pixels import check_images


class TemporalConsistency:
    """
    Agreement of the frames' embeddings, each with the one before it and with the first (VBench's consistency, arXiv
    2311.17982): the mean over `f >= 1` of `[max(0, cos(f - 1, f)) + max(0, cos(0, f))] / 2`, in [0, 1].

    Args:
        embed (`Callable`): Frames `(m, 3, H, W)` in [0, 1] to features `(m, d)`, for example
            [`CLIPReward.encode_image`][alignext.rewards.CLIPReward] or a judge's features.
        differentiable (`bool`, *optional*, defaults to `True`): Whether `embed` is.
    """

    def __init__(self, embed: Callable[[torch.Tensor], torch.Tensor], differentiable: bool = True) -> None:
        self.embed, self.differentiable = embed, differentiable

    def __call__(self, images: torch.Tensor, prompts: str | list[str] | None = None) -> torch.Tensor:
        check_images(images, video=True)
        features = F.normalize(self.embed(images.flatten(0, 1)).unflatten(0, images.shape[:2]), dim=-1)
        before, now, first = features[:, :-1], features[:, 1:], features[:, :1]
        return (((before * now).sum(-1).clamp(min=0) + (first * now).sum(-1).clamp(min=0)) / 2).mean(1)
