# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""
D²-Align: a direction in the text space of a reward that takes its own taste out of it.

"Taming Preference Mode Collapse via Directional Decoupling Alignment in Diffusion Reinforcement Learning", Chen et
al., arXiv 2512.24146. Equations are not numbered here. A reward compares unit vectors of a picture and of its prompt;
with `e` of the prompt, the direction `b` and the guidance scale `w`:

    e+ = normalize(e + b),   e- = normalize(e - b),   e~ = e- + w (e+ - e-),   R = scale <e_image, e~>

`e~` is not normalised again. `b = 0` gives `e` for every `w`, `w = 1` gives `e+`, `w = 1/2` the mean of both, and a
small `b` about `e + (2 w - 1) P b` with `P` the projector orthogonal to `e`. Stage 1 finds the `b` that maximises `R`
of the pictures of a frozen generator. Without a bound it grows for ever, `e~ -> 2 (w - 1/2) b / |b|`, and `R` forgets
the prompt: hence `max_norm` and `keep_margin`, which the paper does not have.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


def guided_text(e: torch.Tensor, b: torch.Tensor, w: float) -> torch.Tensor:
    """
    `e~`, the text embedding led by a direction.

    Args:
        e (`torch.Tensor` of shape `(..., d)`): Unit vectors of prompts.
        b (`torch.Tensor` of shape `(d,)`): The direction.
        w (`float`): Guidance scale.

    Returns:
        `torch.Tensor` of the shape of `e`, not normalised.
    """
    minus = F.normalize(e - b, dim=-1)
    return minus + w * (F.normalize(e + b, dim=-1) - minus)


def relative_text(e_positive: torch.Tensor, e_negative: torch.Tensor, k: float) -> torch.Tensor:
    """
    `(1 + k) e_positive - e_negative`: the relative preference of SRPO (arXiv 2509.06942), the prompt with a wanted and
    with an unwanted word.

    Args:
        e_positive, e_negative (`torch.Tensor` of shape `(..., d)`): Unit vectors of both prompts.
        k (`float`): How much more the wanted word counts; 0 or more.

    Returns:
        `torch.Tensor` of the same shape, not normalised.
    """
    return (1 + k) * e_positive - e_negative


def prompt_margin(
    e_image: torch.Tensor,  # (n, d)
    texts: torch.Tensor,  # (u, d)
    index: torch.Tensor,  # (n,)
) -> torch.Tensor:
    """
    How much better a picture fits its own prompt than another one: the mean of `<e_image, e~>` minus the mean over all
    other prompts, which is the expectation of shuffling them.

    Args:
        e_image (`torch.Tensor` of shape `(n, d)`): Pictures.
        texts (`torch.Tensor` of shape `(u, d)`): The distinct prompts, `u >= 2`.
        index (`torch.Tensor` of shape `(n,)`): The prompt of each picture.

    Returns:
        `torch.Tensor`: A number.
    """
    own = texts[index]
    others = (texts.sum(0) - own) / (len(texts) - 1)
    return (e_image * (own - others)).sum(-1).mean()


class DirectionFit(NamedTuple):
    """
    What stage 1 found.

    Attributes:
        direction (`torch.Tensor` of shape `(d,)`): `b`.
        plain_margin, margin (`float`): [`prompt_margin`] without a direction, and with it.
        plain_reward, reward (`float`): Mean `<e_image, e~>`, likewise.
        steps (`int`): After how many steps this direction was taken.
        stopped (`bool`): Whether the margin ended the fit before `num_steps`.
        log (`list[dict[str, float]]`): `step`, `reward`, `margin` and `norm` of the direction at every check.
    """

    direction: torch.Tensor
    plain_margin: float
    margin: float
    plain_reward: float
    reward: float
    steps: int
    stopped: bool
    log: list[dict[str, float]]


def fit_direction(
    e_image: torch.Tensor,  # (n, d)
    texts: torch.Tensor,  # (u, d)
    index: torch.Tensor,  # (n,)
    w: float = 1.5,
    *,
    num_steps: int = 2000,
    max_norm: float | None = 0.3,
    keep_margin: float | None = 0.8,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    check_every: int = 10,
    seed: int = 0,
) -> DirectionFit:
    """
    Stage 1: `b` from 0 by Adam on `-R` of embeddings that were computed once. After every step `b` is cut to
    `max_norm`; when the margin falls below `keep_margin` times the plain one, the fit goes back to the last check and
    ends.

    Args:
        e_image (`torch.Tensor` of shape `(n, d)`): Unit vectors of pictures of the frozen generator.
        texts (`torch.Tensor` of shape `(u, d)`): Unit vectors of the distinct prompts, `u >= 2`.
        index (`torch.Tensor` of shape `(n,)`): The prompt of each picture.
        w (`float`, *optional*, defaults to 1.5): Guidance scale.
        num_steps (`int`, *optional*, defaults to 2000): At most so many.
        max_norm (`float`, *optional*, defaults to 0.3): Largest norm of `b`; `None` for the bare formula.
        keep_margin (`float`, *optional*, defaults to 0.8): Share of the margin that stays; `None` never ends early.
        learning_rate (`float`, *optional*, defaults to 1e-3): Of Adam.
        batch_size (`int`, *optional*, defaults to 64): Pictures in a step.
        check_every (`int`, *optional*, defaults to 10): Steps between two looks at the margin of all pictures.
        seed (`int`, *optional*, defaults to 0): Of the batches.

    Returns:
        [`DirectionFit`]

    Raises:
        ValueError: There are fewer than two distinct prompts, an argument is out of range, or the reward does not tell
            the prompts apart, so that there is no margin to keep.
    """
    if len(texts) < 2:
        raise ValueError(f"`texts` must have two different prompts or more, received {len(texts)}.")
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"`max_norm` must be more than 0, or None, received {max_norm}.")
    if keep_margin is not None and not 0 <= keep_margin <= 1:
        raise ValueError(f"`keep_margin` must be in [0, 1], or None, received {keep_margin}.")
    if min(num_steps, batch_size, check_every) < 1:
        raise ValueError(
            f"`num_steps`, `batch_size` and `check_every` must be 1 or more, received {num_steps}, {batch_size} and "
            f"{check_every}."
        )
    b = torch.zeros_like(texts[0]).requires_grad_()
    optimizer = torch.optim.Adam([b], lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def look(step: int) -> dict[str, float]:
        led = guided_text(texts, b, w)
        reward = (e_image * led[index]).sum(-1).mean()
        margin = prompt_margin(e_image, led, index)
        return {"step": step, "reward": reward.item(), "margin": margin.item(), "norm": b.norm().item()}

    log = [look(0)]
    floor = -float("inf") if keep_margin is None else keep_margin * log[0]["margin"]
    if keep_margin is not None and log[0]["margin"] <= 0:
        raise ValueError(
            "The base reward does not tell the prompts apart: its margin between a picture's own prompt and others "
            f"is {log[0]['margin']:.4g}. Take prompts that differ, another reward, or `keep_margin=None`."
        )
    kept, chosen, stopped = b.detach().clone(), log[0], False
    for step in range(1, num_steps + 1):
        rows = torch.randint(len(e_image), (batch_size,), generator=generator).to(index.device)
        loss = -(e_image[rows] * guided_text(texts[index[rows]], b, w)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if max_norm is not None:
            with torch.no_grad():
                b *= (max_norm / b.norm().clamp(min=1e-12)).clamp(max=1)
        if step % check_every == 0 or step == num_steps:
            log.append(look(step))
            if stopped := log[-1]["margin"] < floor:
                break
            kept, chosen = b.detach().clone(), log[-1]
    return DirectionFit(
        kept, log[0]["margin"], chosen["margin"], log[0]["reward"], chosen["reward"], int(chosen["step"]), stopped, log
    )
