# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Random numbers that depend on what they are for, not on what was drawn before."""

import hashlib

import torch


class Draws:
    """
    The random numbers of the pairs of a batch. Those of a pair depend on the seed, the step and the pair alone: not on
    what it is in a batch with, on which process, or on what was drawn before. Accumulation, more processes and a
    resumed run hence see the same noise.

    Args:
        seed (`int`): Of the run.
        step (`int` or `str`): The update; anything constant gives the same numbers at every evaluation.
        index (`torch.Tensor` of shape `(B,)`): The row of each pair in its dataset.
    """

    def __init__(self, seed: int, step: int | str, index: torch.Tensor) -> None:
        self.seed, self.step, self.index = seed, step, index.tolist()

    def generators(self, what: str) -> list[torch.Generator]:
        """One per pair, for this purpose."""
        keys = [f"{self.seed}/{self.step}/{index}/{what}".encode() for index in self.index]
        seeds = [int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little") for key in keys]
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def uniform(self, what: str) -> torch.Tensor:
        """Of shape `(B,)`, in [0, 1)."""
        return torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in self.generators(what)])

    def normal(self, what: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Of shape `(B, *shape)`, standard normal."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators(what)]).to(device)

    def time(self, what: str) -> torch.Tensor:
        """Of shape `(B,)`, in [0, 1): random while training, spread evenly over the rows at evaluation."""
        if isinstance(self.step, int):
            return self.uniform(what)
        golden = (5**0.5 - 1) / 2
        return torch.tensor([(index + 0.5) * golden % 1 for index in self.index], dtype=torch.float64)

    def points(self, what: str, count: int, choices: int) -> torch.Tensor:
        """Of shape `(count, B)`: different integers in [0, choices), evenly spread from a random start."""
        u = (self.time(what) + torch.arange(count)[:, None] / count) % 1
        return (u * choices).long().clamp(max=choices - 1)
