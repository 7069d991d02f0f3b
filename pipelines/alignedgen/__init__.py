# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen: a set of images in one style."""

from alignext.pipelines.alignedgen.attention import AlignedAttention
from alignext.pipelines.alignedgen.block import AlignedGenBlocks
from alignext.pipelines.alignedgen.levers import Levers
from alignext.pipelines.alignedgen.mixin import AlignedGenPipelineOutput
from alignext.pipelines.alignedgen.pipeline import AlignedGenPipeline
from alignext.pipelines.alignedgen.pipeline_flux2 import AlignedGenFlux2Pipeline
from alignext.pipelines.alignedgen.pipeline_flux2_klein import AlignedGenFlux2KleinPipeline
from alignext.pipelines.alignedgen.pipeline_kontext import AlignedGenKontextPipeline
from alignext.pipelines.alignedgen.pipeline_qwen import AlignedGenQwenImagePipeline
from alignext.pipelines.alignedgen.sharing import aligned_attention
from alignext.pipelines.alignedgen.style import StyleReference


__all__ = [
    "AlignedAttention",
    "AlignedGenBlocks",
    "AlignedGenFlux2KleinPipeline",
    "AlignedGenFlux2Pipeline",
    "AlignedGenKontextPipeline",
    "AlignedGenPipeline",
    "AlignedGenPipelineOutput",
    "AlignedGenQwenImagePipeline",
    "Levers",
    "StyleReference",
    "aligned_attention",
]
