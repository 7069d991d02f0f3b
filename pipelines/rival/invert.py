# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Walking a picture up the DDIM chain with any stock Stable Diffusion pipeline."""

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from alignext.diffusion.latents import encode_images
from alignext.diffusion.pictures import as_list, to_pil
from alignext.diffusion.schedulers import rebuild_scheduler
from alignext.logs import pipeline_logger
from alignext.pipelines.rival.inputs import EMBEDDINGS
from alignext.pipelines.rival.inversion import RIVALInversion, model_fingerprint, scheduler_settings
from alignext.signatures import check_names


logger = pipeline_logger(__name__)

_Pipeline = DiffusionPipeline if TYPE_CHECKING else object


class InvertMixin(_Pipeline):
    """Adds `invert` to a stock Stable Diffusion pipeline, and the scheduler it runs on."""

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
            `ValueError`: Neither or both of `image` and `latents`; sizes or numbers of prompts that do not fit; a
                model or scheduler RIVAL cannot run on.
        """
        known = [*inspect.signature(InvertMixin.invert).parameters, *inspect.signature(self.encode_prompt).parameters]
        check_names(embeds_kwargs, known, "invert")
        self._check_model()
        if (image is None) == (latents is None):
            raise ValueError(
                f"Pass exactly one of `image` and `latents`, received {'neither' if image is None else 'both'}."
            )
        count, channels = len(as_list(image) if latents is None else latents), self.unet.config.in_channels
        if not count:
            raise ValueError("`image` must hold at least one picture, received none.")
        if latents is None and self.vae is None:
            raise ValueError("The pipeline has no VAE to encode `image` with. Load one, or pass `latents`.")
        if latents is not None and (latents.ndim != 4 or latents.shape[1] != channels):
            raise ValueError(f"`latents` must have shape (R, {channels}, h, w), received {tuple(latents.shape)}.")
        with self._ddim_scheduler():
            device = self._execution_device
            if latents is None:
                size = self._size(height, width)
                pixels = torch.cat([self._pixels(picture, *size) for picture in as_list(image)])
                latents = encode_images(self, pixels, sample=False)
            latents = latents.to(device, torch.float32)
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

            inverse = rebuild_scheduler(self.scheduler, DDIMInverseScheduler)
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
            if not chain[-1].isfinite().all():
                raise ValueError(
                    f"The inversion is not finite: the UNet overflows in {self.unet.dtype}. Load it in bfloat16 or "
                    "float32."
                )
            settings = scheduler_settings(self.scheduler)
            kept: dict[str, Any] = {name: embeds.get(name) for name in EMBEDDINGS}
        self.maybe_free_model_hooks()
        return RIVALInversion(
            latents=torch.stack(chain),
            timesteps=inverse.timesteps.cpu(),
            **kept,
            scheduler=settings,
            fingerprint=model_fingerprint(self.unet),
        )

    def _encode_reference(self, count: int, prompt, **kwargs) -> dict[str, torch.Tensor]:
        """Embeddings of the reference rows, each (R, ...), by `encode_prompt`; the null prompt is its own negative."""
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
        second = kwargs.get("prompt_2") or ""
        seconds = second if isinstance(second, list) else [second] * count
        null = [i for i, texts in enumerate(zip(prompt or [], seconds, strict=False)) if not any(texts)]
        for name in set(embeds) & {"prompt_embeds", "pooled_prompt_embeds"}:
            embeds[name] = embeds[name].clone()
            embeds[name][null] = embeds[f"negative_{name}"][null]
        return embeds

    def _added_conditions(self, embeds: dict, height: int, width: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """UNet conditions beside the text, as (unconditional, conditional) rows: only Stable Diffusion XL has any."""
        if embeds.get("pooled_prompt_embeds") is None:
            return {}
        pooled = embeds["pooled_prompt_embeds"]
        dim = pooled.shape[-1] if self.text_encoder_2 is None else self.text_encoder_2.config.projection_dim
        size = (height, width)
        ids = self._get_add_time_ids(size, (0, 0), size, dtype=pooled.dtype, text_encoder_projection_dim=dim)
        ids = ids.to(pooled.device).expand(len(pooled), -1)
        return {"text_embeds": (embeds["negative_pooled_prompt_embeds"], pooled), "time_ids": (ids, ids)}

    def _pixels(self, picture, height: int, width: int) -> torch.Tensor:
        """One picture of any kind to (1, 3, height, width) in [-1, 1]."""
        fits = isinstance(picture, torch.Tensor) and picture.shape == (3, height, width)
        if fits and 0 <= picture.min() and picture.max() <= 1:  # without rounding to 8 bits
            return self.image_processor.preprocess(picture[None], height, width)
        return self.image_processor.preprocess(to_pil(picture), height, width, resize_mode="crop")

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        sample = self.unet.config.sample_size
        default = (sample, sample) if isinstance(sample, int) else tuple(sample)
        size = (height or default[0] * self.vae_scale_factor, width or default[1] * self.vae_scale_factor)
        if size[0] % self.vae_scale_factor or size[1] % self.vae_scale_factor:
            raise ValueError(f"`height` and `width` must be multiples of {self.vae_scale_factor}, received {size}.")
        return size

    @contextmanager
    def _ddim_scheduler(self) -> Generator[None]:
        """Run on DDIM: swap any other scheduler for one made from its config, and put it back whatever happens."""
        original = self.scheduler
        if not isinstance(original, DDIMScheduler):
            logger.info(f"RIVAL runs on DDIM; {type(original).__name__} is put back afterwards.")
            # A config that lacks these keys would get defaults that clip latents or end the chain elsewhere.
            self.scheduler = rebuild_scheduler(
                original,
                DDIMScheduler,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                timestep_spacing="leading",
            )
        try:
            yield
        finally:
            if self.scheduler is not original:
                self.scheduler = original

    def _check_model(self) -> None:
        """Refuse a UNet or scheduler that the method cannot run on."""
        unet, vae = self.unet.config, None if self.vae is None else self.vae.config
        latent_channels = unet.out_channels if vae is None else vae.latent_channels
        if unet.in_channels != latent_channels:
            raise ValueError(
                f"The UNet takes {unet.in_channels} channels, latents have {latent_channels}: RIVAL needs a base "
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
            raise ValueError(
                f"`prediction_type` must be 'epsilon' or 'v_prediction', the scheduler has {prediction!r}. Load a "
                "checkpoint of one of these kinds."
            )
        if not isinstance(self.scheduler, DDIMScheduler):
            return
        if scheduler.timestep_spacing not in ("leading", "trailing"):
            raise ValueError(
                f"`timestep_spacing` must be 'leading' or 'trailing', received {scheduler.timestep_spacing!r}. "
                "Use `DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing='leading')`."
            )
        if scheduler.clip_sample or scheduler.thresholding:
            raise ValueError(
                "The scheduler clips the predicted sample (`clip_sample` or `thresholding` is True), which ruins "
                "latents. Use `DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, "
                "thresholding=False)`."
            )
