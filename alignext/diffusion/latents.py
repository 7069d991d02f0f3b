# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Pictures to latents and back through a VAE: one encode, one decode, one scaling and its inverse."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor


if TYPE_CHECKING:
    from alignext.diffusion.layouts import Layout


def encode_images(
    pipe: Any,
    pixel_values: torch.Tensor,
    batch_size: int = 8,
    generator: torch.Generator | list[torch.Generator] | None = None,
    *,
    sample: bool = True,
    layout: "Layout | None" = None,
) -> torch.Tensor:
    """
    Latents as the denoiser takes them: a sample of the VAE's posterior, or its mean, shifted and scaled. A VAE with
    `force_upcast`, such as those of Stable Diffusion 1 and XL, runs in float32 whatever it is stored in. The noise of
    the sample does not depend on `batch_size`. No gradient passes.

    Args:
        pipe (`DiffusionPipeline` or `torch.nn.Module`): A pipeline with a `vae`, or a VAE.
        pixel_values (`torch.Tensor`): `(n, 3, H, W)`, or `(n, 3, F, H, W)` for the VAE of a video, in [-1, 1].
        batch_size (`int`, *optional*, defaults to 8): Pictures per pass.
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*): Of the sample; a list has one a picture.
        sample (`bool`, *optional*, defaults to `True`): Draw from the posterior; otherwise take its mean.
        layout ([`~alignext.diffusion.layouts.Layout`], *optional*): How the pipeline has its latents, where that is
            not plain: a VAE of pictures in a pipeline of videos, or the other way round, or a scaling of its own.

    Returns:
        `torch.Tensor`: `(n, C, h, w)` or `(n, C, f, h, w)`, or `(n, *layout.shape)`; float32, on the VAE's device.

    Raises:
        ValueError: If latents are not finite, as when a VAE overflows in float16.
    """
    vae = _vae(pipe)
    stored, device = vae.dtype, _device(vae)
    means, deviations, rows = [], [], len(pixel_values)
    if layout is not None and layout.frames_alone:
        frames = pixel_values.shape[2]
        pixel_values = pixel_values.transpose(1, 2).flatten(0, 1)
        generator = [g for g in generator for _ in range(frames)] if isinstance(generator, list) else generator
    elif layout is not None and len(layout.shape) == 4 and pixel_values.ndim == 4:
        pixel_values = pixel_values[:, :, None]  # a picture is a video of one frame
    with torch.no_grad(), float32_if_forced(vae), torch.autocast(device.type, enabled=False):
        used = vae.dtype
        for pixels in pixel_values.split(batch_size):
            encoded = vae.encode(pixels.to(device, used))
            posterior = getattr(encoded, "latent_dist", None)  # some autoencoders have latents, and no distribution
            means.append((encoded[0] if posterior is None else posterior.mean).float())
            if sample and posterior is not None:
                deviations.append(posterior.std.float())
        latents = torch.cat(means)
        if deviations:
            noise = randn_tensor(latents.shape, generator=generator, device=latents.device)
            latents = latents + torch.cat(deviations) * noise
    if not latents.isfinite().all():
        if used == torch.float32:
            raise ValueError("The VAE gives latents that are not finite: neither are its weights, or the pictures.")
        raise ValueError(f"The VAE gives latents that are not finite: it overflows in {stored}. Load it in float32.")
    if layout is None:
        return scale_latents(vae, latents)
    if latents[0].numel() * (len(pixel_values) // rows) != layout.shape.numel():
        raise ValueError(
            f"The VAE gives latents of shape {tuple(latents.shape[1:])}, and those of the pipeline's loop are "
            f"{tuple(layout.shape)}: height, width and frames must be multiples of what one latent takes."
        )
    return layout.scaled(vae, latents.reshape(-1, *layout.shape))


def decode_latents(pipe: Any, latents: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
    """
    What the VAE makes of latents as the denoiser has them, in the type that the VAE has; see [`float32_if_forced`] for
    another. Gradients pass.

    Args:
        pipe (`DiffusionPipeline` or `torch.nn.Module`): A pipeline with a `vae`, or a VAE.
        latents (`torch.Tensor`): `(n, C, h, w)` or `(n, C, f, h, w)`, scaled.
        batch_size (`int`, *optional*): Pictures per pass; all at once if not given.

    Returns:
        `torch.Tensor`: `(n, 3, H, W)` or `(n, 3, F, H, W)`, about [-1, 1], not clamped.
    """
    vae = _vae(pipe)
    passes = unscale_latents(vae, latents).to(vae.dtype).split(batch_size or max(1, len(latents)))
    return torch.cat([vae.decode(rows, return_dict=False)[0] for rows in passes])


def scale_latents(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """
    From what the VAE encodes, `(n, C, ...)`, to what the denoiser takes: `(z - mean) scale / std` with the mean and
    deviation of each channel where the VAE has them (some checkpoints of XL, Wan, Qwen-Image), else
    `(z - shift) scale`.
    """
    mean, std, scale = _scaling(pipe, latents)
    latents = (latents - mean) * scale
    return latents if std is None else latents / std


def unscale_latents(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of [`scale_latents`]."""
    mean, std, scale = _scaling(pipe, latents)
    latents = latents if std is None else latents * std
    return latents / scale + mean


_SCALING = ("shift_factor", "scaling_factor", "latents_mean", "latents_std")


def _scaling(pipe: Any, like: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | None, float]:
    config = _vae(pipe).config
    shift, scale, mean, std = (getattr(config, name, None) for name in _SCALING)
    scale = 1.0 if scale is None else scale
    if mean is None or std is None:
        return shift or 0.0, None, scale
    mean, std = (_of_channels(values, like) for values in (mean, std))
    return mean, std, scale


def _of_channels(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, *(1,) * (like.ndim - 2)).to(like)


@contextmanager
def float32_if_forced(pipe: Any, stored: Sequence[torch.dtype] = (torch.float16, torch.bfloat16)) -> Generator[None]:
    """
    A VAE with `force_upcast` in its configuration runs in float32 within the block, and is put back whatever happens.

    Args:
        pipe (`DiffusionPipeline` or `torch.nn.Module`): A pipeline with a `vae`, or a VAE.
        stored (`Sequence[torch.dtype]`, *optional*): Types that are not left as they are. Encoding leaves neither, as
            the stock image-to-image pipelines; the stock decoding of XL leaves bfloat16, which does not overflow.
    """
    vae = _vae(pipe)
    dtype = vae.dtype
    upcast = dtype in stored and bool(getattr(vae.config, "force_upcast", False))
    try:
        if upcast:
            vae.to(torch.float32)
        yield
    finally:
        if upcast:
            vae.to(dtype)


def _vae(pipe: Any) -> Any:
    vae = getattr(pipe, "vae", pipe)
    if vae is None:
        raise ValueError(f"{type(pipe).__name__} has no `vae` to encode or decode pictures with. Load one.")
    return vae


def _device(vae: Any) -> torch.device:
    """Where the VAE runs, which is not where it lies while a pipeline is offloaded, as a whole or layer by layer."""
    hooks = (getattr(module, "_hf_hook", None) for module in vae.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((device for device in devices if device is not None), None)
    return vae.device if device is None else torch.device(device)
