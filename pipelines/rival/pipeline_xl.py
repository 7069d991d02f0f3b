# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL on Stable Diffusion XL."""

from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from alignext.pipelines.rival.mixin import RIVALMixin


class RIVALXLPipeline(RIVALMixin, StableDiffusionXLPipeline):
    """
    [`StableDiffusionXLPipeline`] that makes variations of a reference picture, or images of something else in
    its look; see [`RIVALMixin`] for what it adds. Everything else is inherited.
    """
