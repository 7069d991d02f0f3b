# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Every random number of a search."""

from collections.abc import Callable, Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor


class SearchDraws:
    """
    The noise of steps and the uniform numbers of resampling, from generators or injected.

    Args:
        num_prompts (`int`): P.
        budget (`int`): n, the slots of a prompt.
        generator (`torch.Generator` or list of P, *optional*): One draw of `[P * n, ...]` per node, or one of
            `[n, ...]` per prompt.
        noise_sampler (`Callable`, *optional*): `noise_sampler(node, shape)` in the place of the generator.
        uniform_sampler (`Callable`, *optional*): `uniform_sampler(node, (P,))` in the place of the generator.

    Raises:
        ValueError: If there are several generators, and not P.
    """

    def __init__(
        self,
        num_prompts: int,
        budget: int,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise_sampler: Callable[[int, torch.Size], torch.Tensor] | None = None,
        uniform_sampler: Callable[[int, tuple[int]], torch.Tensor] | None = None,
    ) -> None:
        if isinstance(generator, Sequence) and len(generator) != num_prompts:
            raise ValueError(f"`generator` must be one or a list of {num_prompts}, received {len(generator)}.")
        self.num_prompts, self.budget, self.generator = num_prompts, budget, generator
        self.noise_sampler, self.uniform_sampler = noise_sampler, uniform_sampler

    def noise(self, node: int, like: torch.Tensor) -> torch.Tensor:
        """Standard normal noise for the step from `node`, of the shape, type and device of `like` `[P * n, ...]`."""
        if self.noise_sampler is not None:
            return self.noise_sampler(node, like.shape).to(like.device, like.dtype).reshape(like.shape)
        if isinstance(self.generator, Sequence):
            shape = (self.budget, *like.shape[1:])
            noise = torch.cat([randn_tensor(shape, g, like.device, torch.float32) for g in self.generator])
        else:
            noise = randn_tensor(like.shape, self.generator, like.device, torch.float32)
        return noise.to(like.dtype)

    def uniform(self, node: int) -> torch.Tensor:
        """The `u` in [0, 1) of systematic resampling, `(P,)`."""
        P = self.num_prompts
        if self.uniform_sampler is not None:
            return torch.as_tensor(self.uniform_sampler(node, (P,))).reshape(P)
        generators = self.generator if isinstance(self.generator, Sequence) else [self.generator] * P
        return torch.cat([torch.rand(1, generator=g, device=g.device if g else "cpu").cpu() for g in generators])
