# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen on Qwen-Image."""

import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

from alignext.diffusion.latents import encode_images
from alignext.pipelines.alignedgen.mixin import AlignedGenMixin


class AlignedGenQwenImagePipeline(AlignedGenMixin, QwenImagePipeline):
    """
    [`QwenImagePipeline`] whose images of one call come out in one style; see [`AlignedGenMixin`] for what it adds.
    Everything else is inherited.

    This model has double-stream layers only, so sharing needs `share_blocks`: `"all"` or a range `(lo, hi)`. Which
    layers share best on it is not known.
    """

    def _clean_latents(self, pixels: torch.Tensor) -> torch.Tensor:
        z = encode_images(self, pixels[:, :, None], sample=False)[:, :, 0]
        return self._pack_latents(z, *z.shape)

    def _texts(self, **given) -> tuple[torch.Tensor, torch.Tensor | None]:
        prompt_embeds, mask = self.encode_prompt(**given)[:2]
        return prompt_embeds if mask is None else prompt_embeds[:, mask[0].bool()], None

    def _scaling(self) -> tuple[float, float] | None:
        return None  # its latents are scaled channel by channel
