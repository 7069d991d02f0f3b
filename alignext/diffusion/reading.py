# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What can be read off two steps of a stock loop: where latents and noise level are in the denoiser's call, and what
becomes of its output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alignext.diffusion.recorded_call import FORMS, Latents, Prediction, RecordedCall, Timestep, first_of


@dataclass
class Record:
    """A step of the probing run: the denoiser's call and output, and what the scheduler was handed."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    t: torch.Tensor
    sample: torch.Tensor
    stepped: torch.Tensor


def _places(record: Record) -> dict[int | str, Any]:
    return {**dict(enumerate(record.args)), **record.kwargs}


def rows(record: Record) -> int:
    """How many rows the denoiser gave back."""
    return len(first_of(record.output))


def read_call(records: Sequence[Record], name: str, constants: Sequence[float]) -> RecordedCall:
    """
    The denoiser's call of a stock loop as a function.

    Args:
        records (`Sequence[Record]`): Two steps from the same latents at two noise levels.
        name (`str`): Of the pipeline, for errors.
        constants (`Sequence[float]`): Numbers that a timestep may be multiplied with or divided by.

    Raises:
        ValueError: If the loop does more to latents, timestep or prediction than can be read off.
    """
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


def _timestep_in(records: Sequence[Record], constants: Sequence[float]) -> Timestep | None:
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


def _prediction_in(records: Sequence[Record]) -> Prediction | None:
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
