# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The size of pictures and videos in pixels, in latents, and as a stock call is told it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from alignext.diffusion.recording import call_parameters


class Size(NamedTuple):
    """
    Of a picture or video in pixels.

    Attributes:
        height, width (`int`): Of each picture.
        frames (`int`, *optional*): Of a video; None for a picture.
    """

    height: int
    width: int
    frames: int | None = None


# Names that pipelines have for the same thing.
_FRAMES = ("num_frames", "video_length")
_SPACE = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
_TIME = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
# Stock calls that would take another size than they are asked for: Sana, PixArt and HunyuanDiT; Kontext.
_AS_ASKED = {"use_resolution_binning": False, "_auto_resize": False}


def draws_videos(pipe: Any) -> bool:
    """Whether the stock call is told a number of frames."""
    return any(name in call_parameters(pipe) for name in _FRAMES)


def size_arguments(pipe: Any, size: Size) -> dict[str, Any]:
    """Arguments of the stock call by which it draws in this size and in no other."""
    given: dict[str, Any] = {"height": size.height, "width": size.width, **_AS_ASKED}
    given |= {"max_area": size.height * size.width} | dict.fromkeys(_FRAMES, size.frames)
    return {name: value for name, value in given.items() if name in call_parameters(pipe) and value is not None}


def pixels_per_latent(pipe: Any) -> int:
    """The side of what the VAE makes one latent of."""
    return next((int(getattr(pipe, name)) for name in _SPACE if getattr(pipe, name, None)), 8)


def size_of_latents(pipe: Any, shape: Sequence[int]) -> Size:
    """
    The size in pixels of one sample's latents.

    Args:
        pipe (`DiffusionPipeline`): Of which they are.
        shape (`Sequence[int]`): `(C, h, w)`, `(C, f, h, w)`, or `(F, C, h, w)` of a VAE that knows no frames.
    """
    scale, frames = pixels_per_latent(pipe), None
    if draws_videos(pipe):
        ratio = next((int(getattr(pipe, name)) for name in _TIME if getattr(pipe, name, None)), None)
        frames = shape[0] if ratio is None else (shape[1] - 1) * ratio + 1
    return Size(shape[-2] * scale, shape[-1] * scale, frames)


def pixel_multiple(pipe: Any, denoiser: Any) -> int:
    """What heights and widths must be multiples of: most transformers read patches of 2 x 2 latents."""
    config, vae = denoiser.config, getattr(getattr(pipe, "vae", None), "config", {})
    channels = config.get("in_channels"), vae.get("latent_channels") or vae.get("z_dim")
    single = config.get("down_block_types") or (config.get("patch_size") == 1 and channels[0] == channels[1])
    return pixels_per_latent(pipe) * (1 if single else 2)


def default_side(pipe: Any, denoiser: Any) -> int | None:
    """The side of the pictures that the pipeline draws unless told otherwise; None where it does not say."""
    latents = getattr(pipe, "default_sample_size", None) or denoiser.config.get("sample_size")
    if isinstance(latents, int):
        return latents * pixels_per_latent(pipe)
    height = call_parameters(pipe).get("height")
    return height.default if height is not None and isinstance(height.default, int) else None
