# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latents as a VAE has them and as a pipeline's loop has them: packing and scaling, read off the stock decoding.

A stock call without a step decodes the latents that it is given. What reaches the VAE is then a permutation of them,
scaled and shifted. Three such calls with a VAE that does not decode show all of it, so that encoding is the mirror of
decoding for every pipeline, and no family's packing is written down here.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput

from alignext.diffusion.decoders import only_decode
from alignext.diffusion.latents import scale_latents
from alignext.diffusion.recording import stock_class, without_guidance


@dataclass
class Layout:
    """
    How latents of one sample lie in the VAE and in the loop.

    Attributes:
        shape (`torch.Size`): In the VAE: `(C, h, w)`, `(C, f, h, w)`, or `(F, C, h, w)` where it decodes each frame
            alone.
        loop (`torch.Size`): In the loop, such as `(h * w / 4, 4 * C)`.
        index (`torch.Tensor`, *optional*): Where in the flat loop's latents each of the VAE's is; None where the two
            are the same.
        frames_alone (`bool`): The VAE knows pictures only, and the pipeline draws videos.
        shift, scale (`torch.Tensor`, *optional*): Of shape `shape`, what the VAE decodes is `scale x + shift`; None
            where [`~alignext.diffusion.latents.unscale_latents`] does it.
    """

    shape: torch.Size
    loop: torch.Size
    index: torch.Tensor | None
    frames_alone: bool = False
    shift: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self._inverse = None if self.index is None else self.index.argsort()

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """`(R, *shape)` to `(R, *loop)`. Gradients pass."""
        if self.index is None or self._inverse is None:
            return latents
        self._inverse = self._inverse.to(latents.device)
        return latents.flatten(1)[:, self._inverse].view(-1, *self.loop)

    def unpack(self, latents: torch.Tensor) -> torch.Tensor:
        """`(R, *loop)` to `(R, *shape)`. Gradients pass."""
        if self.index is None:
            return latents
        self.index = self.index.to(latents.device)
        return latents.flatten(1)[:, self.index].view(-1, *self.shape)

    def scaled(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """From what the VAE encodes to what the denoiser takes, both `(R, *shape)`."""
        if self.scale is None or self.shift is None:
            return scale_latents(vae, latents)
        return (latents - self.shift.to(latents)) / self.scale.to(latents)


def read_layout(pipe: Any, loop: torch.Size, *, frames: int | None = None, **call: Any) -> Layout:
    """
    Read packing and scaling off a stock call.

    Args:
        pipe (`DiffusionPipeline`): With its VAE. It stays as it is.
        loop (`torch.Size`): Shape of one sample's latents in the loop.
        frames (`int`, *optional*): Of a video.
        **call: Arguments of the stock call for one sample.

    Raises:
        ValueError: If latents reach the VAE otherwise than each once, scaled and shifted.
    """
    count, encoded = loop.numel(), {}
    places = torch.arange(count, dtype=torch.float64)
    probes = (torch.zeros_like(places), torch.ones_like(places), places)
    try:
        zero, one, at = (decoded(pipe, probe.view(1, *loop), call, encoded) for probe in probes)
    except ValueError as error:
        raise ValueError(
            f"{type(pipe).__name__} does not only decode, so that its layout cannot be read: {error}"
        ) from error
    scale = one - zero
    index = ((at - zero) / scale).round()
    fits = zero.numel() == count and torch.equal(index.flatten().sort().values, places)
    if not fits or not torch.allclose(index * scale + zero, at, rtol=1e-6, atol=1e-6):
        raise ValueError(
            f"The latents of {type(pipe).__name__} reach its VAE in a way that cannot be mirrored: not each of them "
            "once, scaled and shifted."
        )
    alone = frames is not None and zero.ndim == 4
    shape = torch.Size(zero.shape if alone else zero.shape[1:])
    same = torch.equal(index.flatten(), places) and shape == loop
    layout = Layout(shape, loop, None if same else index.flatten().long(), alone)
    known = torch.cat([scale_latents(pipe, zero).flatten(), scale_latents(pipe, one).flatten() - 1])
    if known.abs().max() > 1e-5:
        layout.scale, layout.shift = scale.reshape(shape), zero.reshape(shape)
    return layout


def decoded(
    pipe: Any, latents: torch.Tensor, call: dict[str, Any], encoded: dict[int, Any] | None = None
) -> torch.Tensor:
    """What reaches the VAE when the stock call decodes these latents, in float64."""
    twin, stock = copy.copy(pipe), stock_class(pipe).__call__
    known = inspect.signature(stock).parameters
    vars(twin)["vae"] = watched = _WatchedVAE(pipe.vae)
    with torch.no_grad():
        only_decode(twin, stock, call | without_guidance(pipe, known), latents, "pt", encoded)
    return torch.cat(watched.seen).cpu()


class _WatchedVAE:
    """Stands for a VAE in float64 that decodes nothing and keeps what it was given."""

    dtype = torch.float64

    def __init__(self, vae: Any) -> None:
        self._vae, self.seen = vae, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def to(self, *args: Any, **kwargs: Any) -> "_WatchedVAE":
        return self

    def encode(self, pixels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self._vae.encode(pixels.to(self._vae.dtype), *args, **kwargs)

    def decode(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> DecoderOutput:
        self.seen.append(latents)
        return DecoderOutput(sample=latents[:, :1].expand(-1, 3, *latents.shape[2:]).float())
