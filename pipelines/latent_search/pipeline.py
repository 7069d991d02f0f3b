# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search on Stable Diffusion 1 and 2."""

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from alignext.pipelines.latent_search.mixin import SearchMixin


class StableDiffusionSearchPipeline(SearchMixin, StableDiffusionPipeline):
    """[`StableDiffusionPipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""
