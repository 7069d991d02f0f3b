# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""AlignProp (arXiv 2310.03739) and DRaFT (arXiv 2309.17400): a reward's gradient through the last steps of sampling.

A trajectory has `T` steps from noise to picture. The last `K` of them keep their graph, one `K` for a trajectory; the
latents are cut off before the first of these. `K = T` is all of it, a fixed `K` is DRaFT-K, a random one AlignProp.
"""

import math
from typing import Any

import torch


# A rule for K: a number, "all", ("gaussian", mean, deviation), or ("uniform", lowest, highest) with None for T - 1.
Rule = int | str | tuple[Any, ...]


def parse_backprop_steps(rule: Any) -> Rule:
    """
    A rule for `K` in one form.

    Args:
        rule (`int`, `str` or `tuple`): A number; `"all"`; `"gaussian"` with mean 8 and deviation 5, `"gaussian:8:5"`
            or `("gaussian", 8, 5)`; `"uniform"` over 1 to T - 1, `"uniform:1:20"` or `("uniform", 1, 20)`.

    Returns:
        `int`, `"all"`, `("gaussian", mean, deviation)` or `("uniform", lowest, highest)`.

    Raises:
        ValueError: It is none of these.
    """
    parts = rule.split(":") if isinstance(rule, str) else list(rule) if isinstance(rule, list | tuple) else [rule]
    wrong = ValueError(
        "`backprop_steps` must be a number of steps of 1 or more, 'all', 'gaussian', 'gaussian:MEAN:STD', 'uniform' "
        f"or 'uniform:LOWEST:HIGHEST', received {rule!r}."
    )
    try:
        match parts:
            case ["all"]:
                return "all"
            case ["gaussian"]:
                return ("gaussian", 8.0, 5.0)
            case ["gaussian", mean, std] if float(std) >= 0 and math.isfinite(float(mean)):
                return ("gaussian", float(mean), float(std))
            case ["uniform"]:
                return ("uniform", 1, None)
            case ["uniform", low, high] if 1 <= int(low) <= int(high):
                return ("uniform", int(low), int(high))
            case [number] if not isinstance(number, bool | float) and int(number) >= 1:
                return int(number)
    except (TypeError, ValueError):
        pass
    raise wrong


def backprop_steps(rule: Rule, num_steps: int, u: float) -> int:
    """
    `K` of a trajectory. The Gaussian one is `ceil(mean + std z)`, clipped to 1 to T. The reference draws again where
    this clips: of 50 steps, with mean 8 and deviation 5, that is 9.1 on the average and this 8.6.

    Args:
        rule (`Rule`): From [`parse_backprop_steps`].
        num_steps (`int`): `T`.
        u (`float`): The random number, in [0, 1).

    Raises:
        ValueError: The rule asks for more than `T` steps.
    """
    T = num_steps
    if rule == "all":
        return T
    if isinstance(rule, tuple) and rule[0] == "gaussian":
        z = torch.special.ndtri(torch.tensor(min(max(u, 1e-12), 1 - 1e-12), dtype=torch.float64)).item()
        return min(max(math.ceil(rule[1] + rule[2] * z), 1), T)
    low, high = (rule[1], rule[2] or max(1, T - 1)) if isinstance(rule, tuple) else (int(rule), int(rule))
    if high > T:
        raise ValueError(f"`backprop_steps` must be at most `num_inference_steps`, {T}, received {high}.")
    return low + int(u * (high - low + 1))


def reward_loss(rewards: torch.Tensor, *, target: float | None = None, margin: float | None = None) -> torch.Tensor:
    """
    What is minimised for each sample: `-r`; with a target `|r - target|`; with a margin `max(0, margin - r)`, which
    stops at samples that are good enough.

    Args:
        rewards (`torch.Tensor` of shape `(n,)`): Of the samples.
        target, margin (`float`, *optional*): One of them at most.

    Raises:
        ValueError: If both are given.
    """
    if target is not None and margin is not None:
        raise ValueError("`reward_target` and `reward_margin` are two forms of the loss. Give one of them.")
    if target is not None:
        return (rewards - target).abs()
    return -rewards if margin is None else (margin - rewards).clamp(min=0)
