# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL around the blocks of a modular pipeline."""

from alignext.diffusion.blocks import MethodBlocks
from alignext.pipelines.rival.mixin import RIVALMixin
from alignext.pipelines.rival.variants import RIVALXLPipeline


class RIVALBlocks(MethodBlocks):
    """
    A modular preset that makes variations of a reference picture: `RIVALBlocks(StableDiffusionXLAutoBlocks())`. It
    takes the preset's inputs and those of [`RIVALMixin`]; see there for what they mean. The strength of guidance is
    the guider's, not the task's.
    """

    _name, _tag_names, _paper = RIVALMixin._name, RIVALMixin._tag_names, RIVALMixin._paper
    pipelines = {"stable-diffusion-xl": RIVALXLPipeline}
    own = RIVALMixin, None
