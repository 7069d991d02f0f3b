# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The common part of AlignedGen's two FLUX.2 pipelines."""

from typing import TYPE_CHECKING

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline


_Pipeline = DiffusionPipeline if TYPE_CHECKING else object


class Flux2StyleMixin(_Pipeline):
    """Put before [`AlignedGenMixin`]: FLUX.2's way of encoding pictures and texts."""

    def _clean_latents(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.to(self._execution_device, self.vae.dtype)
        z = self._encode_vae_image(pixels, generator=None).float()
        if not z.isfinite().all():
            raise ValueError(
                f"The VAE gives latents that are not finite: it overflows in {self.vae.dtype}. Load it in float32."
            )
        return self._pack_latents(z)

    def _texts(self, **given) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.encode_prompt(**given)[0], None

    def _scaling(self) -> tuple[float, float] | None:
        return None  # its latents are scaled channel by channel
