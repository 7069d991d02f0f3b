# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The levers of shared attention, written once: `aligned_attention` and the pipelines take its fields as arguments."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from alignext.checks import check_counts
from alignext.functional.alignedgen import sigma_squared


def _is_one_of(value: Any, words: tuple[str, ...], kind: type) -> bool:
    """Whether it is one of the words, or numbers of that kind."""
    if isinstance(value, str):
        return value in words
    return isinstance(value, list | tuple) and all(isinstance(each, kind) for each in value)


@dataclass(frozen=True)
class Levers:
    """
    The levers of shared attention: where, when and how strongly images share.

    Args:
        style_lambda (`float`, *optional*, defaults to 1.1):
            `lambda >= 0`, by which the shared keys are multiplied: more is closer to the anchor. 0 does not switch
            sharing off; `share_end=0` does.
        lambda_schedule (`str` or `Callable[[float], float]`, *optional*, defaults to `"constant"`):
            `"constant"`; `"sigma_squared"` for `lambda = sigma^2` at noise level sigma, from 1 to 0, for which
            `style_lambda` is not used; or a function of sigma.
        share_blocks (`str` or `tuple[int, int]`, *optional*, defaults to `"single"`):
            Layers that share: `"single"` for the single-stream ones, `"double"` for the double-stream ones, `"all"`,
            or `(lo, hi)`, half open, counted through both kinds, double first: `(19, 57)` is `"single"` for FLUX.1.
            Qwen-Image has double-stream layers only.
        share_start, share_end (`float`, *optional*, defaults to 0.0 and 1.0):
            Step i of N shares if `share_start <= i / N < share_end`. Other steps are stock.
        adain (`bool`, *optional*, defaults to `True`):
            Give the targets' image queries and keys the anchor's mean and variance, per head and channel.
        shift (`str` or `tuple[float, ...]`, *optional*, defaults to `"width"`):
            Where a target sees the anchor: `"width"` to its right, `"height"` below, `"none"` in the same place, or
            what is added to each axis of the positions.
        isolate_anchor (`bool`, *optional*, defaults to `True`):
            The anchor attends to itself only. Else it also sees its own shifted keys, at `lambda = 1`, and is no
            longer the stock image.
        anchor_index (`int`, *optional*, defaults to 0):
            Which image of the call is the anchor; images come prompt by prompt.
        target_batch_size (`int`, *optional*):
            Targets per call of the transformer, after one call for the anchor: bounds memory for any number of
            prompts. All together if not given. Same images up to rounding.

    Raises:
        `ValueError`: If a value is out of range.
    """

    style_lambda: float = 1.1
    lambda_schedule: str | Callable[[float], float] = "constant"
    share_blocks: str | tuple[int, int] = "single"
    share_start: float = 0.0
    share_end: float = 1.0
    adain: bool = True
    shift: str | tuple[float, ...] = "width"
    isolate_anchor: bool = True
    anchor_index: int = 0
    target_batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("style_lambda", "share_start", "share_end"):
            value = getattr(self, name)
            if not isinstance(value, Real | torch.Tensor):
                raise ValueError(f"`{name}` must be a number, received {value!r}.")
        if not (math.isfinite(self.style_lambda) and self.style_lambda >= 0):
            raise ValueError(f"`style_lambda` must be finite and not negative, received {self.style_lambda}.")
        if not callable(self.lambda_schedule) and self.lambda_schedule not in ("constant", "sigma_squared"):
            raise ValueError(
                "`lambda_schedule` must be 'constant', 'sigma_squared' or a function of sigma, received "
                f"{self.lambda_schedule!r}."
            )
        if not 0 <= self.share_start <= self.share_end <= 1:
            raise ValueError(
                "`share_start` and `share_end` must satisfy 0 <= share_start <= share_end <= 1, received "
                f"{self.share_start} and {self.share_end}."
            )
        if not _is_one_of(self.shift, ("width", "height", "none"), Real):
            raise ValueError(
                f"`shift` must be 'width', 'height', 'none' or one number per position axis, received {self.shift!r}."
            )
        blocks = self.share_blocks
        if not _is_one_of(blocks, ("single", "double", "all"), Integral) or not (
            isinstance(blocks, str) or len(blocks) == 2
        ):
            raise ValueError(f"`share_blocks` must be 'single', 'double', 'all' or (lo, hi), received {blocks!r}.")
        check_counts(0, anchor_index=self.anchor_index)
        if self.target_batch_size is not None:
            check_counts(target_batch_size=self.target_batch_size)

    @property
    def off(self) -> bool:
        """True if no step shares."""
        return self.share_start == self.share_end

    def active(self, step: int, steps: int | None) -> bool:
        """True if step `step` of `steps` shares."""
        if self.off:
            return False
        if steps is None:
            if (self.share_start, self.share_end) == (0, 1):
                return True
            raise ValueError(
                f"`share_start={self.share_start}` and `share_end={self.share_end}` need `num_inference_steps` or a "
                "`scheduler`. Pass one of them to `aligned_attention`."
            )
        return self.share_start <= step / steps < self.share_end

    def lambda_at(self, sigma: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`lambda` at a noise level, as a tensor on the device of `like`: compiled code sees no new constant."""
        value, schedule = self.style_lambda, self.lambda_schedule
        if not isinstance(schedule, str):
            value = schedule(float(sigma))
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"`lambda_schedule` must give a finite number, 0 or more, received {value} at sigma "
                    f"{float(sigma)}."
                )
        elif schedule == "sigma_squared":
            value = sigma_squared(sigma)
        return torch.as_tensor(value, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)

    def offset(self, grid: tuple[int, int], axes: int) -> tuple[float, ...]:
        """The shift of the anchor's positions, per axis, for targets of `grid` = (h, w) tokens."""
        if not isinstance(self.shift, str):
            if len(self.shift) != axes:
                raise ValueError(f"`shift` must have {axes} numbers, one per position axis, received {self.shift}.")
            return tuple(self.shift)
        h, w = grid
        row, column = {"width": (0, w), "height": (h, 0), "none": (0, 0)}[self.shift]
        return (0, row, column, *(0,) * (axes - 3))

    def layers(self, transformer) -> range:
        """Global indices of the layers that share; double-stream layers come first. None if no step shares."""
        if self.off:
            return range(0)
        blocks = self.share_blocks
        double = len(transformer.transformer_blocks)
        total = double + len(getattr(transformer, "single_transformer_blocks", ()))
        if isinstance(blocks, str):
            lo, hi = {"single": (double, total), "double": (0, double), "all": (0, total)}[blocks]
        else:
            lo, hi = blocks
        if not 0 <= lo < hi <= total:
            raise ValueError(
                f"`share_blocks={blocks!r}` selects no layer, or layers that are not there: the transformer has "
                f"{double} double-stream layers, from 0, and {total - double} single-stream layers, from {double}. "
                "To switch sharing off use `share_end=0`."
            )
        return range(lo, hi)
