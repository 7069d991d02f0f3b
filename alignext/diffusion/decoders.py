# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""From clean latents, as a pipeline's loop holds them, to images or videos in [0, 1]."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from alignext.diffusion.calls import quiet_copy, starting_from, take, watching_start
from alignext.diffusion.latents import decode_latents, float32_if_forced
from alignext.diffusion.recording import denoisers
from alignext.diffusion.schedulers import NoStepsScheduler
from alignext.wrapping import wrapped


def _image(pipe: Any, latents: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    return pipe.image_processor.postprocess(decode_latents(pipe, latents), output_type="pt")


def _sdxl(pipe: Any, latents: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    with float32_if_forced(pipe, (torch.float16,)):
        return _image(pipe, latents, call)


def _flux(pipe: Any, latents: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    size = [call[side] or pipe.default_sample_size * pipe.vae_scale_factor for side in ("height", "width")]
    return _image(pipe, pipe._unpack_latents(latents, *size, pipe.vae_scale_factor), call)


def _video(pipe: Any, video: torch.Tensor) -> torch.Tensor:
    return pipe.video_processor.postprocess_video(video, output_type="pt")


def _own(pipe: Any, latents: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    return _video(pipe, pipe.decode_latents(latents.to(pipe.vae.dtype)))


def _latte(pipe: Any, latents: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    return _video(pipe, pipe.decode_latents(latents.to(pipe.vae.dtype), latents.shape[2]))


def _cogvideox(pipe: Any, latents: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    frames = call["num_frames"] or pipe.transformer.config.sample_frames
    padding = latents.shape[1] - ((frames - 1) // pipe.vae_scale_factor_temporal + 1)  # CogVideoX 1.5
    return _own(pipe, latents[:, padding:], call)


def _wan(pipe: Any, latents: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    return _video(pipe, decode_latents(pipe, latents))


def _hunyuan_video(pipe: Any, latents: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    return _video(pipe, decode_latents(pipe, latents.to(pipe.vae.dtype)))


def _ltx(pipe: Any, latents: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    vae, space = pipe.vae, pipe.vae_spatial_compression_ratio
    frames = (call["num_frames"] - 1) // pipe.vae_temporal_compression_ratio + 1
    patches = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
    latents = pipe._unpack_latents(latents, frames, call["height"] // space, call["width"] // space, *patches)
    latents = pipe._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    timestep = None
    if vae.config.timestep_conditioning:
        level, scale = (call[k][0] if isinstance(call[k], list) else call[k] for k in _LTX_LEVELS)
        scale = level if scale is None else scale
        noise = randn_tensor(latents.shape, fixed_generator(), latents.device, latents.dtype)
        latents = (1 - scale) * latents + scale * noise
        timestep = torch.full((len(latents),), level, device=latents.device, dtype=latents.dtype)
    return _video(pipe, vae.decode(latents.to(vae.dtype), timestep, return_dict=False)[0])


_LTX_LEVELS = ("decode_timestep", "decode_noise_scale")
_DECODERS: dict[str, Callable[[Any, torch.Tensor, dict[str, Any]], torch.Tensor]] = {
    "StableDiffusionPipeline": _image,
    "StableDiffusionXLPipeline": _sdxl,
    "StableDiffusion3Pipeline": _image,
    "FluxPipeline": _flux,
    "AnimateDiffPipeline": _own,
    "LattePipeline": _latte,
    "CogVideoXPipeline": _cogvideox,
    "WanPipeline": _wan,
    "HunyuanVideoPipeline": _hunyuan_video,
    "LTXPipeline": _ltx,
    "TextToVideoSDPipeline": _own,
}


def decoder(pipe: Any, stock: Callable[..., Any], call: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    What turns clean latents of this call into images `(rows, 3, H, W)` or videos `(rows, F, 3, H, W)` in [0, 1],
    without safety checker and watermark: a blacked-out image is not a bad image. Pipelines that are not known by
    name run their own call without a step.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.
        stock (`Callable`): `stock(pipe, **call)`, the stock `__call__`.
        call (`dict`): All arguments of the call.
    """
    found = next((_DECODERS[c.__name__] for c in type(pipe).__mro__ if c.__name__ in _DECODERS), None)
    if found is not None:
        return lambda latents: found(pipe, latents, call)
    encoded: dict[int, Any] = {}
    return lambda latents: only_decode(pipe, stock, take(call, [0] * len(latents)), latents, "pt", encoded)[0]


def only_decode(
    pipe: Any,
    stock: Callable[..., Any],
    call: dict[str, Any],
    latents: torch.Tensor,
    output_type: str,
    encoded: dict[int, Any] | None = None,
) -> Any:
    """
    The stock call without a step, on a copy of the pipeline that shares its models: decodes `latents` as the stock
    call does, watermark and safety checker included.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.
        stock (`Callable`): `stock(pipe, **call)`, the stock `__call__`.
        call (`dict`): All arguments of the call, for as many samples as there are latents.
        latents (`torch.Tensor`): Clean latents, in the layout in which the loop steps on them.
        output_type (`str`): As the stock call takes it.
        encoded (`dict`, *optional*): Where what the text encoders gave is kept, by number of samples: decoding needs
            its shape alone, so that it is encoded once for many calls.
    """
    twin = _without_steps(pipe)
    call = call | {"output_type": output_type, "generator": fixed_generator()}  # some decoders draw noise
    if encoded is not None and hasattr(twin, "encode_prompt"):
        encode, rows = twin.encode_prompt, len(latents)

        def encode_once(*args: Any, **kwargs: Any) -> Any:
            if rows not in encoded:
                encoded[rows] = encode(*args, **kwargs)
            return encoded[rows]

        twin.encode_prompt = encode_once
    if not hasattr(twin, "prepare_latents"):
        with _no_evaluation(twin):
            return stock(twin, **call | {"latents": latents})
    with _no_evaluation(twin), starting_from(twin, latents):
        return stock(twin, **call | {"latents": None})


def initial_latents(pipe: Any, stock: Callable[..., Any], call: dict[str, Any]) -> torch.Tensor:
    """
    Initial latents that the stock call would draw, unit noise in the layout in which its loop steps on them.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.
        stock (`Callable`): `stock(pipe, **call)`, the stock `__call__`.
        call (`dict`): All arguments of the call.

    Raises:
        NotImplementedError: For a pipeline that evaluates its model all the same.
    """
    twin, call = _without_steps(pipe), call | {"latents": None, "output_type": "latent", "return_dict": False}
    if not hasattr(twin, "prepare_latents"):
        with _no_evaluation(twin):
            return stock(twin, **call)[0]
    with _no_evaluation(twin), watching_start(twin) as seen:
        stock(twin, **call)
    return seen[0]


def _without_steps(pipe: Any) -> Any:
    """A copy of the pipeline that shares its models, whose loop runs no step."""
    twin = quiet_copy(pipe)
    twin.scheduler = NoStepsScheduler(pipe.scheduler)
    return twin


@contextmanager
def _no_evaluation(pipe: Any) -> Generator[None]:
    """Within it, an evaluation of the model is an error: the loop of the call steps another scheduler than ours."""

    def refusing(forward: Callable[..., Any]) -> Callable[..., Any]:
        def refused(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(
                f"{type(pipe).__name__} cannot be searched in this call: it steps a scheduler of its own in the place "
                "of `pipe.scheduler`. Leave out what makes it do so, or search the stock pipeline."
            )

        return refused

    with ExitStack() as stack:
        for module in denoisers(pipe).values():
            stack.enter_context(wrapped(module, refusing))
        yield


def fixed_generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
