# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen around the blocks of a modular pipeline."""

from alignext.diffusion.blocks import MethodBlocks
from alignext.pipelines.alignedgen.levers import Levers
from alignext.pipelines.alignedgen.mixin import AlignedGenMixin
from alignext.pipelines.alignedgen.pipeline import AlignedGenPipeline
from alignext.pipelines.alignedgen.pipeline_flux2 import AlignedGenFlux2Pipeline
from alignext.pipelines.alignedgen.pipeline_flux2_klein import AlignedGenFlux2KleinPipeline
from alignext.pipelines.alignedgen.pipeline_kontext import AlignedGenKontextPipeline
from alignext.pipelines.alignedgen.pipeline_qwen import AlignedGenQwenImagePipeline


class AlignedGenBlocks(MethodBlocks):
    """
    A modular preset whose images of one call come out in one style: `AlignedGenBlocks(FluxAutoBlocks())`. It takes
    the preset's inputs and those of [`AlignedGenMixin`]; see there for what they mean.
    """

    _name, _tag_names, _paper = AlignedGenMixin._name, AlignedGenMixin._tag_names, AlignedGenMixin._paper
    pipelines = {
        "flux": AlignedGenPipeline,
        "flux-kontext": AlignedGenKontextPipeline,
        "flux2": AlignedGenFlux2Pipeline,
        "flux2-klein": AlignedGenFlux2KleinPipeline,
        "qwenimage": AlignedGenQwenImagePipeline,
    }
    own = AlignedGenMixin, Levers
    own_outputs = {"style_reference": "The anchor's style, with `record_style=True`."}
