# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search on the other pipelines that are in common use."""

from diffusers import (
    AnimateDiffPipeline,
    CogVideoXPipeline,
    FluxPipeline,
    HunyuanVideoPipeline,
    LattePipeline,
    LTXPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
)

from alignext.pipelines.latent_search.mixin import SearchMixin


class StableDiffusionXLSearchPipeline(SearchMixin, StableDiffusionXLPipeline):
    """[`StableDiffusionXLPipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""


class StableDiffusion3SearchPipeline(SearchMixin, StableDiffusion3Pipeline):
    """[`StableDiffusion3Pipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""


class FluxSearchPipeline(SearchMixin, FluxPipeline):
    """[`FluxPipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""


class AnimateDiffSearchPipeline(SearchMixin, AnimateDiffPipeline):
    """[`AnimateDiffPipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""


class LatteSearchPipeline(SearchMixin, LattePipeline):
    """[`LattePipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""


class CogVideoXSearchPipeline(SearchMixin, CogVideoXPipeline):
    """[`CogVideoXPipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""


class WanSearchPipeline(SearchMixin, WanPipeline):
    """[`WanPipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""


class HunyuanVideoSearchPipeline(SearchMixin, HunyuanVideoPipeline):
    """[`HunyuanVideoPipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""


class LTXSearchPipeline(SearchMixin, LTXPipeline):
    """[`LTXPipeline`] whose call takes a reward and searches for it; see [`SearchMixin`]."""
