# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Walking a picture up the DDIM chain with any stock Stable Diffusion pipeline."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from diffusers.utils import logging

from alignext.diffusion.pictures import as_list, to_pil
from alignext.pipelines.rival.checks import check_model
from alignext.pipelines.rival.inputs import EMBEDDINGS
from alignext.pipelines.rival.inversion import RIVALInversion, model_fingerprint, scheduler_settings


logger = logging.get_logger(__name__)

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
        check_model(self)
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
                torch.tensor(x, device=device).view(1, -1, 1, 1)
                for x in (vae.config.latents_mean, vae.config.latents_std)
            )
            return (latents - mean) * vae.config.scaling_factor / std
        return latents * vae.config.scaling_factor

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
            self.scheduler = DDIMScheduler.from_config(
                original.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
            )
        try:
            yield
        finally:
            if self.scheduler is not original:
                self.scheduler = original
