# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen as a mixin over a stock Flux pipeline. The denoising loop that runs is the stock one."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

from alignext.diffusion.pictures import to_pil
from alignext.hub import HubMixin
from alignext.methods import method
from alignext.pipelines.alignedgen.checks import check_call
from alignext.pipelines.alignedgen.sharing import aligned_attention
from alignext.pipelines.alignedgen.style import StyleReference
from alignext.signatures import show_stock_arguments


@dataclass
class AlignedGenPipelineOutput(FluxPipelineOutput):
    """
    The stock output with the style of its anchor.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            As in the stock output.
        style_reference ([`StyleReference`]):
            The anchor of the call.
    """

    images: Any
    style_reference: StyleReference


class AlignedGenMixin(HubMixin):
    """
    Adds one consistent style to the images of a call: the first one, the anchor, is what the stock pipeline makes, and
    all others attend to it in a part of the transformer's layers. A picture can take the anchor's place. Everything
    else is inherited.

    Method: "AlignedGen: Aligning Style Across Generated Images",
    [arXiv 2509.17088](https://huggingface.co/papers/2509.17088).
    """

    _name = "AlignedGen"
    _tag_names = ["alignext", "alignedgen"]
    _paper = method("AlignedGen").paper
    _noise_row: int | None = None

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        show_stock_arguments(cls, AlignedGenMixin)

    @torch.no_grad()
    def __call__(
        self,
        *args,
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
        shared_noise: bool = False,
        style_reference: StyleReference | None = None,
        style_image=None,
        style_prompt: str | None = None,
        record_style: bool = False,
        **kwargs,
    ):
        r"""
        The stock call, its images in one style. All arguments of the stock pipeline are accepted and mean the same.

        Image `anchor_index` is the anchor: it is the image that the stock pipeline makes of the same call. The others,
        the targets, take over its style. With `style_reference` or `style_image` every image is a target. Prompts that
        name the style (`"a fox, watercolor"`) help.

        Args:
            style_lambda (`float`, *optional*, defaults to 1.1):
                `lambda >= 0`, by which the shared keys are multiplied: more is closer to the anchor. 0 does not switch
                sharing off; `share_end=0` does.
            lambda_schedule (`str` or `Callable[[float], float]`, *optional*, defaults to `"constant"`):
                `"constant"`; `"sigma_squared"` for `lambda = sigma^2` at noise level sigma, from 1 to 0, for which
                `style_lambda` is not used; or a function of sigma.
            share_blocks (`str` or `tuple[int, int]`, *optional*, defaults to `"single"`):
                Layers that share: `"single"` for the single-stream ones, `"double"` for the double-stream ones,
                `"all"`, or `(lo, hi)`, half open, counted through both kinds, double first: `(19, 57)` is `"single"`
                for FLUX.1. Qwen-Image has double-stream layers only.
            share_start, share_end (`float`, *optional*, defaults to 0.0 and 1.0):
                Step i of N shares if `share_start <= i / N < share_end`. Other steps are stock.
            adain (`bool`, *optional*, defaults to `True`):
                Give the targets' image queries and keys the anchor's mean and variance, per head and channel.
            shift (`str` or `tuple[float, ...]`, *optional*, defaults to `"width"`):
                Where a target sees the anchor: `"width"` to its right, `"height"` below, `"none"` in the same place,
                or what is added to each axis of the positions.
            isolate_anchor (`bool`, *optional*, defaults to `True`):
                The anchor attends to itself only. Else it also sees its own shifted keys, at `lambda = 1`, and is no
                longer the stock image.
            anchor_index (`int`, *optional*, defaults to 0):
                Which image of the call is the anchor; images come prompt by prompt.
            target_batch_size (`int`, *optional*):
                Targets per call of the transformer, after one call for the anchor: bounds memory for any number of
                prompts. All together if not given. Same images up to rounding.
            shared_noise (`bool`, *optional*, defaults to `False`):
                All images start from the anchor's noise, or from image 0's if there is no anchor.
            style_reference ([`StyleReference`], *optional*):
                The style, from [`~AlignedGenMixin.encode_style`] or from an earlier call with `record_style=True`.
            style_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
                Instead: a picture, which is encoded at about the size of the images; see
                [`~AlignedGenMixin.encode_style`].
            style_prompt (`str`, *optional*, defaults to `""`):
                With `style_image`: what it shows and in which style. Worth giving.
            record_style (`bool`, *optional*, defaults to `False`):
                Also return the anchor as a [`StyleReference`], with which later calls of the same size and number of
                steps continue the series.

        Returns:
            The stock pipeline's output. With `record_style=True` an [`AlignedGenPipelineOutput`], or the tuple
            `(images, style_reference)` with `return_dict=False`.

        Raises:
            `ValueError`: On inputs out of range or that do not fit together; the text says what to change.

        Example:

        ```py
        >>> import torch
        >>> from alignext import AlignedGenPipeline

        >>> pipe = AlignedGenPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", dtype=torch.bfloat16)
        >>> pipe.enable_model_cpu_offload()
        >>> images = pipe(
        ...     ["a clock, watercolor", "a fox, watercolor", "a lighthouse, watercolor"],
        ...     generator=torch.Generator().manual_seed(0),
        ... ).images
        ```
        """
        stock = super().__call__
        bound = inspect.signature(stock).bind(*args, **kwargs)
        bound.apply_defaults()
        call: dict[str, Any] = bound.arguments
        off = share_start == share_end
        external = style_reference is not None or style_image is not None
        check_call(self, call, style_reference, style_image, style_prompt, anchor_index, record_style, off)
        if style_image is not None and not off:
            height, width = self._style_size(call)
            style_reference = self.encode_style(
                style_image,
                style_prompt or "",
                height=height,
                width=width,
                max_sequence_length=call["max_sequence_length"],
            )
        with aligned_attention(
            self.transformer,
            scheduler=self.scheduler,
            style_reference=style_reference,
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
            record=record_style,
        ) as sharing:
            if shared_noise:
                self._noise_row = 0 if external else anchor_index
            try:
                output = stock(**call)
            finally:
                self.__dict__.pop("_noise_row", None)
        if not record_style:
            return output
        style = sharing.recorded(self._scaling())
        if not call["return_dict"]:
            return *output, style
        return AlignedGenPipelineOutput(images=output.images, style_reference=style)

    @torch.no_grad()
    def encode_style(
        self,
        image,
        prompt: str = "",
        *,
        prompt_2: str | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 42,
        max_sequence_length: int = 512,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
    ) -> StyleReference:
        """
        Make a style of a picture: its latents, and the embedding of a text that describes it. Nothing is trained or
        inverted.

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
                One picture; arrays `(H, W, 3)` and tensors `(3, H, W)` in [0, 1], or uint8. It keeps its proportions
                and is resized to about `height * width` pixels, sides a multiple of 16.
            prompt (`str`, *optional*, defaults to `""`):
                What it shows and in which style, such as `"a lighthouse, watercolor"`.
            prompt_2 (`str`, *optional*):
                Other text for the second text encoder.
            height, width (`int`, *optional*):
                Size of the images that will take over the style; the stock default if not given.
            seed (`int`, *optional*, defaults to 42):
                Seed of the noise that is added to the picture, the same at all steps.
            max_sequence_length (`int`, *optional*, defaults to 512):
                Of the prompt, in tokens.
            prompt_embeds, pooled_prompt_embeds (`torch.Tensor`, *optional*):
                Embeddings of the prompt instead of `prompt`, with one row.

        Returns:
            [`StyleReference`]: For any number of calls, of any size and number of steps.

        Raises:
            `ValueError`: If `image` is not one picture, or the model is no text-to-image model.
        """
        default = self.default_sample_size * self.vae_scale_factor
        unit = 2 * self.vae_scale_factor
        picture = to_pil(image[0] if getattr(image, "ndim", 0) == 4 and len(image) == 1 else image)
        scale = ((height or default) * (width or default) / (picture.width * picture.height)) ** 0.5
        h, w = (max(1, round(side * scale / unit)) for side in (picture.height, picture.width))
        pixels = self.image_processor.preprocess(picture, h * unit, w * unit)
        x0 = self._clean_latents(pixels.to(self._execution_device, self.vae.dtype))
        given = {"prompt_2": prompt_2, "pooled_prompt_embeds": pooled_prompt_embeds}
        given = {name: value for name, value in given.items() if value is not None}  # not all models take them
        texts = self._texts(
            prompt=prompt, prompt_embeds=prompt_embeds, max_sequence_length=max_sequence_length, **given
        )
        self.maybe_free_model_hooks()
        return StyleReference(*texts, (h, w), x0=x0, seed=seed, scaling=self._scaling())

    def _style_size(self, call: dict) -> tuple[int | None, int | None]:
        """Height and width of the images of a call, for `encode_style`."""
        return call["height"], call["width"]

    def _clean_latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """`x0` of pixels in [-1, 1] with one row: the mode of the VAE's distribution, scaled and packed."""
        channels = 4 * self.vae.config.latent_channels
        if self.transformer.config.in_channels != channels:
            raise ValueError(
                f"The transformer takes {self.transformer.config.in_channels} channels, packed latents of the VAE "
                f"have {channels}: a style image needs a text-to-image checkpoint, not a Fill or Control one."
            )
        z = self.vae.encode(pixels).latent_dist.mode().float()
        z = (z - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor
        return self._pack_latents(z, *z.shape)

    def _texts(self, **given) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embedding and pooled embedding of a style's prompt, as `encode_prompt` makes them."""
        prompt_embeds, pooled_prompt_embeds, _ = self.encode_prompt(**given)
        return prompt_embeds, pooled_prompt_embeds

    def _scaling(self) -> tuple[float, float] | None:
        """Shift and scaling factor of the VAE's latents, where they are two numbers."""
        return self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor

    def prepare_latents(self, *args, **kwargs):
        """The stock method; with `shared_noise` all rows are the anchor's."""
        prepared = super().prepare_latents(*args, **kwargs)
        if self._noise_row is None:
            return prepared
        latents, *rest = prepared if isinstance(prepared, tuple) else (prepared,)
        latents = latents[self._noise_row].expand_as(latents).clone()
        return (latents, *rest) if rest else latents
