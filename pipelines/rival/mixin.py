# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: half of them are the arguments of one call and what they mean.
"""RIVAL as a mixin over any stock Stable Diffusion pipeline. The denoising loop that runs is the stock one."""

import inspect
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from alignext.diffusion.calls import number_of_outputs
from alignext.diffusion.pictures import as_list
from alignext.functional.rival import match_gaussian, shuffle_hole, shuffle_latents
from alignext.hub import HubMixin
from alignext.methods import method
from alignext.pipelines.rival.alignment import Alignment
from alignext.pipelines.rival.inputs import (
    EMBEDDINGS,
    binary_mask,
    control_size,
    match_prompts,
    own_prompts,
    to_repaint,
)
from alignext.pipelines.rival.inversion import RIVALInversion, check_inversion
from alignext.pipelines.rival.invert import InvertMixin
from alignext.pipelines.rival.presets import settle
from alignext.signatures import show_stock_arguments


class RIVALMixin(InvertMixin, HubMixin):
    """
    Adds a reference picture to a stock Stable Diffusion pipeline: generated images read its self-attention keys and
    values and take over the channel statistics of its noise prediction. Everything else is inherited.

    Method: "Real-World Image Variation by Aligning Diffusion Inversion Chain",
    [arXiv 2305.18729](https://huggingface.co/papers/2305.18729).
    """

    default_task = "variation"
    _name = "RIVAL"
    _tag_names = ["alignext", "rival"]
    _paper = method("RIVAL").paper

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        show_stock_arguments(cls, RIVALMixin)

    # ----------------------------------------------------------------------------------------------- generation

    @torch.no_grad()
    def __call__(
        self,
        *args,
        reference_image=None,
        inversion: RIVALInversion | None = None,
        reference_prompt: str | list[str] | None = None,
        task: str | None = None,
        t_align: float | None = None,
        t_early: float | None = None,
        t_inject: float | None = None,
        init: str | None = None,
        mask_image=None,
        keep_pixels: bool = False,
        adain_strength: float = 1.0,
        reference_weight: float = 1.0,
        **kwargs,
    ):
        r"""
        The stock call, its images aligned with one or more reference pictures. All arguments of the stock pipeline are
        accepted and mean the same, but for the default `guidance_scale`, which is the task's. A scheduler other than
        DDIM is replaced by DDIM for the call. Without a reference it is the stock call.

        With R references and P prompts, the larger number must be a multiple of the smaller; images come prompt-major.
        For N images the UNet sees `T + (1 + 2N) T` rows with the null reference prompt, `T + (2 + 2N) T` otherwise
        (stock: `2N T`); with `inversion=` the first `T` fall away.

        Args:
            reference_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or list of them, *optional*):
                The picture(s), or a [`RIVALInversion`]; see [`~RIVALMixin.invert`] for
                the kinds. They are inverted at the output size.
            inversion ([`RIVALInversion`], *optional*):
                Instead of `reference_image`: what [`~RIVALMixin.invert`] returned. Sets `num_inference_steps` and the
                default size.
            reference_prompt (`str` or `list[str]`, *optional*):
                Prompt of the reference, for the inversion and for its rows during generation: `""` is the null prompt,
                `None` the task's default.
            task (`str`, *optional*, defaults to `"variation"`, with ControlNet `"controlnet"`):
                Which preset fills in what is not given (guidance scale, t_align, t_early, t_inject, reference prompt,
                initial latents): `"variation"` (5, 600, 600, 1000, same as `prompt`, shuffle), `"text2image"` (7, 600,
                600, 960, null, shuffle), `"editing"` (7, 600, 600, 900, null, inverted), `"inpainting"` (7, 600, 600,
                1000, null, shuffle), `"controlnet"` (7, 600, 400, 1000, null, shuffle), `"dreambooth"`, for a
                checkpoint tuned on a subject (7, 600, 600, 1000, null, shuffle).
            t_align (`float`, *optional*):
                On the scale 0..`num_train_timesteps`: at or below this timestep attention reads own and reference
                keys; above it only the reference's. Smaller is closer to the picture.
            t_early (`float`, *optional*):
                Above this timestep the noise prediction takes the reference's channel statistics. Smaller is closer to
                the picture's colours.
            t_inject (`float`, *optional*):
                Above this timestep attention is the image's own. Smaller weakens the coupling of layout and content.
            init (`str`, *optional*):
                Where generation starts: `"shuffle"` (the inverted latent's positions permuted), `"gaussian"` (noise
                with its channel statistics), `"inverted"` (the inverted latent itself), `"noise"` (stock).
            mask_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
                Inpainting only: white is repainted, black kept.
            keep_pixels (`bool`, *optional*, defaults to `False`):
                Inpainting only: paste the pixels of `reference_image` outside the mask over the result, which else
                shows them as the VAE decodes them. For `output_type="pil"`.
            adain_strength (`float`, *optional*, defaults to 1.0):
                Strength of the noise alignment in [0, 1]; 1 is the paper.
            reference_weight (`float`, *optional*, defaults to 1.0):
                Weight of the reference's tokens where both are read; 1 is the paper, 0 drops them.

        Returns:
            The stock pipeline's output, generated images only.

        Raises:
            `ValueError`: On inputs that do not fit together; the text says what to change.
            `NotImplementedError`: With IP-Adapter inputs.

        Example:

        ```py
        >>> import torch
        >>> from alignext import RIVALPipeline, mini

        >>> pipe = RIVALPipeline.from_pretrained(mini.path("sd"))
        >>> picture = mini.pictures("unseen_drawing")[0]
        >>> images = pipe(
        ...     picture.caption,
        ...     reference_image=picture.image,
        ...     num_images_per_prompt=4,
        ...     generator=torch.Generator().manual_seed(0),
        ... ).images
        ```
        """
        stock = super().__call__
        if isinstance(reference_image, RIVALInversion) and inversion is None:
            reference_image, inversion = None, reference_image
        if reference_image is None and inversion is None:
            given = {"reference_prompt": reference_prompt, "task": task, "init": init, "mask_image": mask_image}
            given |= {"t_align": t_align, "t_early": t_early, "t_inject": t_inject, "keep_pixels": keep_pixels or None}
            strengths = {"adain_strength": adain_strength, "reference_weight": reference_weight}
            given |= {name: value for name, value in strengths.items() if value != 1}
            if given := [name for name, value in given.items() if value is not None]:
                raise ValueError(
                    "Pass exactly one of `reference_image` and `inversion`, received neither, but "
                    f"`{'`, `'.join(given)}`. Without any of these, it is the stock call."
                )
            return stock(*args, **kwargs)
        bound = inspect.signature(stock).bind(*args, **kwargs)
        task = task or self.default_task
        thresholds = {"t_align": t_align, "t_early": t_early, "t_inject": t_inject}
        preset, levers = settle(task, init, adain_strength, reference_weight, **thresholds)
        self._check_call(bound.arguments, reference_image, inversion, reference_prompt, task, mask_image, keep_pixels)
        call, size = self._stock_call(bound, preset, inversion)
        references = inversion.num_references if inversion is not None else len(as_list(reference_image))
        match_prompts(call, references)
        stock_checks = inspect.signature(self.check_inputs).parameters
        self.check_inputs(**{name: call.get(name) for name in stock_checks})
        rows = number_of_outputs(call)
        latent_size = tuple(side // self.vae_scale_factor for side in size)
        _check_draws(call, (rows, self.unet.config.in_channels, *latent_size), init)
        repaint = None
        if mask_image is not None:
            repaint = to_repaint(mask_image, size, self.vae_scale_factor, rows).to(self._execution_device)

        with self._ddim_scheduler():
            if inversion is None:
                prompt = preset["reference_prompt"] if reference_prompt is None else reference_prompt
                inversion = self.invert(
                    reference_image,
                    num_inference_steps=call["num_inference_steps"],
                    height=size[0],
                    width=size[1],
                    cross_attention_kwargs=call["cross_attention_kwargs"],
                    clip_skip=call["clip_skip"],
                    **(own_prompts(call, references) if prompt is None else {"prompt": prompt}),
                )
            else:
                needs_size = repaint is not None or (preset["init"] == "inverted" and call["latents"] is None)
                check_inversion(self, inversion, call["num_inference_steps"], size, needs_size)
            call["latents"] = self._initial_latents(call, preset["init"], inversion, rows, repaint)
            alignment = Alignment(
                inversion,
                levers,
                images_per_reference=rows // references,
                added_cond_kwargs=self._added_conditions(
                    {name: getattr(inversion, name) for name in EMBEDDINGS},
                    *(side * self.vae_scale_factor for side in inversion.latents.shape[-2:]),
                ),
                repaint=repaint,
                guider=getattr(self, "guider", None),
            )
            with alignment.installed(self.unet, self.scheduler):
                output = stock(**call)
        if keep_pixels:
            self._paste_kept_pixels(output[0], reference_image, mask_image, size)
        return output

    def _check_call(
        self, call: dict, reference_image, inversion, reference_prompt, task: str, mask_image, keep_pixels: bool
    ) -> None:
        """Refuse arguments that do not belong together, before anything is computed."""
        self._check_model()
        if reference_image is not None and inversion is not None:
            raise ValueError("Pass exactly one of `reference_image` and `inversion`, received both.")
        if reference_image is not None and not len(as_list(reference_image)):
            raise ValueError("`reference_image` must hold at least one picture, received none.")
        if self.vae is None and (reference_image is not None or call.get("output_type", "pil") != "latent"):
            raise ValueError(
                "The pipeline has no VAE, but `reference_image` and images as output need one. Load it, or pass an "
                "`inversion` and `output_type='latent'`."
            )
        if inversion is not None and reference_prompt is not None:
            raise ValueError(
                f"`reference_prompt` {reference_prompt!r} was passed with an inversion, which carries its own prompt. "
                "Leave it out, or invert again with that prompt."
            )
        if (mask_image is not None) != (task == "inpainting"):
            raise ValueError(
                f"`mask_image` and `task='inpainting'` belong together, received `task={task!r}` "
                f"{'with' if mask_image is not None else 'without'} a mask. Pass both or neither."
            )
        if keep_pixels and (mask_image is None or reference_image is None or call.get("output_type", "pil") != "pil"):
            raise ValueError(
                "`keep_pixels=True` pastes pixels of `reference_image` outside `mask_image`, received "
                f"`reference_image` {type(reference_image).__name__}, `mask_image` {type(mask_image).__name__} and "
                f"`output_type={call.get('output_type', 'pil')!r}`. Pass both pictures and `output_type='pil'`."
            )
        for name in ("timesteps", "sigmas"):
            if call.get(name) is not None:
                raise ValueError(
                    f"`{name}` is not supported, received {call[name]!r}: both chains run on DDIM's own grid. Use "
                    "`num_inference_steps`."
                )
        for name, value in (*call.items(), *call.get("kwargs", {}).items()):
            if name.startswith("ip_adapter") and value is not None:
                raise NotImplementedError(
                    f"`{name}` is not supported by RIVAL, received {type(value).__name__}: the reference rows would "
                    "need it too. Leave it out; the reference picture takes its place."
                )
        if call.get("num_images_per_prompt", 1) < 1:
            raise ValueError(f"`num_images_per_prompt` must be 1 or more, received {call['num_images_per_prompt']}.")
        steps = call.get("num_inference_steps", 50)
        limit = self.scheduler.config.num_train_timesteps
        if not isinstance(steps, int) or not 1 <= steps <= limit:
            raise ValueError(f"`num_inference_steps` must be an integer in 1..{limit}, received {steps!r}.")

    def _stock_call(self, bound: inspect.BoundArguments, preset: dict, inversion) -> tuple[dict, tuple[int, int]]:
        """All arguments of the stock call, what is not given filled in from preset and inversion; and its size."""
        given = bound.arguments
        given.setdefault("guidance_scale", preset["guidance_scale"])
        if inversion is not None:
            given.setdefault("num_inference_steps", inversion.num_inference_steps)
            default = tuple(side * self.vae_scale_factor for side in inversion.latents.shape[-2:])
        elif given.get("image") is not None:  # ControlNet: the stock default
            default = control_size(self.control_image_processor, given["image"])
        else:
            default = (None, None)
        size = self._size(given.get("height") or default[0], given.get("width") or default[1])
        bound.apply_defaults()
        call: dict[str, Any] = dict(bound.arguments) | {"height": size[0], "width": size[1]}
        networks = getattr(getattr(self, "controlnet", None), "nets", [None])
        for name in {"control_guidance_start", "control_guidance_end"} & call.keys():
            if not isinstance(call[name], list):  # `check_inputs` wants one per ControlNet
                call[name] = [call[name]] * len(networks)
        return call | call.pop("kwargs", {}), size

    def _paste_kept_pixels(self, images: list, reference_image, mask_image, size: tuple[int, int]) -> None:
        """Replace each image in place by one with the reference's own pixels where the mask is black."""
        pixels = torch.cat([self._pixels(picture, *size) for picture in as_list(reference_image)])
        originals = self.image_processor.postprocess(pixels, output_type="pil")
        masks = binary_mask(mask_image, size, self.vae_scale_factor)
        masks = self.image_processor.postprocess(masks, output_type="pil", do_denormalize=[False] * len(masks))
        for i, image in enumerate(images):
            mask, original = (x[i * len(x) // len(images)] for x in (masks, originals))
            images[i] = self.image_processor.apply_overlay(mask, original, image)

    def _initial_latents(
        self, call: dict, init: str, inversion: RIVALInversion, rows: int, repaint: torch.Tensor | None
    ) -> torch.Tensor | None:
        """`x_T` of the generated rows; None leaves the draw to the stock loop."""
        h, w = (call[side] // self.vae_scale_factor for side in ("height", "width"))
        latents, generator = call["latents"], call["generator"]
        # The stock loop takes given latents as they are, so they must come in the text embedding's dtype.
        encoder = getattr(self, "text_encoder_2", None) or self.text_encoder or self.unet
        device, dtype = self._execution_device, encoder.dtype
        if call.get("prompt_embeds") is not None:
            dtype = call["prompt_embeds"].dtype
        if latents is not None:
            return latents.to(device, dtype)
        if init == "noise":
            return None
        z_T = inversion.latents[-1].to(device).repeat_interleave(rows // inversion.num_references, dim=0)
        if init == "inverted":
            return z_T.to(dtype)
        if init == "gaussian":
            noise = randn_tensor((rows, z_T.shape[1], h, w), generator=generator, device=device, dtype=torch.float32)
            return torch.stack([match_gaussian(n, z) for n, z in zip(noise, z_T, strict=True)]).to(dtype)
        generators = generator if isinstance(generator, list) else [generator] * rows
        x_T = []
        for i, (z, g) in enumerate(zip(z_T, generators, strict=True)):
            x = shuffle_latents(z, (h, w), g)
            x_T.append(x if repaint is None else shuffle_hole(x, z, repaint[i, 0], g))
        return torch.stack(x_T).to(dtype)


def _check_draws(call: dict, shape: tuple[int, ...], init: str | None) -> None:
    """Refuse initial latents and generators that do not fit the images to make."""
    latents, generator = call.get("latents"), call.get("generator")
    if latents is not None and init is not None:
        raise ValueError(f"Pass either `latents` or `init`, received both (`init={init!r}`).")
    if latents is not None and latents.shape != shape:
        raise ValueError(f"`latents` must have shape {shape}, received {tuple(latents.shape)}.")
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(
            f"`generator` has {len(generator)} entries for {shape[0]} images. Pass one generator, or one per image."
        )
