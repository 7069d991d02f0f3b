# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The protocol of rewards: `reward_fn(images_or_videos, prompts)`, one number per sample, larger is better."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from alignext.logs import pipeline_logger, warn_once


logger = pipeline_logger(__name__)


class RewardError(ValueError):
    """A reward function that cannot be called, raised an exception, or returned what is no reward."""


class CheckedReward:
    """
    The one place where a reward function is called: with the arguments that it takes, and its result checked. Errors
    name the function and the samples.

    Args:
        reward_fn (`Callable`): `reward_fn(samples, prompts)`, or `reward_fn(samples)` where there are no prompts.

    Attributes:
        input_type (`str`): `"image"`, or `"latent"` for a reward of clean latents.

    Raises:
        ValueError: If `reward_fn` is not callable.
    """

    def __init__(self, reward_fn: Callable[..., Any]) -> None:
        if not callable(reward_fn):
            raise ValueError(f"`reward_fn` must be callable as `reward_fn(images, prompts)`, received {reward_fn!r}.")
        self.reward_fn, self.name = reward_fn, _name(reward_fn)
        self.input_type = getattr(reward_fn, "input_type", "image")

    @classmethod
    def of(cls, reward_fn: Callable[..., Any]) -> "Self | CheckedReward":
        """The same reward, checked once: one that is checked already stays as it is."""
        return reward_fn if isinstance(reward_fn, CheckedReward) else cls(reward_fn)

    def __call__(self, samples: torch.Tensor, *prompts: list[str] | None, first: int = 0, **optional: Any):
        """
        Args:
            samples (`torch.Tensor` of shape `(n, ...)`): Images, videos or latents.
            prompts (`list[str]`, *optional*): n texts, or None.
            first (`int`, *optional*, defaults to 0): Number of the first sample, for errors.
            optional: Arguments that are passed on if the function takes them.

        Returns:
            `torch.Tensor` of shape `(n,)`, float32 or wider: finite, or `-inf`, which ranks last, for NaN and `-inf`.
            Rewards that require a gradient keep it, and their values as they are.

        Raises:
            RewardError: If the function cannot be called so, raises an exception, or does not return n real numbers.
        """
        arguments = (samples, *prompts)
        optional = self._accepted(arguments, optional)
        try:
            values = self.reward_fn(*arguments, **optional)
        except (RewardError, torch.OutOfMemoryError):  # the first says all; the second is no fault of the function
            raise
        except Exception as error:
            rows = f"sample {first}" if len(samples) == 1 else f"samples {first} to {first + len(samples) - 1}"
            texts = list(dict.fromkeys(prompts[0] or ())) if prompts else []
            named = f" ({', '.join(map(repr, texts[:3]))}{', ...' if len(texts) > 3 else ''})" if texts else ""
            raise RewardError(
                f"{self.name} raised {type(error).__name__} for {rows}{named}: {error}. Mend the function, or what it "
                "is given."
            ) from error
        return self._numbers(values, len(samples), first)

    def _accepted(self, arguments: tuple, optional: dict[str, Any]) -> dict[str, Any]:
        """Those of the optional arguments that the function takes and the others do not fill already."""
        try:
            signature = inspect.signature(self.reward_fn)
        except ValueError:  # builtins may have none
            return {}
        parameters = signature.parameters
        filled = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD][: len(arguments)]
        optional = {name: value for name, value in optional.items() if name not in filled}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            optional = {name: value for name, value in optional.items() if name in parameters}
        try:
            signature.bind(*arguments, **optional)
        except TypeError as error:
            raise RewardError(
                f"{self.name} takes {signature} and is called with {len(arguments)} argument(s), "
                f"`reward_fn(images, prompts)` with pictures: {error}."
            ) from error
        return optional

    def _numbers(self, values: Any, count: int, first: int) -> torch.Tensor:
        if values is None:
            raise RewardError(f"{self.name} returned None: it must return one number per sample.")
        if isinstance(values, (list, tuple)) and (missing := [i for i, v in enumerate(values) if v is None]):
            raise RewardError(f"{self.name} returned None for sample {first + missing[0]}: it must return a number.")
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RewardError(f"{self.name} must return numbers, received {values!r}.") from error
        if values.is_complex() or values.numel() != count or values.ndim > 2:
            raise RewardError(
                f"{self.name} must return {count} real numbers, one per sample, received shape {tuple(values.shape)} "
                f"of {values.dtype}."
            )
        if values.requires_grad:
            return values.flatten()
        values = values.flatten().to(torch.promote_types(values.dtype, torch.float32))
        if (values == math.inf).any():
            raise RewardError(f"{self.name} returned +inf, which nothing can be compared with.")
        if not values.isfinite().all():
            warn_once(logger, f"{self.name} returned NaN or -inf for some samples; they rank last.")
            values = torch.where(values.isfinite(), values, torch.full_like(values, -math.inf))
        return values


def _name(reward_fn: Any) -> str:
    """How an error calls a reward function: its name, and where it is defined if that can be known."""
    while isinstance(reward_fn, functools.partial):
        reward_fn = reward_fn.func
    name = getattr(reward_fn, "__name__", type(reward_fn).__name__)
    code = getattr(reward_fn, "__code__", None)
    return f"`{name}`" if code is None else f"`{name}` ({Path(code.co_filename).name}, line {code.co_firstlineno})"


def as_prompts(prompts: str | Sequence[str] | None, count: int) -> list[str] | None:
    """
    The prompts of `count` samples: one text is that of all.

    Args:
        prompts (`str` or `Sequence[str]`, *optional*): One text, or one for each sample.
        count (`int`): Number of samples.

    Raises:
        ValueError: If there are not as many texts as samples.
    """
    if prompts is None:
        return None
    texts = [prompts] * count if isinstance(prompts, str) else list(prompts)
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"`prompts` must be one text, or one for each of {count} samples, received {len(texts)}: {texts[:3]!r}."
        )
    return texts


def by_prompt(rewards: torch.Tensor, num_prompts: int) -> torch.Tensor:
    """
    Checked rewards `[P * m]`, prompt-major, as `[P, m]`.

    Raises:
        ValueError: If a prompt has no finite one, so that there is no best.
    """
    rewards = rewards.detach().unflatten(0, (num_prompts, -1))
    if not (finite := rewards.isfinite().any(1)).all():
        raise RewardError(
            "The reward function returned no finite number for any sample of a prompt: all are NaN or -inf for prompt "
            f"{int(finite.int().argmin())} of {num_prompts}, counted from 0."
        )
    return rewards
