# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`aligned_attention`: shared attention on a stock transformer for the time of a `with` block."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from alignext.pipelines.alignedgen.attention import AlignedAttention
from alignext.pipelines.alignedgen.attention_flux import AlignedFluxAttention
from alignext.pipelines.alignedgen.attention_flux2 import AlignedFlux2Attention
from alignext.pipelines.alignedgen.attention_qwen import AlignedQwenAttention
from alignext.pipelines.alignedgen.levers import Levers
from alignext.pipelines.alignedgen.style import StyleReference
from alignext.signatures import takes_levers


# Which class shares in which model.
MODELS = {
    FluxTransformer2DModel: AlignedFluxAttention,
    Flux2Transformer2DModel: AlignedFlux2Attention,
    QwenImageTransformer2DModel: AlignedQwenAttention,
}


@takes_levers(Levers)
@contextmanager
def aligned_attention(
    transformer: torch.nn.Module,
    *,
    scheduler=None,
    style_reference: StyleReference | None = None,
    record: bool = False,
    step: int | None = None,
    num_inference_steps: int | None = None,
    sigma: float | None = None,
    **levers,
) -> Generator["AlignedAttention"]:
    r"""
    Within the `with` block, images that go through the transformer together share the anchor's style: in the chosen
    layers and steps every other image (a target) also attends to the anchor's image tokens. On leaving, also by an
    exception, the transformer is as it was.

    Serves any pipeline around the transformer (img2img, ControlNet, ...) if its scheduler is given, and a transformer
    called directly.

    Args:
        transformer ([`FluxTransformer2DModel`], [`Flux2Transformer2DModel`] or [`QwenImageTransformer2DModel`]):
            The model. Outside the layers and steps below it runs its stock processors, to the same bits. Where
            pictures to be edited follow the image to be generated (Kontext, FLUX.2), they are not shared.
        scheduler (`SchedulerMixin`, *optional*):
            The scheduler of the loop, which tells step, number of steps and noise level. Without one see `step`,
            `num_inference_steps` and `sigma`.
        style_reference ([`StyleReference`], *optional*):
            A picture or a recorded anchor instead of an image of the batch: all images of the batch are targets.
        record (`bool`, *optional*, defaults to `False`):
            Keep the anchor's latents, for [`~AlignedAttention.recorded`].
        step (`int`, *optional*):
            Index of the current step; [`AlignedAttention`] has it as an attribute to set in a loop. If not given, the
            scheduler's; without one, steps are counted: a call with a `timestep` below that of the call before begins
            the next step, one above it another loop.
        num_inference_steps (`int`, *optional*):
            N; the scheduler's if not given. Without a scheduler it is needed only if `share_start` or `share_end` is
            set.
        sigma (`float`, *optional*):
            Noise level of the current step, an attribute like `step`. If not given, the scheduler's; without one, the
            `timestep` argument of the call, which is the noise level for flow matching models.
        **levers: The fields of [`Levers`].

    Yields:
        [`AlignedAttention`]: Its attributes `step`, `num_inference_steps` and `sigma` may be set during a loop.

    Raises:
        `ValueError`: On levers out of range, and on a transformer that has other processors, is split over devices
            or has a cache that does not go with several calls per step.
        `NotImplementedError`: For models whose positions do not go with the method, such as Stable Diffusion 3, and
            with an IP-Adapter.

    Example:

    ```py
    >>> from alignext import aligned_attention

    >>> with aligned_attention(pipe.transformer, scheduler=pipe.scheduler, style_lambda=1.1):
    ...     images = pipe(["a fox, watercolor", "a lighthouse, watercolor"]).images

    >>> with aligned_attention(transformer, step=3, num_inference_steps=28, share_blocks=(19, 57)):
    ...     velocity = transformer(hidden_states=latents, timestep=sigmas, **conditions).sample
    ```
    """
    model = getattr(transformer, "_orig_mod", transformer)  # inside `torch.compile(transformer)`
    sharing = sharing_class(model)(model, Levers(**levers), scheduler, style_reference, record)
    sharing.step, sharing.num_inference_steps, sharing.sigma = step, num_inference_steps, sigma
    with sharing.installed(transformer):
        yield sharing


def sharing_class(transformer) -> type[AlignedAttention]:
    """The class that shares in this model; refuses a model that has none."""
    for model, ours in MODELS.items():
        if isinstance(transformer, model):
            return ours
    name, known = type(transformer).__name__, ", ".join(model.__name__ for model in MODELS)
    if name.startswith("SD3"):
        raise NotImplementedError(
            f"AlignedGen is not defined for `{name}`: Stable Diffusion 3 has no rotary positions. They are added to "
            "the patches once, so the anchor's keys cannot be moved beside the targets."
        )
    raise ValueError(f"`transformer` must be one of {known}, received `{name}`.")
