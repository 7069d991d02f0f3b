# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""From clean latents to rewards: decode, add the prompts, and call the reward in batches."""

from collections.abc import Callable
from typing import Any

import torch

from alignext.rewards.protocol import CheckedReward
from alignext.search.config import SearchConfig


# Pixels decoded at once by default: one picture of 1024 x 1024, sixteen of 256 x 256.
DECODED_PIXELS = 1024 * 1024


class LatentReward(CheckedReward):
    """
    A reward of pictures as a reward of clean latents.

    Args:
        reward_fn (`Callable`): `reward_fn(images, prompts)`, see [`alignext.rewards`]; with `input_type = "latent"` it
            is given the latents instead of images. Is also given `timestep_fraction`, `latents` and `is_final` if it
            takes them.
        decode (`Callable`): Latents to images `(rows, 3, H, W)` or videos `(rows, F, 3, H, W)` in [0, 1].
        prompts (`list[str]`, *optional*): One per prompt; None where only embeddings are known.
        config ([`SearchConfig`]): For the batch sizes.
        prepare (`Callable`, *optional*): From what a search calls latents to those of the pipeline.
    """

    def __init__(
        self,
        reward_fn: Callable[..., Any],
        decode: Callable[[torch.Tensor], torch.Tensor],
        prompts: list[str] | None,
        config: SearchConfig,
        prepare: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents,
    ) -> None:
        super().__init__(reward_fn)
        self.decode, self.prompts, self.config, self.prepare = decode, prompts, config, prepare
        self._pixels = 0  # of one sample, once one is decoded

    def __call__(  # ty: ignore[incompatible-method-override]
        self, latents: torch.Tensor, timestep_fraction: float = 0.0, is_final: bool = True
    ) -> torch.Tensor:
        latents, prompts = self.prepare(latents), None
        if self.prompts is not None:
            prompts = [prompt for prompt in self.prompts for _ in range(len(latents) // len(self.prompts))]
        size, rewards = self.config.reward_batch_size or len(latents), []
        for start in range(0, len(latents), size):
            rows = latents[start : start + size]
            samples = rows if self.input_type == "latent" else self._decoded(rows)
            texts = prompts and prompts[start : start + size]
            told = {"timestep_fraction": timestep_fraction, "latents": rows, "is_final": is_final}
            rewards.append(super().__call__(samples, texts, first=start, **told).to(latents.device))
        return torch.cat(rewards)

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """
        Pictures of latents, as many at once as the settings say, or as make up `DECODED_PIXELS`. Before one is
        decoded, sixteen pixels for each number of the latents are expected, as most autoencoders make.
        """
        pictures, done = [], 0
        while done < len(latents):
            size = self.config.decode_batch_size
            if size is None:
                size = max(1, DECODED_PIXELS // (self._pixels or 16 * latents[0].numel()))
            pictures.append(self.decode(latents[done : done + size]).float())
            done, self._pixels = done + size, pictures[-1][0].numel() // 3
        return torch.cat(pictures)
