# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The anchor of a loop, kept as it goes through the transformer."""

from typing import Any

import torch

from alignext.pipelines.alignedgen.style import StyleReference


class Recorder:
    """Keeps the anchor's latents at each step, and its texts: those of the second call of a step are negative ones."""

    def __init__(self) -> None:
        self._kept: dict[str, list[torch.Tensor]] = {}

    def restart(self) -> None:
        """Forget, since another loop begins."""
        self._kept = {}

    def keep(self, latents: torch.Tensor, texts: dict[str, torch.Tensor | None], sigma, *, first: bool) -> None:
        """
        Record one call.

        Args:
            latents (`torch.Tensor` of shape `(1, N, C)`): The anchor's, as they enter.
            texts (`dict[str, torch.Tensor]`): Fields of [`StyleReference`].
            sigma (`float` or 0-dim `torch.Tensor`): Noise level.
            first (`bool`): Whether it is the first call of its step.
        """
        prefix = "" if first else "negative_"
        if f"{prefix}prompt_embeds" not in self._kept:
            self._kept |= {prefix + name: [text.clone()] for name, text in texts.items() if text is not None}
        if first:
            self._kept.setdefault("trajectory", []).append(latents.clone())
            self._kept.setdefault("sigmas", []).append(torch.as_tensor(sigma, dtype=torch.float32).cpu())

    def style(self, grid: tuple[int, int], scaling: tuple[float, float] | None) -> StyleReference:
        """The recording as a style, see [`~AlignedAttention.recorded`]."""
        if not self._kept:
            raise ValueError("Nothing was recorded. Pass `record=True`, and call the transformer inside the block.")
        found: dict[str, Any] = {"pooled_prompt_embeds": None, "grid": grid, "scaling": scaling}
        for name, kept in self._kept.items():
            found[name] = torch.stack(kept) if name in ("trajectory", "sigmas") else kept[0]
        return StyleReference(**found)
