# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL on Stable Diffusion XL with ControlNet."""

from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import StableDiffusionXLControlNetPipeline

from alignext.pipelines.rival.mixin import RIVALMixin


class RIVALXLControlNetPipeline(RIVALMixin, StableDiffusionXLControlNetPipeline):
    """
    [`StableDiffusionXLControlNetPipeline`] whose images follow a control picture and take their look from a reference
    picture; see [`RIVALMixin`] for what it adds. Everything else is inherited.

    ControlNet runs on the generated images only. `task` defaults to `"controlnet"`.
    """

    default_task = "controlnet"
