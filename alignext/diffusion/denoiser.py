# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The network in the middle of a pipeline as a module that `Trainer` can take: one call for every architecture."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline
from peft.tuners.tuners_utils import BaseTunerLayer


# forward(module, latents, timesteps, prompt_embeds, pooled_prompt_embeds) -> prediction of the shape of `latents`
DenoiserForward = Callable[..., torch.Tensor]


def unet_forward(
    module: "DenoiserModule",
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    prompt_embeds: torch.Tensor,
    pooled_prompt_embeds: torch.Tensor | None = None,
) -> torch.Tensor:
    """`UNet2DConditionModel` of Stable Diffusion 1, 2 and XL; XL is told that pictures are whole and uncropped."""
    added = None
    if pooled_prompt_embeds is not None:
        h, w = (side * module.vae_scale_factor for side in latents.shape[-2:])
        # Original size, corner of the crop, target size.
        time_ids = latents.new_tensor([h, w, 0, 0, h, w]).expand(len(latents), 6)
        added = {"text_embeds": pooled_prompt_embeds, "time_ids": time_ids}
    return module.denoiser(latents, timesteps, prompt_embeds, added_cond_kwargs=added, return_dict=False)[0]


def sd3_forward(
    module: "DenoiserModule",
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    prompt_embeds: torch.Tensor,
    pooled_prompt_embeds: torch.Tensor,
) -> torch.Tensor:
    """`SD3Transformer2DModel`, which is told `1000 sigma`."""
    return module.denoiser(
        hidden_states=latents,
        encoder_hidden_states=prompt_embeds,
        pooled_projections=pooled_prompt_embeds,
        timestep=timesteps,
        return_dict=False,
    )[0]


def flux_forward(
    module: "DenoiserModule",
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    prompt_embeds: torch.Tensor,
    pooled_prompt_embeds: torch.Tensor,
) -> torch.Tensor:
    """`FluxTransformer2DModel`: packed latents, positions, `sigma` itself, and the guidance it was distilled with."""
    rows, channels, h, w = latents.shape
    guidance = None
    if module.denoiser.config.guidance_embeds:
        guidance = torch.full((rows,), module.embedded_guidance, device=latents.device, dtype=torch.float32)
    packed = module.denoiser(
        hidden_states=FluxPipeline._pack_latents(latents, rows, channels, h, w),
        encoder_hidden_states=prompt_embeds,
        pooled_projections=pooled_prompt_embeds,
        timestep=timesteps / 1000,
        img_ids=FluxPipeline._prepare_latent_image_ids(rows, h // 2, w // 2, latents.device, latents.dtype),
        txt_ids=latents.new_zeros(prompt_embeds.shape[1], 3),
        guidance=guidance,
        return_dict=False,
    )[0]
    return FluxPipeline._unpack_latents(packed, h, w, vae_scale_factor=1)


FORWARDS: dict[str, DenoiserForward] = {
    "UNet2DConditionModel": unet_forward,
    "SD3Transformer2DModel": sd3_forward,
    "FluxTransformer2DModel": flux_forward,
}


class DenoiserModule(torch.nn.Module):
    """
    The denoiser of a pipeline behind one signature. It has no attribute `config`, as trackers would take diffusers'
    for one of transformers, and none of the pipeline's other models, which would be trained and saved with it.

    Args:
        pipe (`DiffusionPipeline`): Of Stable Diffusion 1, 2, XL or 3, or Flux.
        forward (`Callable`, *optional*): How to call another architecture: `forward(module, latents, timesteps,
            prompt_embeds, pooled_prompt_embeds)` with the network at `module.denoiser`.
        embedded_guidance (`float`, *optional*, defaults to 3.5): What a guidance-distilled denoiser is told.

    Raises:
        ValueError: if the architecture is not known and there is no `forward`.
    """

    denoiser: Any
    dtype: torch.dtype

    def __init__(
        self, pipe: DiffusionPipeline, forward: DenoiserForward | None = None, embedded_guidance: float = 3.5
    ) -> None:
        super().__init__()
        self.denoiser = get_denoiser(pipe)
        name = type(self.denoiser).__name__
        if forward is None and name not in FORWARDS:
            raise ValueError(
                f"`model` has a {name}, none of {', '.join(FORWARDS)}. Pass a `denoiser_forward` that calls it."
            )
        self._call = FORWARDS[name] if forward is None else forward
        self.embedded_guidance = embedded_guidance
        self.vae_scale_factor = getattr(pipe, "vae_scale_factor", 8)
        self.dtype = self.denoiser.dtype  # asked before there are float32 adapters

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if pooled_prompt_embeds is not None:
            pooled_prompt_embeds = pooled_prompt_embeds.to(self.dtype)
        # One memory layout, or the same latents would be summed in another order wherever they come from.
        latents = latents.to(self.dtype).contiguous()
        prediction = self._call(self, latents, timesteps, prompt_embeds.to(self.dtype), pooled_prompt_embeds)
        return prediction.float()  # guidance and errors of policy and reference alike are not in half precision

    # The names that `Trainer` knows.

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        if every_n_layers != 1 or offload:
            raise ValueError("Denoisers checkpoint every block: `every_n_layers` and `offload` are not supported.")
        self.denoiser.enable_gradient_checkpointing()

    @property
    def is_activation_checkpointing(self) -> bool:
        return self.denoiser.is_gradient_checkpointing


def get_denoiser(pipe: DiffusionPipeline) -> Any:
    """The network of a pipeline that is trained: `unet` or `transformer`."""
    return getattr(pipe, denoiser_name(pipe))


def denoiser_name(pipe: DiffusionPipeline) -> str:
    """The attribute of a pipeline its denoiser is at, which is also the prefix of the keys of a LoRA file."""
    name = next((name for name in ("unet", "transformer") if getattr(pipe, name, None) is not None), None)
    if name is None:
        raise ValueError(f"`model` is a {type(pipe).__name__}, which has neither a `unet` nor a `transformer`.")
    return name


@contextmanager
def adapter_off(denoiser: torch.nn.Module, adapter: str) -> Generator[None]:
    """
    The denoiser without one of its adapters; the others stay active. `disable_adapters` and `set_adapter` would change
    `requires_grad`, and make a frozen adapter that is active trainable.
    """
    layers = [m for m in denoiser.modules() if isinstance(m, BaseTunerLayer) and adapter in m.active_adapters]
    active = [layer._active_adapter for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = [name for name in layer.active_adapters if name != adapter]
        yield
    finally:
        for layer, names in zip(layers, active, strict=True):
            layer._active_adapter = names
