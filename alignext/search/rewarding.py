# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Calling a reward: from clean latents to checked numbers."""

from collections.abc import Callable
from typing import Any

import torch

from alignext.rewards.protocol import as_rewards, call
from alignext.search.config import SearchConfig


class LatentReward:
    """
    A reward of pictures as a reward of clean latents: decodes, adds the prompts, and calls in batches.

    Args:
        reward (`Callable`): `reward(images, prompts)`, see [`alignext.rewards`]; with `input_type = "latent"` it is
            given the latents instead of images. Is also given `timestep_fraction`, `latents` and `is_final` if it
            takes them.
        decode (`Callable`): Latents to images `(rows, 3, H, W)` or videos `(rows, F, 3, H, W)` in [0, 1].
        prompts (`list[str]`, *optional*): One per prompt; None where only embeddings are known.
        config ([`SearchConfig`]): For the batch sizes.
    """

    def __init__(
        self,
        reward: Callable[..., Any],
        decode: Callable[[torch.Tensor], torch.Tensor],
        prompts: list[str] | None,
        config: SearchConfig,
    ) -> None:
        if not callable(reward):
            raise ValueError(f"`reward` must be callable as `reward(images, prompts)`, received {reward!r}.")
        self.reward, self.decode, self.prompts, self.config = reward, decode, prompts, config

    def __call__(self, latents: torch.Tensor, timestep_fraction: float = 0.0, is_final: bool = True) -> torch.Tensor:
        prompts = None
        if self.prompts is not None:
            prompts = [prompt for prompt in self.prompts for _ in range(len(latents) // len(self.prompts))]
        size, scores = self.config.reward_batch_size or len(latents), []
        for start in range(0, len(latents), size):
            rows = latents[start : start + size]
            images = rows
            if getattr(self.reward, "input_type", "image") != "latent":
                images = torch.cat([self.decode(part).float() for part in rows.split(self.config.decode_batch_size)])
            texts = prompts and prompts[start : start + size]
            kwargs = {"timestep_fraction": timestep_fraction, "latents": rows, "is_final": is_final}
            scores.append(as_rewards(call(self.reward, images, texts, **kwargs), len(rows)).to(latents.device))
        return torch.cat(scores)
