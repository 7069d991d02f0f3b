# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The style that a set of images takes over, as something to keep, save and share."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch

from alignext.functional.predictions import add_noise
from alignext.hub_files import FileHubMixin


@dataclass(frozen=True)
class StyleReference(FileHubMixin):
    """
    One picture whose style others take over: `encode_style` of the pipeline makes it from a picture,
    `record_style=True` from the anchor of a call. Use it in any number of calls; keep it with
    [`~StyleReference.save`] or on the Hub with `push_to_hub` and `from_hub`.

    It holds either `x0`, a picture to be noised to any step's level, or `trajectory`, latents that belong to one
    schedule. `N_r = h_r * w_r` packed tokens of `C` channels.

    Args:
        prompt_embeds (`torch.Tensor` of shape `(1, T_r, D)`):
            Embedding of the text that describes the picture.
        pooled_prompt_embeds (`torch.Tensor` of shape `(1, D')`, *optional*):
            Its pooled embedding, where the model takes one.
        grid (`tuple[int, int]`):
            `(h_r, w_r)`, in packed tokens.
        x0 (`torch.Tensor` of shape `(1, N_r, C)`, *optional*):
            The clean picture's packed latents.
        seed (`int`, *optional*, defaults to 42):
            With `x0`: seed of its noise, drawn on the CPU.
        noise (`torch.Tensor` of shape `(1, N_r, C)`, *optional*):
            With `x0`: the noise itself, instead of a drawn one.
        trajectory (`torch.Tensor` of shape `(n, 1, N_r, C)`, *optional*):
            The latents that entered the transformer at each of n steps.
        sigmas (`torch.Tensor` of shape `(n,)`, *optional*):
            With `trajectory`: the noise levels of these steps.
        negative_prompt_embeds, negative_pooled_prompt_embeds (`torch.Tensor`, *optional*):
            With `trajectory`: the text of the second call of each step, if it was recorded under true CFG.
        scaling (`tuple[float, float]`, *optional*):
            Shift and scaling factor of the VAE the latents come from; None is not checked.

    Raises:
        `ValueError`: If not exactly one of `x0` and `trajectory` is given, or shapes do not fit.
    """

    _key: ClassVar[str] = "style_reference"
    _file_name: ClassVar[str] = "style_reference.safetensors"
    _method: ClassVar[str] = "alignext.pipelines.alignedgen.mixin:AlignedGenMixin"
    _kind: ClassVar[str] = "Style reference"
    _use: ClassVar[str] = (
        "One picture's style, for `AlignedGenPipeline` of alignext and the base model that it was made with: "
        "`pipe(prompts, style_reference=found)` draws in it."
    )

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor | None
    grid: tuple[int, int]
    x0: torch.Tensor | None = None
    seed: int = 42
    noise: torch.Tensor | None = None
    trajectory: torch.Tensor | None = None
    sigmas: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    negative_pooled_prompt_embeds: torch.Tensor | None = None
    scaling: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if (self.x0 is None) == (self.trajectory is None):
            raise ValueError(
                "A style reference holds either `x0` or `trajectory`, received "
                f"{'neither' if self.x0 is None else 'both'}. Make it with `encode_style` or `record_style=True`."
            )
        h, w = self.grid
        latents = self._clean if self.trajectory is None else self.trajectory[0]
        if latents.ndim != 3 or tuple(latents.shape[:2]) != (1, h * w):
            raise ValueError(
                f"Latents of a {h} x {w} grid must have shape (1, {h * w}, channels), received {tuple(latents.shape)}."
            )
        if self.noise is not None and (self.x0 is None or self.noise.shape != self.x0.shape):
            raise ValueError(f"`noise` goes with an `x0` of its shape, received {tuple(self.noise.shape)}.")
        if self.trajectory is not None and (self.sigmas is None or len(self.sigmas) != len(self.trajectory)):
            found = None if self.sigmas is None else len(self.sigmas)
            raise ValueError(f"A trajectory of {len(self.trajectory)} steps needs as many `sigmas`, received {found}.")
        if self.prompt_embeds.ndim != 3 or len(self.prompt_embeds) != 1:
            raise ValueError(
                f"`prompt_embeds` must have shape (1, tokens, channels), received {tuple(self.prompt_embeds.shape)}."
            )

    @property
    def _clean(self) -> torch.Tensor:
        assert self.x0 is not None
        return self.x0

    @property
    def num_channels(self) -> int:
        """C."""
        return (self._clean if self.trajectory is None else self.trajectory).shape[-1]

    def latents(self, sigma: torch.Tensor | float, step: int) -> torch.Tensor:
        """
        The latents that enter the transformer at a step: `sigma * eps + (1 - sigma) * x0`, or the recorded ones.

        Args:
            sigma (`float` or 0-dim `torch.Tensor`): Noise level of the step.
            step (`int`): Its index.

        Returns:
            `torch.Tensor` of shape `(1, N_r, C)`.

        Raises:
            `ValueError`: If a recorded trajectory has no such step, or had it at another noise level.
        """
        if self.trajectory is None:
            noise = self.noise if self.noise is not None else self._draw()
            clean = self._clean.to(torch.promote_types(self._clean.dtype, noise.dtype))
            return add_noise(clean, noise, 1 - float(sigma), float(sigma))  # on its straight line to the noise
        sigmas = [] if self.sigmas is None else self.sigmas.tolist()
        if step >= len(sigmas) or abs(sigmas[step] - float(sigma)) > 1e-4:
            was = f"{sigmas[step]:.4f}" if step < len(sigmas) else "not recorded"
            raise ValueError(
                f"Step {step} has noise level {float(sigma):.4f}; in the recorded style of {len(self.trajectory)} "
                f"steps it is {was}. Use the number of steps, the size and the scheduler it was recorded with, or a "
                "style made by `encode_style`, which goes with any."
            )
        return self.trajectory[step]

    def check_model(self, transformer) -> None:
        """Refuse a style of another model."""
        config = transformer.config
        if self.num_channels != config.in_channels:
            raise ValueError(
                f"`style_reference` has {self.num_channels} channels, the transformer takes {config.in_channels}. "
                "Make it with this model."
            )
        widths = {
            "prompt_embeds": config.joint_attention_dim,
            "pooled_prompt_embeds": config.get("pooled_projection_dim"),  # FLUX.1 only
        }
        for name, wanted in widths.items():
            text = getattr(self, name)
            found = None if text is None else text.shape[-1]
            if found != wanted:
                raise ValueError(
                    f"`style_reference.{name}` has {found} channels, the transformer takes {wanted}. Make it with "
                    "this model."
                )

    def check_schedule(self, sigmas: torch.Tensor) -> None:
        """Refuse a recorded style whose noise levels are not those of the loop."""
        recorded = self.sigmas
        if recorded is None:
            return
        if len(recorded) != len(sigmas):
            raise ValueError(
                f"`style_reference` was recorded with {len(recorded)} steps, received {len(sigmas)} steps. Use as "
                "many, or a style made by `encode_style`, which goes with any number."
            )
        difference = (recorded.to(sigmas) - sigmas).abs().max().item()
        if difference > 1e-4:
            raise ValueError(
                f"`style_reference` was recorded at other noise levels than those of this loop, up to "
                f"{difference:.4f} apart: they depend on the size of the images and on the scheduler. Use the ones of "
                "the recording, or a style made by `encode_style`, which goes with any."
            )

    def _draw(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self._clean.shape, generator=generator).to(self._clean.device)

    def to(self, device: torch.device | str | None = None) -> "StyleReference":
        """On another device; with `x0`, the noise is drawn if it was not."""
        noise = self.noise if self.x0 is None or self.noise is not None else self._draw()
        tensors = {name: x.to(device) for name, x in self._tensors().items()}
        if noise is not None:
            tensors["noise"] = noise.to(device)
        return replace(self, **tensors)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), torch.Tensor)}

    def _plain(self) -> dict[str, Any]:
        return {"grid": self.grid, "seed": self.seed, "scaling": self.scaling}

    @classmethod
    def _fields(cls, plain: dict[str, Any]) -> dict[str, Any]:
        return {name: tuple(x) if isinstance(x, list) else x for name, x in plain.items()}
