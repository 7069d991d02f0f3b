# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen on FLUX.1."""

from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from alignext.pipelines.alignedgen.mixin import AlignedGenMixin


class AlignedGenPipeline(AlignedGenMixin, FluxPipeline):
    """
    [`FluxPipeline`] whose images of one call come out in one style; see [`AlignedGenMixin`] for what it adds.
    Everything else is inherited.
    """
