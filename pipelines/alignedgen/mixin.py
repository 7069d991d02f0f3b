# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignedGen as a mixin over a stock Flux pipeline. The denoising loop that runs is the stock one."""

import inspect
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

from alignext.diffusion.calls import number_of_outputs
from alignext.diffusion.latents import encode_images
from alignext.diffusion.pictures import to_pil
from alignext.hub import HubMixin
from alignext.methods import method
from alignext.pipelines.alignedgen.levers import Levers
from alignext.pipelines.alignedgen.sharing import aligned_attention
from alignext.pipelines.alignedgen.style import StyleReference
from alignext.signatures import check_names, show_stock_arguments


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
    _levers = Levers  # the arguments that are its own, for commands to list
    _noise_row: int | None = None

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        show_stock_arguments(cls, AlignedGenMixin, Levers)

    @torch.no_grad()
    def __call__(
        self,
        *args,
        shared_noise: bool = False,
        style_reference: StyleReference | None = None,
        style_image=None,
        style_prompt: str | None = None,
        record_style: bool = False,
        **kwargs,
    ):
        r"""
        The stock call, its images in one style. All arguments of the stock pipeline are accepted and mean the same.
        One image without a style, or `share_end=0`, is the stock call.

        Image `anchor_index` is the anchor: it is the image that the stock pipeline makes of the same call. The others,
        the targets, take over its style. With `style_reference` or `style_image` every image is a target. Prompts that
        name the style (`"a fox, watercolor"`) help.

        Args:
            **kwargs: The fields of [`Levers`], and the stock arguments.
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
        levers = Levers(**{f.name: kwargs.pop(f.name) for f in fields(Levers) if f.name in kwargs})
        bound = inspect.signature(stock).bind(*args, **kwargs)
        bound.apply_defaults()
        call: dict[str, Any] = bound.arguments
        external = style_reference is not None or style_image is not None
        images = number_of_outputs(call)
        if not images:
            raise ValueError("`prompt` must hold at least one text, received none.")
        self._check_style(style_reference, style_image, style_prompt, record_style)
        if not external and not 0 <= levers.anchor_index < images:
            raise ValueError(
                f"`anchor_index` must be in 0..{images - 1} for {images} images, received {levers.anchor_index}."
            )
        if images == 1 and not external and levers.isolate_anchor:  # an anchor alone
            levers = replace(levers, share_start=0.0, share_end=0.0)
        encodes = style_image is not None and not levers.off
        if self.vae is None and (encodes or call["output_type"] != "latent"):
            raise ValueError(
                "The pipeline has no VAE, but `style_image` and images as output need one. Load it, or pass a "
                "`style_reference` and `output_type='latent'`."
            )
        if encodes:
            with aligned_attention(self.transformer, **vars(levers)):
                pass  # it refuses what does not go together before anything is encoded
            style_reference = self._style_of(style_image, style_prompt or "", call)
        with aligned_attention(
            self.transformer,
            scheduler=self.scheduler,
            style_reference=style_reference,
            record=record_style,
            **vars(levers),
        ) as sharing:
            if shared_noise:
                self._noise_row = 0 if external else levers.anchor_index
            try:
                output = stock(**call)
            finally:
                self.__dict__.pop("_noise_row", None)
        if not record_style:
            return output
        style = sharing.recorded(self._scaling() if self.vae is not None else None)
        if not call["return_dict"]:
            return *output, style
        return AlignedGenPipelineOutput(images=output.images, style_reference=style)

    def _check_style(self, reference, style_image, style_prompt: str | None, record: bool) -> None:
        """Refuse styles that do not go together, before anything is computed."""
        if reference is not None and style_image is not None:
            raise ValueError("Pass either `style_reference` or `style_image`, received both.")
        if style_prompt is not None and style_image is None:
            raise ValueError(
                f"`style_prompt` {style_prompt!r} describes `style_image`, which was not passed. A `style_reference` "
                "carries its own text; put the style of generated images into their prompts."
            )
        if reference is not None and not isinstance(reference, StyleReference):
            raise ValueError(
                f"`style_reference` must be a `StyleReference`, received {type(reference).__name__}. For a picture "
                "use `style_image`, for a file `StyleReference.load(path)`."
            )
        if record and (reference is not None or style_image is not None):
            raise ValueError(
                "`record_style=True` records the anchor, but with `style_reference` or `style_image` there is none. "
                "Keep the style you have."
            )
        here = None if self.vae is None else self._scaling()
        if reference is not None and reference.scaling is not None and here is not None:
            if any(abs(a - b) > 1e-6 for a, b in zip(reference.scaling, here, strict=True)):
                raise ValueError(
                    f"`style_reference` comes from a VAE with shift and scaling factor {reference.scaling}, this one "
                    f"has {here}. Make it with this pipeline."
                )

    def _style_of(self, image, prompt: str, call: dict) -> StyleReference:
        """The style of a picture, for the images of a call and with its way of encoding texts."""
        height, width = self._style_size(call)
        known = inspect.signature(self.encode_prompt).parameters
        given = {name: call[name] for name in known if name in call and "prompt" not in name}
        if "lora_scale" in known:
            given["lora_scale"] = (call.get("joint_attention_kwargs") or {}).get("scale")
        return self.encode_style(image, prompt, height=height, width=width, **given)

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
        **encode_kwargs,
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
            encode_kwargs:
                Further arguments of the pipeline's `encode_prompt` (FLUX.1: `lora_scale`; FLUX.2:
                `text_encoder_out_layers`).

        Returns:
            [`StyleReference`]: For any number of calls, of any size and number of steps.

        Raises:
            `ValueError`: If `image` is not one picture, or the model is no text-to-image model.
        """
        known = [*inspect.signature(AlignedGenMixin.encode_style).parameters]
        check_names(encode_kwargs, [*known, *inspect.signature(self.encode_prompt).parameters], "encode_style")
        if self.vae is None:
            raise ValueError("The pipeline has no VAE to encode `image` with. Load one.")
        default = self.default_sample_size * self.vae_scale_factor
        unit = 2 * self.vae_scale_factor
        picture = to_pil(image[0] if getattr(image, "ndim", 0) == 4 and len(image) == 1 else image)
        scale = ((height or default) * (width or default) / (picture.width * picture.height)) ** 0.5
        h, w = (max(1, round(side * scale / unit)) for side in (picture.height, picture.width))
        pixels = self.image_processor.preprocess(picture, h * unit, w * unit)
        x0 = self._clean_latents(pixels)
        given = {"prompt_2": prompt_2, "pooled_prompt_embeds": pooled_prompt_embeds}
        given = {name: value for name, value in given.items() if value is not None}  # not all models take them
        texts = self._texts(
            prompt=prompt,
            prompt_embeds=prompt_embeds,
            max_sequence_length=max_sequence_length,
            **given,
            **encode_kwargs,
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
        z = encode_images(self, pixels, sample=False)
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
