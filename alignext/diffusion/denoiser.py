# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The network in the middle of a pipeline as a module that `Trainer` can take: one call for every architecture."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.utils import logging

from alignext.diffusion.conditions import Conditions


logger = logging.get_logger(__name__)


class DenoiserModule(torch.nn.Module):
    """
    The denoiser of a pipeline behind one signature, called as the pipeline's own loop calls it. It has no attribute
    `config`, as trackers would take diffusers' for one of transformers, and none of the pipeline's other models, which
    would be trained and saved with it.

    Args:
        denoiser (`torch.nn.Module`): The network.
        conditions ([`~alignext.diffusion.conditions.Conditions`]): What it is told of each sample.

    Attributes:
        most (`Callable[[int], int]`): How often the denoiser is called in a forward pass that needs so many calls:
            where processes share its weights, as often as in any of them.
    """

    denoiser: Any
    dtype: torch.dtype

    @property
    def _no_split_modules(self) -> list[str]:
        """Blocks that FSDP gathers as a whole, of those that there are; accelerate asks for them by this name."""
        known = getattr(self.denoiser, "_no_split_modules", None) or getattr(self.denoiser, "_repeated_blocks", None)
        found = {type(module).__name__ for module in self.denoiser.modules()}
        return [name for name in dict.fromkeys(known or ()) if name in found]

    def __init__(self, denoiser: Any, conditions: Conditions) -> None:
        super().__init__()
        self.denoiser, self.conditions = denoiser, conditions
        self.dtype = denoiser.dtype  # asked before there are float32 adapters
        self.most: Callable[[int], int] = _itself

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """
        What the pipeline's loop would step with, in float32: guidance and errors of policy and reference alike are not
        in half precision.

        Args:
            latents (`torch.Tensor` of shape `(R, C, h, w)`): Noisy latents as the VAE lays them out, scaled.
            timesteps (`torch.Tensor` of shape `(R,)`): In the scheduler's units.
            conditions (`torch.Tensor` of shape `(R,)`): Numbers that the conditions gave to the samples.
        """
        # One memory layout, or the same latents would be summed in another order wherever they come from.
        latents = latents.to(self.dtype).contiguous()
        timesteps = timesteps.expand(len(latents))
        groups = self.conditions.groups(conditions, latents.device, self.dtype)
        more = self.most(len(groups)) - len(groups)
        if len(groups) == 1 and not more:
            _, call, template = groups[0]
            return template.unpack(call(self.denoiser, template.pack(latents), timesteps))
        parts = [
            template.unpack(call(self.denoiser, template.pack(latents[rows]), timesteps[rows]))
            for rows, call, template in [*groups, *groups[-1:] * more]
        ]
        order = torch.tensor([row for rows, *_ in groups for row in rows], device=latents.device)
        predicted = torch.cat(parts[: len(groups)])[order.argsort()]
        for unused in parts[len(groups) :]:  # a part of the graph, as backward passes are counted, too
            predicted = predicted + 0 * unused.sum()
        return predicted

    # The names that `Trainer` knows.

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        if every_n_layers != 1 or offload:
            raise ValueError("Denoisers checkpoint every block: `every_n_layers` and `offload` are not supported.")
        if not self.denoiser._supports_gradient_checkpointing:
            logger.warning("%s cannot recompute its activations, and keeps them.", type(self.denoiser).__name__)
        else:
            self.denoiser.enable_gradient_checkpointing()

    @property
    def is_activation_checkpointing(self) -> bool:
        return self.denoiser.is_gradient_checkpointing


def _itself(count: int) -> int:
    return count


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


@contextmanager
def adapter_scaled(denoiser: torch.nn.Module, adapter: str, weight: float) -> Generator[None]:
    """The denoiser with one of its adapters at another weight: 1 is as it was trained, 0 without it."""
    layers: list[Any] = [m for m in denoiser.modules() if isinstance(m, BaseTunerLayer)]
    layers = [layer for layer in layers if adapter in layer.scaling]
    scalings = [layer.scaling[adapter] for layer in layers]
    try:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling[adapter] = scaling * weight
        yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling[adapter] = scaling
