# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What a search cannot run with, refused before the first evaluation of the model."""

from typing import Any

from alignext.diffusion.recording import DENOISERS


# Arguments of stock calls that a search does not support.
_REFUSED = {
    "strength": "starts from a picture or video; only generation from noise can be searched",
    "denoising_end": "stops early; the search needs the whole schedule",
    "ip_adapter_image": "is not supported in a search",
    "ip_adapter_image_embeds": "is not supported in a search",
    "negative_ip_adapter_image": "is not supported in a search",
    "negative_ip_adapter_image_embeds": "is not supported in a search",
}


def check_call(call: dict[str, Any], lookahead_steps: int) -> None:
    """
    Raises:
        NotImplementedError: For arguments that a search does not support.
        ValueError: For values with which a search would go wrong.
    """
    for name, reason in _REFUSED.items():
        if call.get(name) is not None:
            raise NotImplementedError(f"`{name}` {reason}. Leave it out, or take a pipeline without it.")
    ends = [call.get("control_guidance_start", 0.0), call.get("control_guidance_end", 1.0)]
    for value, neutral in zip(ends, (0.0, 1.0), strict=True):
        if lookahead_steps > 1 and any(v != neutral for v in (value if isinstance(value, list) else [value])):
            raise ValueError(
                "ControlNet ranges count the evaluations of the lookahead, too: use `lookahead_steps=1`, or leave "
                "`control_guidance_start` and `control_guidance_end` out."
            )


def check_pipeline(pipe: Any) -> None:
    """
    Raises:
        NotImplementedError: For a pipeline without a scheduler of its own.
        ValueError: For a pipeline whose settings a search does not go with.
    """
    if getattr(pipe, "scheduler", None) is None:
        raise NotImplementedError(
            f"{type(pipe).__name__} has no `scheduler` to search with. Search the pipelines that it is made of."
        )
    for name in DENOISERS:
        if getattr(getattr(pipe, name, None), "is_cache_enabled", False):
            raise ValueError(
                f"`pipe.{name}` has a cache that expects one smooth path. Call `pipe.{name}.disable_cache()`."
            )
    if getattr(pipe, "free_init_enabled", False):
        raise ValueError("FreeInit runs the loop several times. Call `pipe.disable_free_init()`.")


def check_stepping(pipe: Any, scheduler: Any, stepped: bool = True) -> None:
    """
    Asked at every evaluation of the model, the first included: whether it is this scheduler that will step.

    Args:
        pipe (`DiffusionPipeline`): In the middle of its call.
        scheduler (scheduler): Its own, or the search.
        stepped (`bool`, *optional*, defaults to `True`): False if a whole call has shown that it was not.

    Raises:
        NotImplementedError: For a pipeline that steps another scheduler than `pipe.scheduler`.
    """
    planned = bool(getattr(scheduler, "plan", True))
    if pipe.scheduler is not scheduler or not planned or not stepped:
        name, other = type(pipe).__name__, type(pipe.scheduler).__name__
        steps = "a scheduler of its own" if pipe.scheduler is scheduler else f"{other}, a scheduler of its own"
        raise NotImplementedError(
            f"{name} cannot be searched in this call: it steps {steps} in the place of `pipe.scheduler`. Leave out "
            f"what makes it do so, or search the stock pipeline with `LatentSearch`."
        )
