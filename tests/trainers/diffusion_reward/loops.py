# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Sampling written out by hand for the four families, with a graph over its last K steps."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from ..diffusion_preference.tiny import SIZE


def _steps(pipe: Any, x: torch.Tensor, K: int, predict: Callable[..., torch.Tensor]) -> torch.Tensor:
    timesteps = pipe.scheduler.timesteps
    first = len(timesteps) - K
    for i, t in enumerate(timesteps):
        with torch.set_grad_enabled(i >= first):
            x = x.detach() if i == first else x
            x = pipe.scheduler.step(predict(x, t), t, x, return_dict=False)[0]
    return x


def _decoded(pipe: Any, x: torch.Tensor) -> torch.Tensor:
    config = pipe.vae.config
    image = pipe.vae.decode(x / config.scaling_factor + (config.shift_factor or 0.0)).sample
    return (image / 2 + 0.5).clamp(0, 1)


def sd(pipe: Any, prompts: list[str], noise: torch.Tensor, T: int, K: int, scale: float) -> torch.Tensor:
    known, empty = pipe.encode_prompt(prompts, "cpu", 1, True)
    both = torch.cat([empty, known])
    pipe.scheduler.set_timesteps(T)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        e_u, e_c = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=both).sample.chunk(2)
        return e_u + scale * (e_c - e_u)

    return _decoded(pipe, _steps(pipe, noise, K, predict))


def sdxl(pipe: Any, prompts: list[str], noise: torch.Tensor, T: int, K: int, scale: float) -> torch.Tensor:
    known, empty, pooled, empty_pooled = pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    both, texts = torch.cat([empty, known]), torch.cat([empty_pooled, pooled])
    size = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * len(both), dtype=known.dtype)
    pipe.scheduler.set_timesteps(T)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        more = {"text_embeds": texts, "time_ids": size}
        said = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=both, added_cond_kwargs=more).sample
        e_u, e_c = said.chunk(2)
        return e_u + scale * (e_c - e_u)

    return _decoded(pipe, _steps(pipe, noise, K, predict))


def sd3(pipe: Any, prompts: list[str], noise: torch.Tensor, T: int, K: int, scale: float) -> torch.Tensor:
    known, empty, pooled, empty_pooled = pipe.encode_prompt(
        prompts, None, None, device="cpu", do_classifier_free_guidance=True, max_sequence_length=16
    )
    both, texts = torch.cat([empty, known]), torch.cat([empty_pooled, pooled])
    pipe.scheduler.set_timesteps(T)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        said = pipe.transformer(
            torch.cat([x, x]), timestep=t.expand(len(both)), encoder_hidden_states=both, pooled_projections=texts
        ).sample
        e_u, e_c = said.chunk(2)
        return e_u + scale * (e_c - e_u)

    return _decoded(pipe, _steps(pipe, noise, K, predict))


def flux(pipe: Any, prompts: list[str], noise: torch.Tensor, T: int, K: int, scale: float) -> torch.Tensor:
    embeds, pooled, text_ids = pipe.encode_prompt(prompts, None, device="cpu", max_sequence_length=16)
    n, channels, height, width = noise.shape
    packed = noise.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    packed = packed.reshape(n, height * width // 4, 4 * channels)
    ids = torch.zeros(height // 2, width // 2, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height // 2)[:, None], torch.arange(width // 2)
    config = pipe.scheduler.config
    mu = calculate_shift(
        packed.shape[1], config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    pipe.scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / T, T).numpy(), mu=mu)
    guidance = torch.full((n,), scale)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return pipe.transformer(
            x, timestep=t.expand(n) / 1000, guidance=guidance, pooled_projections=pooled,
            encoder_hidden_states=embeds, txt_ids=text_ids, img_ids=ids.view(-1, 3),
        ).sample  # fmt: skip

    x = _steps(pipe, packed, K, predict)
    x = x.view(n, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(noise.shape)
    return _decoded(pipe, x)


LOOPS = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux}
