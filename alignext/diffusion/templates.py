# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What samples of a size have in common in the denoiser's call, and what is a sample's own."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from alignext.diffusion.layouts import Layout
from alignext.diffusion.recorded_call import RecordedCall
from alignext.diffusion.sizes import Size


@dataclass
class Template:
    """
    What all samples of a size have in common.

    Attributes:
        call ([`RecordedCall`]): The denoiser's call of one of them.
        layout ([`Layout`]): How their latents lie in VAE and loop; None where the pipeline has no VAE.
        patterns (`dict`): Where in the call the rows of a batch are, see [`~alignext.diffusion.rows.row_pattern`], by
            the nesting of the call: pipelines leave a mask out where it masks nothing.
        schedules (`dict`): Arguments of `set_timesteps` by number of steps; None is the pipeline's own number.
    """

    call: RecordedCall
    layout: Layout | None
    patterns: dict[str, Any] = field(default_factory=dict)
    schedules: dict[int | None, dict[str, Any]] = field(default_factory=dict)

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """From the VAE's layout to the loop's."""
        return latents if self.layout is None else self.layout.pack(latents)

    def unpack(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse."""
        return latents if self.layout is None else self.layout.unpack(latents)


@dataclass
class Condition:
    """One sample's part of a denoiser's call, without latents and timestep."""

    size: Size
    parts: tuple[Any, Any, Any]  # args, kwargs, and latents that follow its own
    pattern: Any
    key: Hashable
