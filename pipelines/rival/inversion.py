# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The inversion of reference pictures, to be used again, and how it is told whether it fits."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from alignext.hub_files import FileHubMixin


# What fixes the timesteps and noise levels of a DDIM chain.
SCHEDULER_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "rescale_betas_zero_snr",
)


def scheduler_settings(scheduler) -> dict:
    """The part of a scheduler's configuration that a chain depends on."""
    settings = {key: scheduler.config.get(key) for key in SCHEDULER_KEYS}
    betas = settings["trained_betas"]
    return settings | {"trained_betas": None if betas is None else [float(beta) for beta in betas]}


def model_fingerprint(model: torch.nn.Module) -> torch.Tensor:
    """
    The middle element of every parameter, float32: tells checkpoints of one architecture apart, in any precision.

    Adapter weights are left out, so an inversion stays usable when a LoRA is switched on; parameters that are
    offloaded to the meta device are NaN, which compares equal to anything.
    """
    values = [
        torch.full((), torch.nan) if p.is_meta else p.detach().flatten()[p.numel() // 2].float().cpu()
        for name, p in model.named_parameters()
        if "lora_" not in name
    ]
    return torch.stack(values)


def same_model(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if two fingerprints are of one model, up to half-precision rounding."""
    if a.shape != b.shape:
        return False
    known = a.isfinite() & b.isfinite()
    return torch.allclose(a[known], b[known], rtol=1e-2, atol=1e-4)


@dataclass(frozen=True)
class RIVALInversion(FileHubMixin):
    """
    The DDIM inversion chain of R reference pictures, as [`RIVALMixin.invert`] makes it. Reuse it for any number of
    calls; keep it with [`~RIVALInversion.save`] or on the Hub with `push_to_hub` and `from_hub`.

    Args:
        latents (`torch.Tensor` of shape `(T + 1, R, C, h, w)`, float32):
            `latents[0]` is the clean picture, `latents[k]` its latent at `timesteps[k - 1]`.
        timesteps (`torch.Tensor` of shape `(T,)`, int64):
            Ascending.
        prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `(R, L, D)`):
            Reference prompt and unconditional embedding, used again for the reference rows during generation.
        pooled_prompt_embeds, negative_pooled_prompt_embeds (`torch.Tensor` of shape `(R, D')`, *optional*):
            Pooled embeddings (Stable Diffusion XL).
        scheduler (`dict`):
            The scheduler settings the chain depends on.
        fingerprint (`torch.Tensor`):
            Of the UNet the chain was made with.
    """

    _file_name: ClassVar[str] = "inversion.safetensors"
    _method: ClassVar[str] = "alignext.pipelines.rival.mixin:RIVALMixin"
    _kind: ClassVar[str] = "Inversion"
    _use: ClassVar[str] = (
        "A picture inverted by a RIVAL pipeline of alignext, for variations with the base model and the number of "
        "steps that it was made with: `pipe(prompt, inversion=found)`."
    )
    _key: ClassVar[str] = "scheduler"

    latents: torch.Tensor
    timesteps: torch.Tensor
    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor | None
    negative_pooled_prompt_embeds: torch.Tensor | None
    scheduler: dict
    fingerprint: torch.Tensor

    @property
    def num_references(self) -> int:
        """R."""
        return self.latents.shape[1]

    @property
    def num_inference_steps(self) -> int:
        """T."""
        return len(self.timesteps)

    @property
    def is_null(self) -> bool:
        """True if the reference prompt is the null prompt: one reference row then serves both branches of guidance."""
        pairs = [
            (self.prompt_embeds, self.negative_prompt_embeds),
            (self.pooled_prompt_embeds, self.negative_pooled_prompt_embeds),
        ]
        return all(torch.equal(a, b) for a, b in pairs if a is not None and b is not None)

    def _plain(self) -> dict:
        return self.scheduler

    @classmethod
    def _fields(cls, plain: dict) -> dict[str, Any]:
        return {"scheduler": plain}


def check_inversion(pipe, inversion: RIVALInversion, steps: int, size: tuple[int, int], needs_size: bool) -> None:
    """Refuse an inversion that does not fit the call."""
    if inversion.num_inference_steps != steps:
        raise ValueError(
            f"`num_inference_steps` is {steps}, but `inversion` was made with {inversion.num_inference_steps}. "
            "Leave `num_inference_steps` out, or invert again."
        )
    made_with, now = inversion.scheduler, scheduler_settings(pipe.scheduler)
    differ = {k: (made_with.get(k), now[k]) for k in now if made_with.get(k) != now[k]}
    if differ:
        raise ValueError(f"`inversion` was made with another scheduler (then, now): {differ}. Invert again.")
    if not same_model(inversion.fingerprint, model_fingerprint(pipe.unet)):
        raise ValueError("`inversion` was made with another UNet. Invert again with this pipeline's `invert`.")
    if not inversion.latents[-1].isfinite().all():
        raise ValueError("`inversion` is not finite: a model overflowed in float16. Invert again in float32.")
    made_size = tuple(side * pipe.vae_scale_factor for side in inversion.latents.shape[-2:])
    if needs_size and size != made_size:
        raise ValueError(
            f"Inverted initial latents and inpainting need the reference's size {made_size}, received `height` and "
            f"`width` {size}. Leave them out, invert at that size, or use `init='shuffle'`."
        )
