# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""`SteeringVector`: one direction at one layer, and the hook that steers along it."""

import math
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from alignext.checks import check_counts
from alignext.functional.steering import (
    clamp_factor,
    clamp_step,
    project,
    steer,
    stmp_step,
    sttp_step,
    swfc_step,
)
from alignext.hub_files import FileHubMixin
from alignext.methods import method as row_of
from alignext.steering.hooks import Attached, had_tokens, is_off, positions_of
from alignext.steering.layers import decoder_layers, states_of, with_states


METHODS = ("swfc", "sttp", "stmp", "clamp")
# What each method needs to know besides the direction.
_NEEDS = {
    "swfc": ("mu_positive", "mu_negative"),
    "sttp": ("boundary", "mu_positive", "sigma_positive"),
    "stmp": ("boundary",),
    "clamp": (),
}


@dataclass(frozen=True)
class SteeringVector(FileHubMixin):
    """
    A direction in the residual stream of a language model, at the output of one decoder layer.

    Args:
        direction (`torch.Tensor` of shape `(d,)`): Along the trait; it is scaled to length 1.
        layer (`int`): Index of the decoder layer, from 0.
        boundary (`float`, *optional*): `m`, the projection between negative and positive answers.
        mu_positive, mu_negative (`float`, *optional*): Mean projections of positive and negative answers. For
            `method="clamp"` these are the factors.
        sigma_positive (`float`, *optional*): Standard deviation of the positive answers' projections.
        model (`str`, *optional*): The model it belongs to, for people.
        method (`str`, *optional*, defaults to `"stmp"`): How it steers unless `apply` says otherwise.
        exclude_first (`int`, *optional*, defaults to 0): How many positions at the start of each row it leaves alone
            unless `apply` says otherwise.

    Raises:
        ValueError: If the direction is not a vector, is zero or not finite, the layer, the standard deviation or
            `exclude_first` is negative, or there is no such method.
    """

    _key: ClassVar[str] = "steering"
    _file_name: ClassVar[str] = "steering.safetensors"
    _method: ClassVar[str] = "alignext.steering.vector:SteeringVector"
    _kind: ClassVar[str] = "Steering vector"
    _use: ClassVar[str] = (
        "A direction in the residual stream of a language model, for alignext: "
        "`with found.apply(model, alpha=1.0): model.generate(...)`."
    )
    _tag_names: ClassVar[list[str]] = ["alignext", "steering"]
    _paper: ClassVar[dict[str, str]] = row_of("Steering").paper

    direction: torch.Tensor
    layer: int
    boundary: float | None = None
    mu_positive: float | None = None
    mu_negative: float | None = None
    sigma_positive: float | None = None
    model: str | None = None
    method: str = "stmp"
    exclude_first: int = 0

    def __post_init__(self) -> None:
        v = self.direction
        if v.ndim != 1 or not v.isfinite().all() or not v.any():
            raise ValueError(
                f"`direction` must be a finite vector that is not zero, received shape {tuple(v.shape)} with norm "
                f"{float(v.double().norm()):.4g}."
            )
        check_counts(0, layer=self.layer)
        if self.sigma_positive is not None and not self.sigma_positive >= 0:
            raise ValueError(f"`sigma_positive` must be 0 or more, received {self.sigma_positive}.")
        _check_method(self.method)
        check_counts(0, exclude_first=self.exclude_first)
        object.__setattr__(self, "direction", v.detach().double().cpu() / v.double().norm().cpu())

    def step(self, rho: torch.Tensor, method: str, alpha: float) -> torch.Tensor:
        """
        How far each state goes along the direction.

        Args:
            rho (`torch.Tensor`): Projections of states.
            method (`str`): `"swfc"` adds a constant, `"sttp"` lifts to a target what lies below the boundary, `"stmp"`
                mirrors it, `"clamp"` sets all projections to one factor: `mu_positive` at `alpha = 1`, `mu_negative`
                at -1. Without these two, `alpha` is the factor.
            alpha (`float`): Strength, see [`alignext.functional.steering`].

        Returns:
            `torch.Tensor` of the shape of `rho`.
        """
        self.check(method, alpha)
        if method == "clamp":
            return clamp_step(rho, clamp_factor(alpha, self.mu_positive, self.mu_negative))
        known: Any = self  # what the method needs is there, by the check
        if method == "swfc":
            return swfc_step(rho, alpha, known.mu_positive - known.mu_negative)
        if method == "sttp":
            return sttp_step(rho, alpha, known.boundary, known.mu_positive, known.sigma_positive)
        return stmp_step(rho, alpha, known.boundary)

    def check(self, method: str, alpha: float) -> None:
        """
        Raises:
            ValueError: If there is no such method, the vector lacks what it needs, or `alpha` is not finite.
        """
        _check_method(method)
        missing = [name for name in _NEEDS[method] if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"`method={method!r}` needs `{missing[0]}`, which this vector lacks: fit it with `fit_steering`."
            )
        if not math.isfinite(alpha):
            raise ValueError(f"`alpha` must be finite, received {alpha}.")

    def attach(
        self,
        model: Any,
        method: str | None = None,
        alpha: float = 1.0,
        *,
        position: str = "all",
        prompt_lengths: Sequence[int] | None = None,
        exclude_first: int | None = None,
        allow_cache: bool = False,
    ) -> "Attached":
        """
        Steer the model from now on, until the returned handle's `remove()`. [`apply`] does both.

        Args:
            model (`PreTrainedModel` or `PeftModel`): A causal language model. Its weights stay as they are.
            method (`str`, *optional*): See [`step`]; the vector's own if not given.
            alpha (`float`, *optional*, defaults to 1.0): Strength; with `"swfc"` 0 changes nothing.
            position (`str`, *optional*, defaults to `"all"`): `"all"` steers prompt and response, `"response"` only
                tokens after the prompt.
            prompt_lengths (`Sequence[int]`, *optional*): For `"response"`: number of tokens in each row's prompt,
                padding left out.
            exclude_first (`int`, *optional*): Positions at the start of each row that are left alone, as the first
                token's state is far larger than all others; the vector's own if not given.
            allow_cache (`bool`, *optional*, defaults to `False`): Continue from a cache of tokens that were not
                steered. Its result differs from steering the whole text.

        Returns:
            [`Attached`]: `remove()` ends the steering.

        Raises:
            ValueError: If the vector does not fit the model, or an argument is out of range.
            NotImplementedError: While running, if positions are needed and the model's layers are not told them.
        """
        method = self.method if method is None else method
        exclude_first = self.exclude_first if exclude_first is None else exclude_first
        self.check(method, alpha)
        layers = decoder_layers(model)
        size = model.config.get_text_config(decoder=True).hidden_size
        if self.layer >= len(layers) or len(self.direction) != size:
            raise ValueError(
                f"The vector is for layer {self.layer} of a model with hidden size {len(self.direction)}, but `model` "
                f"has {len(layers)} layers of size {size}."
            )
        if position not in ("all", "response"):
            raise ValueError(f"`position` must be 'all' or 'response', received {position!r}.")
        if (position == "response") != (prompt_lengths is not None):
            raise ValueError("`prompt_lengths` must be given with `position='response'`, and only then.")
        check_counts(0, exclude_first=exclude_first)
        first = None if prompt_lengths is None else torch.as_tensor(prompt_lengths)
        started = allow_cache or position != "all"
        moved: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}  # copied once per device

        def hook(layer: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
            nonlocal started
            if is_off():
                return None
            h = states_of(output)
            if not started and had_tokens(kwargs, h.shape[1], self.layer):
                raise ValueError(
                    "The cache holds tokens that were not steered. Make it while steering, or pass `allow_cache=True`."
                )
            started = True
            kind = (h.device, torch.promote_types(h.dtype, torch.float32))
            if kind not in moved:
                moved[kind] = self.direction.to(*kind)
            v = moved[kind]
            a = self.step(project(h, v), method, alpha)
            if first is not None or exclude_first:
                positions = positions_of(kwargs, type(layer).__name__)
                start = torch.as_tensor(exclude_first)
                if first is not None:
                    if len(h) % len(first):
                        raise ValueError(f"`prompt_lengths` has {len(first)} rows for a batch of {len(h)}.")
                    # Beams and several samples of a prompt lie side by side.
                    start = first.repeat_interleave(len(h) // len(first))[:, None].clamp(min=exclude_first)
                a = torch.where(positions.to(h.device) >= start.to(h.device), a, 0.0)
            return with_states(output, steer(h, v, a))

        # Before all others, so that what captures hidden states sees the steered ones, whenever it was installed.
        return Attached(layers[self.layer].register_forward_hook(hook, with_kwargs=True, prepend=True))

    @contextmanager
    def apply(
        self, model: torch.nn.Module, method: str | None = None, alpha: float = 1.0, **kwargs: Any
    ) -> Generator[None]:
        """Steer the model within a `with` block; arguments of [`attach`]. Nothing stays afterwards."""
        handle = self.attach(model, method, alpha, **kwargs)
        try:
            yield
        finally:
            handle.remove()

    def to_peft(self, model: Any, alpha: float = 1.0, adapter_name: str = "default") -> Any:
        """SwFC as a PEFT adapter, see [`~alignext.steering.export.to_peft`]."""
        from alignext.steering.export import to_peft

        return to_peft(self, model, alpha, adapter_name)

    def save_custom_generate(self, folder: str | os.PathLike, method: str | None = None, alpha: float = 1.0) -> None:
        """A folder for `model.generate(custom_generate=folder)`, see [`~alignext.steering.custom_generate.save`]."""
        from alignext.steering.custom_generate import save

        save(self, folder, method, alpha)

    def _more_files(self) -> dict[str, str]:
        from alignext.steering.custom_generate import files

        try:
            return files(self)
        except ValueError:  # it lacks what its own method needs
            return {}

    def _plain(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "direction"}

    @classmethod
    def _fields(cls, plain: dict[str, Any]) -> dict[str, Any]:
        return plain


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, received {method!r}.")
