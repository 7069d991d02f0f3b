# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What goes into the segmentation of a picture, checked, and what comes out of it."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from alignext.diffusion.denoiser import get_denoiser


@dataclass
class ELBOAlignOutput(BaseOutput):
    """
    Where the classes are in a picture of size `H x W`.

    Attributes:
        heatmaps (`torch.Tensor` of shape `(C, H, W)`): In [0, 1].
        label_map (`torch.Tensor` of shape `(H, W)`): 0 for the background, `k` for the `k`-th class.
        elbo (`torch.Tensor` of shape `(C,)`): `L_c`, sums of diffusion losses: high where the model hardly sees the
            class. NaN for a single class and for given temperatures, which need none.
        temperatures (`torch.Tensor` of shape `(C,)`): `gamma_c`.
        cross_attention (`torch.Tensor` of shape `(C, h, w)`): Maps before calibration.
    """

    heatmaps: torch.Tensor
    label_map: torch.Tensor
    elbo: torch.Tensor
    temperatures: torch.Tensor
    cross_attention: torch.Tensor


def looking_size(
    pipe: Any, pil: Any, latents: torch.Tensor | None, height: int | None, width: int | None, keep_aspect: bool
) -> tuple[int, int]:
    """
    Height and width at which the model looks at a picture, see [`ELBOAlignPipeline`].

    Raises:
        ValueError: If they are no multiples of what the pipeline takes.
    """
    factor = pipe.vae_scale_factor
    if latents is not None:
        return latents.shape[-2] * factor, latents.shape[-1] * factor
    native = getattr(pipe, "default_sample_size", None) or get_denoiser(pipe).config.sample_size
    native = (native if isinstance(native, int) else native[0]) * factor
    height, width = height or native, width or native
    step = max(8, factor * (2 if hasattr(pipe, "_pack_latents") else 1))  # 8: what stock calls ask for
    if keep_aspect:
        ratio = (pil.height / pil.width) ** 0.5
        area = (height * width) ** 0.5
        unit = min(64, max(step, native // 8))
        height, width = (max(unit, round(area * r / unit) * unit) for r in (ratio, 1 / ratio))
    if height % step or width % step:
        raise ValueError(f"`height` and `width` must be multiples of {step}, received {height} and {width}.")
    return height, width


def check_range(name: str, value: float, low: float, high: float) -> None:
    """
    Raises:
        ValueError: If the argument `name` is out of its range.
    """
    if not low <= value <= high:
        raise ValueError(f"`{name}` must be in [{low:g}, {high:g}], received {value}.")


def checked_classes(classes: Any) -> list[str]:
    """
    The classes as a list.

    Raises:
        ValueError: If there is none, one is empty, or one stands twice.
    """
    found = list(classes)
    if isinstance(classes, str) or not found or not all(isinstance(c, str) and c.strip() for c in found):
        raise ValueError(f"`classes` must be a list of texts with at least one, received {classes!r}.")
    twice = [c for i, c in enumerate(found) if c in found[:i]]
    if twice:
        raise ValueError(f"`classes` must be different texts, received {twice[0]!r} twice.")
    return found
