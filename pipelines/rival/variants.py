# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL on Stable Diffusion XL, and with ControlNet."""

from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import StableDiffusionXLControlNetPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from alignext.pipelines.rival.mixin import RIVALMixin


class RIVALXLPipeline(RIVALMixin, StableDiffusionXLPipeline):
    """
    [`StableDiffusionXLPipeline`] that makes variations of a reference picture, or images of something else in
    its look; see [`RIVALMixin`] for what it adds. Everything else is inherited.
    """


class RIVALControlNetPipeline(RIVALMixin, StableDiffusionControlNetPipeline):
    """
    [`StableDiffusionControlNetPipeline`] whose images follow a control picture and take their look from a reference
    picture; see [`RIVALMixin`] for what it adds. Everything else is inherited.

    ControlNet runs on the generated images only. `task` defaults to `"controlnet"`.
    """

    default_task = "controlnet"


class RIVALXLControlNetPipeline(RIVALMixin, StableDiffusionXLControlNetPipeline):
    """
    [`StableDiffusionXLControlNetPipeline`] whose images follow a control picture and take their look from a reference
    picture; see [`RIVALMixin`] for what it adds. Everything else is inherited.

    ControlNet runs on the generated images only. `task` defaults to `"controlnet"`.
    """

    default_task = "controlnet"
