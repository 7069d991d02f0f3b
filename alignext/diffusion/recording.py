# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
# More than 300 lines: one reading of a call, in the order in which it is read; the result has a file of its own.
"""The denoiser's call inside a stock loop, recorded once and made again at other latents and noise levels.

A stock pipeline's `__call__` knows how its denoiser is called: positions, masks, pooled vectors, conditioning
pictures, the form of the timestep, the sign of the prediction. [`record_call`] runs it with a scheduler that steps
nowhere, reads all of that off, and returns it as a function `(latents, timesteps) -> prediction`. No family of models
is written down here.
"""

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from alignext.diffusion.recorded_call import FORMS, Latents, Prediction, RecordedCall, Timestep, first_of, mapped
from alignext.diffusion.schedulers import NoStepsScheduler
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
    if len(records) != len(_PROBES) or any(_rows(record) > len(record.sample) for record in records):
        raise ValueError(
            f"`pipe` must call its denoiser once a step, with a row per sample, when guidance is off, but "
            f"{type(pipe).__name__} called it {len(records)} times in {len(_PROBES)} steps."
        )
    return _read(records, type(pipe).__name__, _constants(pipe))


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


def _probing_call(pipe: Any, embedded_guidance: float | None, call: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(stock_class(pipe).__call__).parameters
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


@dataclass
class _Record:
    """A step of the probing run: the denoiser's call and output, and what the scheduler was handed."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    t: torch.Tensor
    sample: torch.Tensor
    stepped: torch.Tensor


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
    twin = copy.copy(pipe)  # shares the models
    twin._progress_bar_config = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    twin.scheduler = scheduler
    found = [part for name in DENOISERS if isinstance(part := getattr(pipe, name, None), torch.nn.Module)]
    if not found:
        raise ValueError(f"`pipe` must have one of {', '.join(DENOISERS)}, received a {type(pipe).__name__}.")
    device = next((parameter.device for parameter in found[0].parameters()), None)
    if device is not None and device != twin._execution_device and not hasattr(found[0], "_hf_hook"):
        # Stock code takes the device of the pipeline's first model for that of all; a VAE may be elsewhere.
        where = {"_execution_device": property(lambda _: device)}
        twin.__class__ = type(type(pipe).__name__, (type(pipe),), where)
    with ExitStack() as stack:
        for module in found:
            stack.enter_context(wrapped(module, wrap))
        stock_class(pipe).__call__(twin, **call)


def _run(pipe: Any, call: dict[str, Any], dtype: torch.dtype | None) -> list[_Record]:
    scheduler = _ProbingScheduler(pipe.scheduler)
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def recording(forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = {value.dtype for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)}
            if dtype is None or dtype in given:
                output = forward(*args, **kwargs)
            else:
                back = next(kind for kind in (torch.bfloat16, torch.float16, torch.float32) if kind in given)
                output = forward(*mapped(args, cast), **mapped(kwargs, cast))
                output = mapped(output, lambda value: value.to(back))
            calls.append((args, kwargs, output))
            return output

        return wrapper

    def cast(value: torch.Tensor) -> torch.Tensor:
        return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value

    _call(pipe, scheduler, recording, call)
    # Where the counts differ, `record_call` refuses, whatever is beside what.
    return [
        _Record(*seen, torch.as_tensor(t), sample, stepped)
        for seen, (stepped, t, sample) in zip(calls, itertools.cycle(scheduler.steps), strict=False)
    ]


def _places(record: _Record) -> dict[int | str, Any]:
    return {**dict(enumerate(record.args)), **record.kwargs}


def _rows(record: _Record) -> int:
    return len(first_of(record.output))


def _read(records: Sequence[_Record], name: str, constants: Sequence[float]) -> RecordedCall:
    first = records[0]
    latents = next((found for p, v in _places(first).items() if (found := _latents_in(p, v, first.sample))), None)
    if latents is None:
        raise ValueError(f"The latents of {name} reach its denoiser in a way that cannot be read off its call.")
    timestep = _timestep_in(records, constants)
    if timestep is None:
        raise ValueError(f"The timestep of {name} reaches its denoiser in a way that cannot be read off its call.")
    prediction = _prediction_in(records)
    if prediction is None:
        if not all(r.stepped.isfinite().all() for r in records):
            raise ValueError(f"The denoiser of {name} gives numbers that are not finite, such as NaN.")
        raise ValueError(f"{name} changes its denoiser's prediction in a way that cannot be read off its call.")
    return RecordedCall(
        first.args, first.kwargs, latents, timestep, prediction, first.sample.shape, first.sample.dtype
    )


def _latents_in(place: int | str, value: Any, sample: torch.Tensor) -> Latents | None:
    """Where in this argument the loop's latents are, if they are."""
    if isinstance(value, list) and len(value) == len(sample) and all(isinstance(v, torch.Tensor) for v in value):
        dims = [d for d in range(value[0].ndim) if value[0].shape[d] == 1] if value else []
        found = (Latents(place, value[0].dtype, listed=dim) for dim in dims)
        return next((f for f in found if _equal(f(sample), value)), None)
    if not isinstance(value, torch.Tensor) or value.ndim != sample.ndim or not value.is_floating_point():
        return None
    longer = [d for d in range(value.ndim) if value.shape[d] != sample.shape[d]]
    if any(value.shape[d] < sample.shape[d] for d in longer) or len(longer) > 1:
        return None
    if not longer:
        found = Latents(place, value.dtype)
    else:
        rest = value.narrow(longer[0], sample.shape[longer[0]], value.shape[longer[0]] - sample.shape[longer[0]])
        found = Latents(place, value.dtype, longer[0], rest)
    return found if _equal(found(sample), value) else None


def _timestep_in(records: Sequence[_Record], constants: Sequence[float]) -> Timestep | None:
    """The one argument that differs between two noise levels of the same latents, and its form."""
    first, second = (_places(record) for record in records)
    for place, value in first.items():
        if not isinstance(value, torch.Tensor) or _equal(value, second[place]):
            continue
        for rounded in dict.fromkeys((records[0].t.dtype, value.dtype, torch.float32)):
            for form in FORMS:
                for constant in constants:
                    found = Timestep(place, form, value.shape, value.dtype, rounded, constant)
                    if all(_equal(found(r.t, r.sample), _places(r)[place]) for r in records):
                        return found
    return None


def _prediction_in(records: Sequence[_Record]) -> Prediction | None:
    stepped, output = records[0].stepped, first_of(records[0].output)
    whole = torch.stack(list(output)) if isinstance(output, list | tuple) else output
    squeezed = [None] if whole.ndim == stepped.ndim else [d for d in range(whole.ndim) if whole.shape[d] == 1]
    for dim in squeezed:
        for sign in (1, -1):
            found = Prediction(stepped.shape, stepped.dtype, sign, dim)
            if all(_equal(found(r.output), r.stepped) for r in records):
                return found
    return None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
