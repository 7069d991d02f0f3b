# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL on Stable Diffusion 1 and 2."""

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from alignext.pipelines.rival.mixin import RIVALMixin


class RIVALPipeline(RIVALMixin, StableDiffusionPipeline):
    """
    [`StableDiffusionPipeline`] that makes variations of a reference picture, or images of something else in its look;
    see [`RIVALMixin`] for what it adds. Everything else is inherited.
    """
