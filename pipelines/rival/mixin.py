# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""RIVAL as a mixin over any stock Stable Diffusion pipeline. The denoising loop that runs is the stock one."""

import functools
import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from alignext.functional.rival import match_gaussian, shuffle_hole, shuffle_latents
from alignext.hub import HubMixin

from alignext.pipelines.rival.alignment import Alignment, Settings
from alignext.pipelines.rival.inputs import EMBEDDINGS, as_list, batch_size, match_prompts, own_prompts, to_pil, to_repaint
from alignext.pipelines.rival.inversion import SCHEDULER_KEYS, RIVALInversion, model_fingerprint, same_model


logger = logging.get_logger(__name__)

# The released configurations (50 steps). `reference_prompt` None: the generated row's own prompt.
PRESETS = {
    "variation": dict(guidance_scale=5.0, t_align=600, t_early=600, t_inject=1000, reference_prompt=None, init="shuffle"),
    "text2image": dict(guidance_scale=7.0, t_align=600, t_early=600, t_inject=960, reference_prompt="", init="shuffle"),
    "editing": dict(guidance_scale=7.0, t_align=600, t_early=600, t_inject=900, reference_prompt="", init="inverted"),
    "inpainting": dict(guidance_scale=7.0, t_align=600, t_early=600, t_inject=1000, reference_prompt="", init="shuffle"),
}
INITS = ("shuffle", "gaussian", "inverted", "noise")


class RIVALMixin(HubMixin):
    """
    Adds a reference picture to a stock Stable Diffusion pipeline: generated images read its self-attention keys and
    values and take over the channel statistics of its noise prediction. Everything else is inherited.

    Method: "Real-World Image Variation by Aligning Diffusion Inversion Chain",
    [arXiv 2305.18729](https://huggingface.co/papers/2305.18729).
    """

    _name = "RIVAL"
    _tag_names = ["alignext", "rival"]
    _paper = {
        "title": "Real-World Image Variation by Aligning Diffusion Inversion Chain",
        "id": "2305.18729",
        "citation": "@inproceedings{zhang2023rival,\n"
        "    title     = {{Real-World Image Variation by Aligning Diffusion Inversion Chain}},\n"
        "    author    = {Zhang, Yuechen and Xing, Jinbo and Lo, Eric and Jia, Jiaya},\n"
        "    booktitle = {Advances in Neural Information Processing Systems},\n"
        "    year      = {2023},\n"
        "}",
    }

    def __init_subclass__(cls, **kwargs) -> None:
        """Show the stock pipeline's arguments beside ours in `inspect.signature` and `help`."""
        super().__init_subclass__(**kwargs)
        ours = inspect.signature(RIVALMixin.__call__).parameters.values()
        stock = inspect.signature(super(RIVALMixin, cls).__call__).parameters.values()

        @functools.wraps(RIVALMixin.__call__)
        def call(self, *args, **kwargs):
            return RIVALMixin.__call__(self, *args, **kwargs)

        shown = [p for p in stock if p.kind is not p.VAR_KEYWORD] + [p for p in ours if p.kind is p.KEYWORD_ONLY]
        call.__signature__ = inspect.Signature(shown)
        cls.__call__ = call

    # ------------------------------------------------------------------------------------------------ inversion

    @torch.no_grad()
    def invert(
        self,
        image=None,
        prompt: str | list[str] = "",
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        *,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        cross_attention_kwargs: dict | None = None,
        clip_skip: int | None = None,
        **embeds_kwargs,
    ) -> RIVALInversion:
        r"""
        Walk the picture's latent up the DDIM chain, without guidance, and keep every latent on the way:

            z_k = sqrt(abar_k) (z_{k-1} - sqrt(1 - abar_{k-1}) e) / sqrt(abar_{k-1}) + sqrt(1 - abar_k) e,
            e = UNet(z_{k-1}, tau_k, prompt)

        Costs `num_inference_steps` UNet calls on R rows.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or list of them, *optional*):
                R pictures: PIL (any mode; transparency is laid on white), arrays `(H, W, 3)` uint8 or float in [0, 1],
                tensors `(3, H, W)` or `(B, 3, H, W)` in [0, 1]. Cropped to the aspect ratio and resized.
            prompt (`str` or `list[str]`, *optional*, defaults to `""`):
                What the picture shows; one for all or one per picture. `""` is the null prompt.
            num_inference_steps (`int`, *optional*, defaults to 50):
                T; calls that use the inversion run the same number of steps.
            height, width (`int`, *optional*, defaults to the pipeline's size):
                Pixels, multiples of the VAE's scale factor.
            latents (`torch.Tensor` of shape `(R, C, h, w)`, *optional*):
                Clean, scaled latents instead of `image`.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `(1 or R, L, D)`, *optional*):
                Instead of `prompt`; the negative one is the unconditional embedding of the reference rows.
            cross_attention_kwargs (`dict`, *optional*): As in the stock call.
            clip_skip (`int`, *optional*): As in the stock call.
            embeds_kwargs:
                Further arguments of the pipeline's `encode_prompt` (Stable Diffusion XL: `prompt_2`,
                `pooled_prompt_embeds`, `negative_pooled_prompt_embeds`).

        Returns:
            [`RIVALInversion`]

        Raises:
            `ValueError`: Neither or both of `image` and `latents`; sizes or numbers of prompts that do not fit; a model
            or scheduler RIVAL cannot run on.
        """
        self._check_model()
        if (image is None) == (latents is None):
            raise ValueError(
                f"Pass exactly one of `image` and `latents`, received {'neither' if image is None else 'both'}."
            )
        with self._ddim_scheduler():
            device = self._execution_device
            if latents is None:
                latents = self._encode_image(image, *self._size(height, width), device)
            latents = latents.to(device, torch.float32)
            channels = self.unet.config.in_channels
            if latents.ndim != 4 or latents.shape[1] != channels:
                raise ValueError(f"`latents` must have shape (R, {channels}, h, w), received {tuple(latents.shape)}.")
            count = len(latents)
            embeds = self._encode_reference(
                count,
                prompt,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                lora_scale=(cross_attention_kwargs or {}).get("scale"),
                clip_skip=clip_skip,
                **embeds_kwargs,
            )
            height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])
            added = {name: pair[1] for name, pair in self._added_conditions(embeds, height, width).items()}
            dtype = embeds["prompt_embeds"].dtype

            inverse = DDIMInverseScheduler.from_config(self.scheduler.config)
            inverse.set_timesteps(num_inference_steps, device=device)
            chain = [latents]
            for t in self.progress_bar(inverse.timesteps):
                noise = self.unet(
                    chain[-1].to(dtype),
                    t,
                    encoder_hidden_states=embeds["prompt_embeds"],
                    cross_attention_kwargs=cross_attention_kwargs,
                    added_cond_kwargs=added or None,
                    return_dict=False,
                )[0]
                chain.append(inverse.step(noise.float(), t, chain[-1], return_dict=False)[0])
            settings = _scheduler_settings(self.scheduler)
        self.maybe_free_model_hooks()
        return RIVALInversion(
            latents=torch.stack(chain),
            timesteps=inverse.timesteps.cpu(),
            **{name: embeds.get(name) for name in EMBEDDINGS},
            scheduler=settings,
            fingerprint=model_fingerprint(self.unet),
        )

    def _encode_reference(self, count: int, prompt, **kwargs) -> dict[str, torch.Tensor]:
        """Embeddings of the reference rows, each (R, ...): stock `encode_prompt`, the null prompt being its own negative."""
        for name in EMBEDDINGS:
            value = kwargs.get(name)
            if value is not None and len(value) not in (1, count):
                raise ValueError(f"`{name}` must have 1 or {count} rows (one per picture), received {len(value)}.")
            if value is not None:
                kwargs[name] = value.expand(count, *value.shape[1:])
        if self.text_encoder is None and (kwargs["prompt_embeds"] is None or kwargs["negative_prompt_embeds"] is None):
            raise ValueError(
                "The pipeline has no text encoder: make the inversion with `pipe.invert(..., prompt_embeds=..., "
                "negative_prompt_embeds=...)` and pass it as `inversion`."
            )
        if kwargs["prompt_embeds"] is not None:
            prompt = None
        elif isinstance(prompt, list) and len(prompt) != count:
            raise ValueError(
                f"`reference_prompt` must be one text or one per picture ({count}), received a list of {len(prompt)}."
            )
        else:
            prompt = prompt if isinstance(prompt, list) else [prompt] * count
        encoded = self.encode_prompt(
            prompt=prompt,
            device=self._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            **kwargs,
        )
        embeds = dict(zip(EMBEDDINGS, encoded, strict=False))  # two for Stable Diffusion, four for XL
        # The pipeline's own unconditional embedding is the null prompt (for Stable Diffusion XL that may be zeros).
        null = [i for i, text in enumerate(prompt or []) if text == ""]
        for name in set(embeds) & {"prompt_embeds", "pooled_prompt_embeds"}:
            embeds[name] = embeds[name].clone()
            embeds[name][null] = embeds[f"negative_{name}"][null]
        return embeds

    def _added_conditions(self, embeds: dict, height: int, width: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """UNet conditions beside the text, (unconditional, conditional) rows each: none but for Stable Diffusion XL."""
        if embeds.get("pooled_prompt_embeds") is None:
            return {}
        pooled = embeds["pooled_prompt_embeds"]
        dim = pooled.shape[-1] if self.text_encoder_2 is None else self.text_encoder_2.config.projection_dim
        size = (height, width)
        ids = self._get_add_time_ids(size, (0, 0), size, dtype=pooled.dtype, text_encoder_projection_dim=dim)
        ids = ids.to(pooled.device).expand(len(pooled), -1)
        return {"text_embeds": (embeds["negative_pooled_prompt_embeds"], pooled), "time_ids": (ids, ids)}

    def _encode_image(self, image, height: int, width: int, device: torch.device) -> torch.Tensor:
        """Pictures to clean latents (R, C, h, w), float32: mean of the posterior, no sampling."""
        pixels = torch.cat([self._pixels(picture, height, width) for picture in as_list(image)])
        vae, dtype = self.vae, self.vae.dtype
        upcast = dtype == torch.float16 and vae.config.force_upcast
        try:
            if upcast:
                vae.to(torch.float32)
            encoded = vae.encode(pixels.to(device, torch.float32 if upcast else dtype))
        finally:
            if upcast:
                vae.to(dtype)
        latents = retrieve_latents(encoded, sample_mode="argmax").float()
        if getattr(vae.config, "latents_mean", None) is not None and vae.config.latents_std is not None:
            mean, std = (
                torch.tensor(x, device=device).view(1, -1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std)
            )
            return (latents - mean) * vae.config.scaling_factor / std
        return latents * vae.config.scaling_factor

    def _pixels(self, picture, height: int, width: int) -> torch.Tensor:
        """One picture of any kind to (1, 3, height, width) in [-1, 1]."""
        if isinstance(picture, torch.Tensor) and picture.shape == (3, height, width):
            return self.image_processor.preprocess(picture[None], height, width)
        return self.image_processor.preprocess(to_pil(picture), height, width, resize_mode="crop")

    # --------------------------------------------------------------------------------------------------- checks

    def _check_model(self) -> None:
        unet, vae = self.unet.config, self.vae.config
        if unet.in_channels != vae.latent_channels:
            raise ValueError(
                f"The UNet takes {unet.in_channels} channels, the VAE makes {vae.latent_channels}: RIVAL needs a base "
                "text-to-image checkpoint. Load the base text-to-image model instead of an inpainting or edit model."
            )
        if unet.time_cond_proj_dim is not None:
            raise ValueError(
                "The UNet is guidance-distilled (`time_cond_proj_dim` is set, as in LCM); DDIM inversion needs a base "
                "text-to-image checkpoint. Load the base text-to-image model."
            )
        scheduler = self.scheduler.config
        prediction = scheduler.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"`prediction_type` must be 'epsilon' or 'v_prediction', the scheduler has {prediction!r}.")
        if not isinstance(self.scheduler, DDIMScheduler):
            return
        if scheduler.timestep_spacing not in ("leading", "trailing"):
            raise ValueError(
                f"`timestep_spacing` must be 'leading' or 'trailing', the scheduler has {scheduler.timestep_spacing!r}. "
                "Use `DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing='leading')`."
            )
        if scheduler.clip_sample or scheduler.thresholding:
            raise ValueError(
                "The scheduler clips the predicted sample (`clip_sample` or `thresholding` is True), which ruins latents. "
                "Use `DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, thresholding=False)`."
            )

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        sample = self.unet.config.sample_size
        default = (sample, sample) if isinstance(sample, int) else tuple(sample)
        size = (height or default[0] * self.vae_scale_factor, width or default[1] * self.vae_scale_factor)
        if size[0] % self.vae_scale_factor or size[1] % self.vae_scale_factor:
            raise ValueError(f"`height` and `width` must be multiples of {self.vae_scale_factor}, received {size}.")
        return size

    def _check_inversion(self, inversion: RIVALInversion, steps: int, size: tuple[int, int], needs_size: bool) -> None:
        if inversion.num_inference_steps != steps:
            raise ValueError(
                f"`num_inference_steps` is {steps}, but the inversion was made with {inversion.num_inference_steps}. "
                "Leave `num_inference_steps` out, or invert again."
            )
        made_with, now = inversion.scheduler, _scheduler_settings(self.scheduler)
        differ = {k: (made_with.get(k), now[k]) for k in now if made_with.get(k) != now[k]}
        if differ:
            raise ValueError(f"The inversion was made with another scheduler (inversion, now): {differ}. Invert again.")
        if not same_model(inversion.fingerprint, model_fingerprint(self.unet)):
            raise ValueError("The inversion was made with another UNet. Invert again with this pipeline's `invert`.")
        made_size = tuple(side * self.vae_scale_factor for side in inversion.latents.shape[-2:])
        if needs_size and size != made_size:
            raise ValueError(
                f"Inverted initial latents and inpainting need the reference's size {made_size}, received `height` and "
                f"`width` {size}. Leave them out, invert at that size, or use `init='shuffle'`."
            )

    # ----------------------------------------------------------------------------------------------- generation

    @torch.no_grad()
    def __call__(
        self,
        *args,
        reference_image=None,
        inversion: RIVALInversion | None = None,
        reference_prompt: str | list[str] | None = None,
        task: str = "variation",
        t_align: float | None = None,
        t_early: float | None = None,
        t_inject: float | None = None,
        init: str | None = None,
        mask_image=None,
        adain_strength: float = 1.0,
        reference_weight: float = 1.0,
        **kwargs,
    ):
        r"""
        The stock call, its images aligned with one or more reference pictures. All arguments of the stock pipeline are
        accepted and mean the same, but for the default `guidance_scale`, which is the task's. A scheduler other than
        DDIM is replaced by DDIM for the call.

        With R references and P prompts, the larger number must be a multiple of the smaller; images come prompt-major.
        For N images the UNet sees `T + (1 + 2N) T` rows with the null reference prompt, `T + (2 + 2N) T` otherwise (stock:
        `2N T`); with `inversion=` the first `T` fall away.

        Args:
            reference_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, list of them, or [`RIVALInversion`], *optional*):
                The picture(s); see [`~RIVALMixin.invert`] for the kinds. They are inverted at the output size.
            inversion ([`RIVALInversion`], *optional*):
                Instead of `reference_image`: what [`~RIVALMixin.invert`] returned. Sets `num_inference_steps` and the
                default size.
            reference_prompt (`str` or `list[str]`, *optional*):
                Prompt of the reference, for the inversion and for its rows during generation: `""` is the null prompt,
                `None` the task's default.
            task (`str`, *optional*, defaults to `"variation"`):
                Which preset fills in what is not given (guidance scale, t_align, t_early, t_inject, reference prompt,
                initial latents): `"variation"` (5, 600, 600, 1000, same as `prompt`, shuffle), `"text2image"` (7, 600,
                600, 960, null, shuffle), `"editing"` (7, 600, 600, 900, null, inverted), `"inpainting"` (7, 600, 600,
                1000, null, shuffle).
            t_align (`float`, *optional*):
                On the scale 0..`num_train_timesteps`: at or below this timestep attention reads own and reference keys;
                above it only the reference's. Smaller is closer to the picture.
            t_early (`float`, *optional*):
                Above this timestep the noise prediction takes the reference's channel statistics. Smaller is closer to
                the picture's colours.
            t_inject (`float`, *optional*):
                Above this timestep attention is the image's own. Smaller weakens the coupling of layout and content.
            init (`str`, *optional*):
                Where generation starts: `"shuffle"` (the inverted latent's positions permuted), `"gaussian"` (noise with
                its channel statistics), `"inverted"` (the inverted latent itself), `"noise"` (stock).
            mask_image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*):
                Inpainting only: white is repainted, black kept.
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
        bound = inspect.signature(stock).bind(*args, **kwargs)
        if isinstance(reference_image, RIVALInversion) and inversion is None:
            reference_image, inversion = None, reference_image
        self._check_call(bound.arguments, reference_image, inversion, reference_prompt, task, mask_image)
        if init is not None and bound.arguments.get("latents") is not None:
            raise ValueError(f"Pass either `latents` or `init`, received both (`init={init!r}`).")
        preset = PRESETS[task]
        given = {"t_align": t_align, "t_early": t_early, "t_inject": t_inject, "init": init}
        chosen = preset | {name: value for name, value in given.items() if value is not None}
        settings = _settings(
            *(chosen[name] for name in ("t_align", "t_early", "t_inject", "init")), adain_strength, reference_weight
        )
        bound.arguments.setdefault("guidance_scale", preset["guidance_scale"])
        if inversion is not None:
            bound.arguments.setdefault("num_inference_steps", inversion.num_inference_steps)
            for name, side in zip(("height", "width"), inversion.latents.shape[-2:], strict=True):
                bound.arguments[name] = bound.arguments.get(name) or side * self.vae_scale_factor
        bound.apply_defaults()
        call = dict(bound.arguments)
        call.update(call.pop("kwargs", {}))
        call["height"], call["width"] = size = self._size(call["height"], call["width"])

        references = inversion.num_references if inversion is not None else len(as_list(reference_image))
        match_prompts(call, references)
        stock_checks = inspect.signature(self.check_inputs).parameters
        self.check_inputs(**{name: call.get(name) for name in stock_checks})
        rows = batch_size(call) * call["num_images_per_prompt"]
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
                needs_size = repaint is not None or (chosen["init"] == "inverted" and call["latents"] is None)
                self._check_inversion(inversion, call["num_inference_steps"], size, needs_size)
            call["latents"] = self._initial_latents(call, chosen["init"], inversion, rows, repaint)
            alignment = Alignment(
                inversion,
                settings,
                images_per_reference=rows // references,
                added_cond_kwargs=self._added_conditions(
                    {name: getattr(inversion, name) for name in EMBEDDINGS},
                    *(side * self.vae_scale_factor for side in inversion.latents.shape[-2:]),
                ),
                repaint=repaint,
            )
            with alignment.installed(self.unet, self.scheduler):
                return stock(**call)

    def _check_call(self, call: dict, reference_image, inversion, reference_prompt, task: str, mask_image) -> None:
        self._check_model()
        if (reference_image is None) == (inversion is None):
            raise ValueError(
                "Pass exactly one of `reference_image` and `inversion`, received "
                f"{'neither' if inversion is None else 'both'}. For plain text-to-image use the stock pipeline."
            )
        if inversion is not None and reference_prompt is not None:
            raise ValueError(
                f"`reference_prompt` {reference_prompt!r} was passed with an inversion, which carries its own prompt. "
                "Leave it out, or invert again with that prompt."
            )
        if task not in PRESETS:
            raise ValueError(f"`task` must be one of {list(PRESETS)}, received {task!r}.")
        if (mask_image is not None) != (task == "inpainting"):
            raise ValueError(
                f"`mask_image` and `task='inpainting'` belong together, received `task={task!r}` "
                f"{'with' if mask_image is not None else 'without'} a mask."
            )
        for name in ("timesteps", "sigmas"):
            if call.get(name) is not None:
                raise ValueError(f"`{name}` is not supported: both chains run on DDIM's own grid. Use `num_inference_steps`.")
        extra = call.get("kwargs", {})
        if any(name.startswith("ip_adapter") and value is not None for name, value in (*call.items(), *extra.items())):
            raise NotImplementedError("IP-Adapter inputs are not supported by RIVAL: the reference rows would need them too.")
        steps = call.get("num_inference_steps", 50)
        limit = self.scheduler.config.num_train_timesteps
        if not isinstance(steps, int) or not 1 <= steps <= limit:
            raise ValueError(f"`num_inference_steps` must be an integer in 1..{limit}, received {steps!r}.")

    def _initial_latents(
        self, call: dict, init: str, inversion: RIVALInversion, rows: int, repaint: torch.Tensor | None
    ) -> torch.Tensor | None:
        """`x_T` of the generated rows (section "initial latent" of the paper); None leaves the draw to the stock loop."""
        h, w = (call[side] // self.vae_scale_factor for side in ("height", "width"))
        shape, latents, generator = (rows, self.unet.config.in_channels, h, w), call["latents"], call["generator"]
        if latents is not None and latents.shape != shape:
            raise ValueError(f"`latents` must have shape {shape}, received {tuple(latents.shape)}.")
        if isinstance(generator, list) and len(generator) != rows:
            raise ValueError(f"`generator` must be one or a list of {rows} (one per image), received {len(generator)}.")
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
            noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
            return torch.stack([match_gaussian(n, z) for n, z in zip(noise, z_T, strict=True)]).to(dtype)
        generators = generator if isinstance(generator, list) else [generator] * rows
        x_T = []
        for i, (z, g) in enumerate(zip(z_T, generators, strict=True)):
            x = shuffle_latents(z, (h, w), g)
            x_T.append(x if repaint is None else shuffle_hole(x, z, repaint[i, 0], g))
        return torch.stack(x_T).to(dtype)

    @contextmanager
    def _ddim_scheduler(self) -> Iterator[None]:
        """Run on DDIM: swap any other scheduler for one made from its config, and put it back whatever happens."""
        original = self.scheduler
        if not isinstance(original, DDIMScheduler):
            logger.info(f"RIVAL runs on DDIM; {type(original).__name__} is put back afterwards.")
            # A config that lacks these keys would get defaults that clip latents or end the chain elsewhere.
            self.scheduler = DDIMScheduler.from_config(
                original.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
            )
        try:
            yield
        finally:
            if self.scheduler is not original:
                self.scheduler = original


def _scheduler_settings(scheduler) -> dict:
    settings = {key: scheduler.config.get(key) for key in SCHEDULER_KEYS}
    betas = settings["trained_betas"]
    return settings | {"trained_betas": None if betas is None else [float(beta) for beta in betas]}


def _settings(t_align: float, t_early: float, t_inject: float, init: str, strength: float, weight: float) -> Settings:
    for name, value in (("t_align", t_align), ("t_early", t_early), ("t_inject", t_inject)):
        if not math.isfinite(value):
            raise ValueError(f"`{name}` must be finite (a timestep, 0..1000), received {value}.")
    if init not in INITS:
        raise ValueError(f"`init` must be one of {list(INITS)}, received {init!r}.")
    if not 0 <= strength <= 1:
        raise ValueError(f"`adain_strength` must lie in [0, 1], received {strength}.")
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"`reference_weight` must be finite and not negative, received {weight}.")
    if t_align > t_inject:
        warnings.warn(
            f"`t_align` {t_align} is above `t_inject` {t_inject}: no step reads the reference's keys alone.", stacklevel=4
        )
    return Settings(t_align, t_early, t_inject, strength, weight)
