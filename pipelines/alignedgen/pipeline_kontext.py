# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen on FLUX.1 Kontext."""

from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline

from alignext.pipelines.alignedgen.mixin import AlignedGenMixin


class AlignedGenKontextPipeline(AlignedGenMixin, FluxKontextPipeline):
    """
    [`FluxKontextPipeline`] whose edited images of one call come out in one style; see [`AlignedGenMixin`] for what it
    adds. Everything else is inherited.

    Only the images to be generated share and take over: the pictures to be edited are seen by their own image alone.
    `shift=(1, 0, 0)` places the anchor where this model is used to seeing another picture. A recorded anchor is run
    without the picture it is an edit of, so it continues a series in its style, but not to the same images.
    """

    def _style_size(self, call: dict) -> tuple[int | None, int | None]:
        side = round(call["max_area"] ** 0.5)  # of `height` and `width` the stock call keeps the proportions only
        return side, side
