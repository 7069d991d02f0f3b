# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`aligned_attention`: shared attention on a stock transformer for the time of a `with` block."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from alignext.pipelines.alignedgen.attention import AlignedAttention
from alignext.pipelines.alignedgen.attention_flux2 import AlignedFlux2Attention
from alignext.pipelines.alignedgen.attention_qwen import AlignedQwenAttention
from alignext.pipelines.alignedgen.checks import Settings
from alignext.pipelines.alignedgen.style import StyleReference


# Which class shares in which model.
MODELS = {
    FluxTransformer2DModel: AlignedAttention,
    Flux2Transformer2DModel: AlignedFlux2Attention,
    QwenImageTransformer2DModel: AlignedQwenAttention,
}


@contextmanager
def aligned_attention(
    transformer: torch.nn.Module,
    *,
    scheduler=None,
    style_reference: StyleReference | None = None,
    style_lambda: float = 1.1,
    lambda_schedule: str | Callable[[float], float] = "constant",
    share_blocks: str | tuple[int, int] = "single",
    share_start: float = 0.0,
    share_end: float = 1.0,
    adain: bool = True,
    shift: str | tuple[float, ...] = "width",
    isolate_anchor: bool = True,
    anchor_index: int = 0,
    target_batch_size: int | None = None,
    record: bool = False,
    step: int | None = None,
    num_inference_steps: int | None = None,
    sigma: float | None = None,
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
        style_lambda (`float`, *optional*, defaults to 1.1):
            `lambda >= 0`, by which the shared keys are multiplied. More is closer to the anchor. 0 does not switch
            sharing off.
        lambda_schedule (`str` or `Callable[[float], float]`, *optional*, defaults to `"constant"`):
            `"constant"`; `"sigma_squared"`, `lambda = sigma^2`, for which `style_lambda` is not used; or a function
            of `sigma`, from 1 (noise) to 0.
        share_blocks (`str` or `tuple[int, int]`, *optional*, defaults to `"single"`):
            `"single"` for the single-stream layers, `"double"` for the double-stream ones, `"all"`, or `(lo, hi)`,
            half open, counted through both kinds, double first: `(19, 57)` is `"single"` for FLUX.1. Qwen-Image has
            double-stream layers only.
        share_start, share_end (`float`, *optional*, defaults to 0.0 and 1.0):
            Step i of N shares if `share_start <= i / N < share_end`. `share_end=0` switches sharing off.
        adain (`bool`, *optional*, defaults to `True`):
            Give the image queries and keys of the targets the anchor's mean and variance, per head and channel.
        shift (`str` or `tuple[float, ...]`, *optional*, defaults to `"width"`):
            Where the targets see the anchor: `"width"` to their right, `"height"` below, `"none"` in their own place,
            or what is added to each axis of its positions.
        isolate_anchor (`bool`, *optional*, defaults to `True`):
            The anchor attends to itself only, which leaves it the image that the stock model makes. Else it also sees
            its own shifted keys, at `lambda = 1`.
        anchor_index (`int`, *optional*, defaults to 0):
            Row of the anchor in the batch.
        target_batch_size (`int`, *optional*):
            So many images per call of the transformer, after one call for the anchor, which bounds memory for any
            number of images. All together if not given.
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

    Yields:
        [`AlignedAttention`]: Its attributes `step`, `num_inference_steps` and `sigma` may be set during a loop.

    Raises:
        `ValueError`: On settings out of range, and on a transformer that has other processors, is split over devices
            or has a cache that does not go with several calls per step.
        `NotImplementedError`: For models whose positions do not go with the method, such as Stable Diffusion 3.

    Example:

    ```py
    >>> from alignext import aligned_attention

    >>> with aligned_attention(pipe.transformer, scheduler=pipe.scheduler, style_lambda=1.1):
    ...     images = pipe(["a fox, watercolor", "a lighthouse, watercolor"]).images

    >>> with aligned_attention(transformer, step=3, num_inference_steps=28, share_blocks=(19, 57)):
    ...     velocity = transformer(hidden_states=latents, timestep=sigmas, **conditions).sample
    ```
    """
    settings = Settings(
        style_lambda=style_lambda,
        lambda_schedule=lambda_schedule,
        share_blocks=share_blocks,
        share_start=share_start,
        share_end=share_end,
        adain=adain,
        shift=shift,
        isolate_anchor=isolate_anchor,
        anchor_index=anchor_index,
        target_batch_size=target_batch_size,
    )
    model = getattr(transformer, "_orig_mod", transformer)  # inside `torch.compile(transformer)`
    sharing = sharing_class(model)(model, settings, scheduler, style_reference, record)
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
