# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The denoiser's call inside a stock loop, recorded once and made again at other latents and noise levels.

A stock pipeline's `__call__` knows how its denoiser is called: positions, masks, pooled vectors, conditioning
pictures, the form of the timestep, the sign of the prediction. [`record_call`] runs it with a scheduler that steps
nowhere, reads all of that off, and returns it as a function `(latents, timesteps) -> prediction`. No family of models
is written down here.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from alignext.diffusion.calls import quiet_copy
from alignext.diffusion.reading import Record, read_call, rows
from alignext.diffusion.recorded_call import RecordedCall, in_dtype
from alignext.diffusion.schedulers import NoStepsScheduler
from alignext.signatures import nearest
from alignext.wrapping import wrapped


DENOISERS = ("unet", "transformer", "transformer_2")

# Two noise levels show what of a call depends on the level. Both are timesteps that every scheduler has.
_PROBES = (901.0, 301.0)


def record_call(
    pipe: Any, *, embedded_guidance: float | None = None, dtype: torch.dtype | None = None, **call: Any
) -> RecordedCall:
    """
    Run a stock pipeline's call without a step, and record how it calls its denoiser: without classifier-free guidance,
    one row per sample.

    Args:
        pipe (`DiffusionPipeline`): A stock pipeline, or a subclass. It stays as it is.
        embedded_guidance (`float`, *optional*): What a guidance-distilled denoiser is told; the pipeline's default
            otherwise.
        dtype (`torch.dtype`, *optional*): What the denoiser is in, where that is not what the pipeline hands it: its
            arguments are cast, and its output is cast back.
        **call: Arguments of the stock call, such as `prompt`, `image`, `height` and `width`. Everything that does not
            depend on latents and noise level is recorded.

    Returns:
        [`RecordedCall`]: The call as a function.

    Raises:
        ValueError: If the pipeline has no denoiser, guidance cannot be switched off, or the loop does more to latents,
            timestep or prediction than can be read off. The message says what.
    """
    records = _run(pipe, _probing_call(pipe, embedded_guidance, call), dtype)
    if len(records) != len(_PROBES) or any(rows(record) > len(record.sample) for record in records):
        raise ValueError(
            f"`pipe` must call its denoiser once a step, with a row per sample, when guidance is off, but "
            f"{type(pipe).__name__} called it {len(records)} times in {len(_PROBES)} steps."
        )
    return read_call(records, type(pipe).__name__, _constants(pipe))


@dataclass(frozen=True)
class Capture:
    """
    What a stock call does before its first evaluation of the denoiser.

    Attributes:
        args (`tuple`), kwargs (`dict`): Of the denoiser's call.
        schedule (`dict`): Arguments of `scheduler.set_timesteps` but the device, such as `sigmas` and `mu`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    schedule: dict[str, Any]


def capture_call(pipe: Any, *, embedded_guidance: float | None = None, guidance: bool = False, **call: Any) -> Capture:
    """
    The first call of the denoiser in a stock loop, and no more than that: the denoiser does not run.
    With what [`record_call`] read off once, this is all that another prompt, picture or schedule needs.

    Args:
        pipe (`DiffusionPipeline`): A stock pipeline, or a subclass. It stays as it is.
        embedded_guidance (`float`, *optional*): As of [`record_call`].
        guidance (`bool`, *optional*, defaults to `False`): Leave classifier-free guidance as the call has it.
        **call: Arguments of the stock call, `num_inference_steps` among them where the schedule matters.
    """
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stop(forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            raise _Captured

        return wrapper

    scheduler = _ProbingScheduler(pipe.scheduler)
    try:
        _call(pipe, scheduler, stop, call if guidance else _probing_call(pipe, embedded_guidance, call))
    except _Captured:
        return Capture(*seen[0], scheduler.schedule)
    raise ValueError(f"{type(pipe).__name__} did not call its denoiser.")


class _Captured(Exception):
    """Leaves a stock call."""


def stock_class(pipe: Any) -> Any:
    """The class of diffusers whose `__call__` is the stock loop of a pipeline."""
    return next((c for c in type(pipe).__mro__ if c.__module__.startswith("diffusers.")), type(pipe))


def check_call_arguments(call: Mapping[str, Any], loop: type, name: str) -> None:
    """
    Stock calls swallow what they do not know: it would be without effect.

    Args:
        call (`Mapping[str, Any]`): Arguments of the call of a pipeline, the prompt not among them.
        loop (`type`): The class of that call.
        name (`str`): Where they were given, for the message.

    Raises:
        ValueError: The call has no such argument, or it is the prompt.
    """
    known = [p.name for p in inspect.signature(loop.__call__).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for argument in call:
        if argument == "prompt":
            raise ValueError(f"{name} must not have `prompt`: prompts are given elsewhere. Leave it out.")
        if argument not in known[1:]:
            hint = nearest(argument, known[1:])
            raise ValueError(f"{name} must be arguments of {loop.__name__}, which has no `{argument}`{hint or '.'}")


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of a pipeline's stock call, by name."""
    return inspect.signature(stock_class(pipe).__call__).parameters


def denoisers(pipe: Any) -> dict[str, torch.nn.Module]:
    """The denoisers that a pipeline has, by name."""
    found = {name: getattr(pipe, name, None) for name in DENOISERS}
    return {name: part for name, part in found.items() if isinstance(part, torch.nn.Module)}


def _probing_call(pipe: Any, embedded_guidance: float | None, call: dict[str, Any]) -> dict[str, Any]:
    known = call_parameters(pipe)
    given = {"num_inference_steps": call.get("num_inference_steps", len(_PROBES))}
    given |= {"output_type": "latent", "return_dict": False}
    given |= without_guidance(pipe, known, embedded_guidance)
    return call | {name: value for name, value in given.items() if name in known}


def without_guidance(pipe: Any, known: Mapping[str, Any], embedded: float | None = None) -> dict[str, float]:
    """
    Arguments of the call that leave classifier-free guidance out. Where `guidance_scale` is what a distilled denoiser
    is told, it stays; elsewhere every loop takes 0 for no guidance, most of them also 1.

    Args:
        pipe (`DiffusionPipeline`): Its denoisers' configurations say whether they are distilled.
        known (`Mapping[str, Any]`): Arguments of its call; others than these are not for it.
        embedded (`float`, *optional*): What a distilled denoiser is told; the default of the call otherwise.
    """
    configs = [getattr(getattr(pipe, name, None), "config", {}) for name in DENOISERS]
    if any(config.get("guidance_embeds") or config.get("time_cond_proj_dim") for config in configs):
        told = {} if embedded is None else {"guidance_scale": embedded}
    else:
        told = {} if "true_cfg_scale" in known else {"guidance_scale": 0.0}
    return {name: value for name, value in {"true_cfg_scale": 1.0, **told}.items() if name in known}


def _constants(pipe: Any) -> tuple[float, ...]:
    """Numbers that timesteps are multiplied with or divided by."""
    scales = [getattr(getattr(pipe, name, None), "config", {}).get("timestep_scale") for name in DENOISERS]
    total = pipe.scheduler.config.get("num_train_timesteps", 1000)
    return tuple(dict.fromkeys((1000.0, float(total), *(float(scale) for scale in scales if scale))))


class _ProbingScheduler(NoStepsScheduler):
    """Steps nowhere, twice, and remembers what it was handed."""

    def __init__(self, base: Any) -> None:
        super().__init__(base)
        self.steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.schedule: dict[str, Any] = {}

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, timesteps=None, mu=None) -> None:
        given = {"num_inference_steps": num_inference_steps, "sigmas": sigmas, "timesteps": timesteps, "mu": mu}
        self.schedule = {name: value for name, value in given.items() if value is not None}
        whole = hasattr(self.base, "alphas_cumprod")
        self.timesteps = torch.tensor(_PROBES, dtype=torch.int64 if whole else torch.float32, device=device)
        self.sigmas = torch.tensor([*(t / 1000 for t in _PROBES), 0.0], device=device)
        self.num_inference_steps = len(_PROBES)

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.steps.append((model_output, timestep, sample))
        return SchedulerOutput(prev_sample=sample)  # also a tuple


def _call(pipe: Any, scheduler: Any, wrap: Callable[..., Any], call: dict[str, Any]) -> None:
    """The stock call with another scheduler and something around the denoisers."""
    twin = quiet_copy(pipe)
    twin.scheduler = scheduler
    found = [*denoisers(pipe).values()]
    if not found:
        raise ValueError(f"`pipe` must have one of {', '.join(DENOISERS)}, received a {type(pipe).__name__}.")
    # Stock code takes the device of the pipeline's first model for that of all; a VAE may be elsewhere.
    device = next((parameter.device for parameter in found[0].parameters()), None)
    twin.device_of_call = twin._execution_device if device is None or hasattr(found[0], "_hf_hook") else device
    twin.__class__ = _on_one_device(type(pipe))
    with ExitStack() as stack:
        for module in found:
            stack.enter_context(wrapped(module, wrap))
        stock_class(pipe).__call__(twin, **call)


@functools.cache
def _on_one_device(cls: type) -> type:
    """The pipeline's class, told its device: stock code would look for it in every layer, several times a call."""
    return type(cls.__name__, (cls,), {"_execution_device": property(lambda pipe: pipe.device_of_call)})


def _run(pipe: Any, call: dict[str, Any], dtype: torch.dtype | None) -> list[Record]:
    scheduler = _ProbingScheduler(pipe.scheduler)
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def recording(forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = {value.dtype for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)}
            run = forward if dtype is None or dtype in given else in_dtype(forward, dtype)
            output = run(*args, **kwargs)
            calls.append((args, kwargs, output))
            return output

        return wrapper

    _call(pipe, scheduler, recording, call)
    # Where the counts differ, `record_call` refuses, whatever is beside what.
    return [
        Record(*seen, torch.as_tensor(t), sample, stepped)
        for seen, (stepped, t, sample) in zip(calls, itertools.cycle(scheduler.steps), strict=False)
    ]
