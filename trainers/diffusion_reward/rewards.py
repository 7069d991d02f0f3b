# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The rewards of a trainer: several of the library's one protocol, with weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from alignext.rewards.protocol import CheckedReward, RewardError
from alignext.rewards.texts import function_name


class Rewards:
    """
    The weighted sum of rewards.

    Args:
        functions (`Callable` or `Sequence[Callable]`): Each `f(images, prompts, **columns) -> [n]`, larger is better.
        weights (`Sequence[float]`, *optional*): One for each; 1 each by default.
        differentiable (`bool`): Whether gradients have to flow from each of them to the pictures.

    Raises:
        ValueError: There is none, their number is not that of the weights, or one has no gradient and needs one.
    """

    def __init__(
        self,
        functions: Callable[..., Any] | Sequence[Callable[..., Any]],
        weights: Sequence[float] | None,
        *,
        differentiable: bool,
    ) -> None:
        given: list[Any] = list(functions) if isinstance(functions, list | tuple) else [functions]
        if not given:
            raise ValueError("`reward_funcs` must have a reward, received an empty list.")
        self.members = [CheckedReward.of(function) for function in given]
        self.weights = [1.0] * len(given) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(given):
            raise ValueError(
                f"`reward_weights` must be as many as there are `reward_funcs`, {len(given)}, received "
                f"{len(self.weights)}."
            )
        self.differentiable = differentiable
        for member in self.members:
            if member.input_type != "image":
                raise ValueError(f"`reward_funcs` must be of pictures, and {member.name} is one of latents.")
            if differentiable and not getattr(member.reward_fn, "differentiable", False):
                raise ValueError(
                    f"`reward_funcs` must be differentiable, and {member.name} does not say that it is. Set its "
                    "attribute `differentiable = True` if gradients flow from its result to the pictures; if not, "
                    "train with DDPOTrainer, which takes any reward."
                )
        names = [function_name(function).strip("<>") for function in given]
        repeated = {name for name in names if names.count(name) > 1}
        self.names = [f"{name}_{i}" if name in repeated else name for i, name in enumerate(names)]

    def __call__(
        self, images: torch.Tensor, prompts: list[str], columns: Mapping[str, list[Any]]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Weighted sums, and each reward by its name, all of shape `(n,)`.

        Raises:
            RewardError: A reward is not finite, or has no gradient where it needs one.
        """
        found, total = {}, torch.zeros(len(images), device=images.device)
        for name, member, weight in zip(self.names, self.members, self.weights, strict=True):
            values = member(images, list(prompts), **dict[str, Any](columns)).to(images.device)
            if not values.isfinite().all():
                row = int((~values.isfinite()).nonzero()[0])
                raise RewardError(f"{member.name} returned no finite number for sample {row} ({prompts[row]!r}).")
            if self.differentiable and torch.is_grad_enabled() and images.requires_grad and not values.requires_grad:
                raise RewardError(
                    f"{member.name} returned a detached tensor: there is no gradient to train with. It must compute "
                    "with tensors, without `torch.no_grad`; DDPOTrainer takes rewards without gradient."
                )
            found[name] = values.detach().float()
            total = total + weight * values.float()
        return total, found
