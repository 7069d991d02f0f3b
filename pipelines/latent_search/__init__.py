# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Latent search: the sample that a reward likes best, found while it is being generated."""

from alignext.pipelines.latent_search.block import LatentSearchBlocks
from alignext.pipelines.latent_search.mixin import SearchMixin
from alignext.pipelines.latent_search.pipeline import StableDiffusionSearchPipeline
from alignext.pipelines.latent_search.pipelines import (
    AnimateDiffSearchPipeline,
    CogVideoXSearchPipeline,
    FluxSearchPipeline,
    HunyuanVideoSearchPipeline,
    LatteSearchPipeline,
    LTXSearchPipeline,
    StableDiffusion3SearchPipeline,
    StableDiffusionXLSearchPipeline,
    WanSearchPipeline,
)
from alignext.pipelines.latent_search.search import LatentSearch


__all__ = [
    "AnimateDiffSearchPipeline",
    "CogVideoXSearchPipeline",
    "FluxSearchPipeline",
    "HunyuanVideoSearchPipeline",
    "LTXSearchPipeline",
    "LatentSearch",
    "LatentSearchBlocks",
    "LatteSearchPipeline",
    "SearchMixin",
    "StableDiffusion3SearchPipeline",
    "StableDiffusionSearchPipeline",
    "StableDiffusionXLSearchPipeline",
    "WanSearchPipeline",
]
