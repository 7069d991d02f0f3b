# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL: image variation by aligning to the inversion chain."""

from alignext.pipelines.rival.block import RIVALBlocks
from alignext.pipelines.rival.inversion import RIVALInversion
from alignext.pipelines.rival.pipeline import RIVALPipeline
from alignext.pipelines.rival.variants import RIVALControlNetPipeline, RIVALXLControlNetPipeline, RIVALXLPipeline


__all__ = [
    "RIVALBlocks",
    "RIVALControlNetPipeline",
    "RIVALInversion",
    "RIVALPipeline",
    "RIVALXLControlNetPipeline",
    "RIVALXLPipeline",
]
