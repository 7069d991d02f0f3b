# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen on FLUX.2 klein."""

from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline

from alignext.pipelines.alignedgen.mixin import AlignedGenMixin
from alignext.pipelines.alignedgen.mixin_flux2 import Flux2StyleMixin


class AlignedGenFlux2KleinPipeline(Flux2StyleMixin, AlignedGenMixin, Flux2KleinPipeline):
    """
    [`Flux2KleinPipeline`] whose images of one call come out in one style; see [`AlignedGenMixin`] for what it adds.
    Everything else is inherited.

    The defaults are those found on FLUX.1; which layers share best on this model is not known. Only the images to be
    generated share, not the pictures passed as `image`.
    """
