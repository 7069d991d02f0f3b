# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A denoiser call of a stock loop as a function of latents and timesteps: what [`record_call`] returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class RecordedCall:
    """
    A denoiser call of a stock loop as a function of latents and timesteps.

    Attributes:
        args (`tuple`): Positional arguments of the recorded call.
        kwargs (`dict`): Keyword arguments of the recorded call. Both hold all conditioning, row by row of the batch.
        latents (`Latents`): The argument that the latents are in, and how.
        timestep (`Timestep`): The argument that the noise level is in, and how.
        prediction (`Prediction`): How the denoiser's output becomes what the scheduler steps with.
        shape (`torch.Size`): Shape of the loop's latents, such as `(B, C, h, w)`, or `(B, h * w, C)` where the loop
            packs them.
        dtype (`torch.dtype`): Dtype of the loop's latents.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    latents: "Latents"
    timestep: "Timestep"
    prediction: "Prediction"
    shape: torch.Size
    dtype: torch.dtype

    def __call__(
        self, denoiser: Callable[..., Any], latents: torch.Tensor, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """
        Call the denoiser as the loop does, at other latents and noise levels.

        Args:
            denoiser (`Callable`): The network, or what stands for it: a `DistributedDataParallel`, an EMA copy.
            latents (`torch.Tensor` of shape `shape`): Noisy latents, as the loop holds them.
            timesteps (`torch.Tensor` of shape `()` or `(B,)`, or `float`): In the scheduler's units, `[0, 1000]`.

        Returns:
            `torch.Tensor` of shape `shape`: What the loop would hand to `scheduler.step`.

        Raises:
            ValueError: If the latents have another shape than the recorded ones.
        """
        if latents.shape != self.shape:
            raise ValueError(
                f"`latents` must have the recorded shape {tuple(self.shape)}, received {tuple(latents.shape)}."
            )
        places = {self.latents.place: self.latents(latents), self.timestep.place: self.timestep(timesteps, latents)}
        args = tuple(places.get(i, value) for i, value in enumerate(self.args))
        kwargs = {name: places.get(name, value) for name, value in self.kwargs.items()}
        return self.prediction(denoiser(*args, **kwargs))


@dataclass(frozen=True)
class Latents:
    """
    How the loop's latents reach the denoiser.

    Attributes:
        place (`int` or `str`): Index or name of the argument.
        dtype (`torch.dtype`): What they are cast to.
        dim (`int`, *optional*): Dimension along which conditioning latents follow; None where nothing follows.
        rest (`torch.Tensor`, *optional*): Those conditioning latents.
        listed (`int`, *optional*): The argument is a list of rows, each with a dimension of size 1 inserted here; None
            where it is one tensor.
    """

    place: int | str
    dtype: torch.dtype
    dim: int | None = None
    rest: torch.Tensor | None = None
    listed: int | None = None

    def __call__(self, latents: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        latents = latents.to(self.dtype)
        if self.rest is not None and self.dim is not None:
            latents = torch.cat([latents, self.rest], dim=self.dim)
        return latents if self.listed is None else list(latents.unsqueeze(self.listed + 1).unbind(0))


@dataclass(frozen=True)
class Timestep:
    """
    How the scheduler's timestep reaches the denoiser.

    Attributes:
        place (`int` or `str`): Index or name of the argument.
        form (`str`): A name in `FORMS`.
        shape (`torch.Size`): Shape of the argument.
        dtype (`torch.dtype`): Dtype of the argument.
        rounded (`torch.dtype`): Dtype in which the form is computed.
        constant (`float`): The number in the form.
    """

    place: int | str
    form: str
    shape: torch.Size
    dtype: torch.dtype
    rounded: torch.dtype
    constant: float

    def __call__(self, timesteps: torch.Tensor | float, latents: torch.Tensor) -> torch.Tensor:
        t = torch.as_tensor(timesteps, device=latents.device)
        value = FORMS[self.form](t.to(self.rounded), self.constant).to(self.dtype)
        if not self.shape:  # a network that takes one timestep for all rows also takes one for each
            return value
        return value.reshape(-1, *[1] * (len(self.shape) - 1)).expand(self.shape)


# Timesteps of networks in terms of the scheduler's t. Each is computed as loops write it, so that it rounds alike.
FORMS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "t": lambda t, n: t,
    "t / n": lambda t, n: t / n,
    "t * n": lambda t, n: t * n,
    "(n - t) / n": lambda t, n: (n - t) / n,
    "1 - t / n": lambda t, n: 1 - t / n,
}


@dataclass(frozen=True)
class Prediction:
    """
    How the denoiser's output becomes what the scheduler steps with.

    Attributes:
        shape (`torch.Size`): Shape of the result. What lies beyond, such as a learned variance or the prediction for
            conditioning latents, is cut off.
        dtype (`torch.dtype`): Dtype of the result.
        sign (`int`): -1 where the loop negates it.
        squeezed (`int`, *optional*): A dimension of size 1 that is dropped.
    """

    shape: torch.Size
    dtype: torch.dtype
    sign: int = 1
    squeezed: int | None = None

    def __call__(self, output: Any) -> torch.Tensor:
        value = first_of(output)
        value = torch.stack(list(value)) if isinstance(value, list | tuple) else value
        if self.squeezed is not None:
            value = value.squeeze(self.squeezed)
        value = value[tuple(slice(side) for side in self.shape)].to(self.dtype)
        return value if self.sign == 1 else -value


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same nesting of tuples, lists and dictionaries with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    return {k: mapped(v, change) for k, v in value.items()} if isinstance(value, dict) else value


def in_dtype(forward: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """A denoiser's call with its arguments cast, and its output cast back."""

    def cast(value: torch.Tensor) -> torch.Tensor:
        return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value

    def called(*args: Any, **kwargs: Any) -> Any:
        given = {v.dtype for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.is_floating_point()}
        back = next((kind for kind in (torch.bfloat16, torch.float16) if kind in given), torch.float32)
        output = forward(*mapped(args, cast), **mapped(kwargs, cast))
        return mapped(output, lambda value: value.to(back))

    return called


def first_of(output: Any) -> Any:
    """A denoiser's prediction: the first of its outputs, whether it returned a tuple or a dataclass."""
    return output if isinstance(output, torch.Tensor) else output[0]
