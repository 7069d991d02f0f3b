# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Presets of the tasks, and what the pipelines refuse at the door."""

import math
import warnings
from typing import Any

from diffusers import DDIMScheduler

from alignext.pipelines.rival.alignment import Settings
from alignext.pipelines.rival.inversion import RIVALInversion, model_fingerprint, same_model, scheduler_settings


def _preset(guidance_scale: float, t_early: float, t_inject: float, reference_prompt: str | None, init: str) -> dict:
    return locals() | {"t_align": 600}


# The released configurations (50 steps). `reference_prompt` None: the generated row's own prompt.
PRESETS: dict[str, dict[str, Any]] = {
    "variation": _preset(5.0, 600, 1000, None, "shuffle"),
    "text2image": _preset(7.0, 600, 960, "", "shuffle"),
    "editing": _preset(7.0, 600, 900, "", "inverted"),
    "inpainting": _preset(7.0, 600, 1000, "", "shuffle"),
    "controlnet": _preset(7.0, 400, 1000, "", "shuffle"),
    "dreambooth": _preset(7.0, 600, 1000, "", "shuffle"),
}
INITS = ("shuffle", "gaussian", "inverted", "noise")


def check_model(pipe) -> None:
    """Refuse a UNet or scheduler that the method cannot run on."""
    unet, vae = pipe.unet.config, pipe.vae.config
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
    scheduler = pipe.scheduler.config
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"`prediction_type` must be 'epsilon' or 'v_prediction', the scheduler has {prediction!r}. Load a "
            "checkpoint of one of these kinds."
        )
    if not isinstance(pipe.scheduler, DDIMScheduler):
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
    made_size = tuple(side * pipe.vae_scale_factor for side in inversion.latents.shape[-2:])
    if needs_size and size != made_size:
        raise ValueError(
            f"Inverted initial latents and inpainting need the reference's size {made_size}, received `height` and "
            f"`width` {size}. Leave them out, invert at that size, or use `init='shuffle'`."
        )


def check_call(
    pipe, call: dict, reference_image, inversion, reference_prompt, task: str, mask_image, keep_pixels: bool
) -> None:
    """Refuse arguments that do not belong together, before anything is computed."""
    check_model(pipe)
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
                f"`{name}` is not supported by RIVAL, received {type(value).__name__}: the reference rows would need "
                "it too. Leave it out; the reference picture takes its place."
            )
    steps = call.get("num_inference_steps", 50)
    limit = pipe.scheduler.config.num_train_timesteps
    if not isinstance(steps, int) or not 1 <= steps <= limit:
        raise ValueError(f"`num_inference_steps` must be an integer in 1..{limit}, received {steps!r}.")


def check_draws(call: dict, shape: tuple[int, ...], init: str | None) -> None:
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


def make_settings(preset: dict[str, Any], strength: float, weight: float) -> Settings:
    """The knobs of a call, checked."""
    t_align, t_early, t_inject, init = (preset[name] for name in ("t_align", "t_early", "t_inject", "init"))
    for name in ("t_align", "t_early", "t_inject"):
        value = preset[name]
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
            f"`t_align` {t_align} is above `t_inject` {t_inject}: no step reads the reference's keys alone.",
            stacklevel=4,
        )
    return Settings(t_align, t_early, t_inject, strength, weight)
