# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""The equations of steering vector decoding (Hu et al.: "Distribution-Aligned Decoding for Efficient LLM Task
Adaptation", [arXiv 2509.15888](https://huggingface.co/papers/2509.15888), NeurIPS 2025). Not numbered here.

Notation, for one position: `z` are the logits of the tuned model, `p = softmax(z)`, `q` is the law of the base
model, `d = log p - log q`, `KL = KL(p || q) = sum p d`. All is computed in float32 or wider.
"""

from typing import NamedTuple

import torch


DIRECTIONS = ("kl_gradient", "logit_difference")
ESTIMATORS = ("newton", "paper", "grid")


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def steering(tuned: torch.Tensor, base: torch.Tensor, direction: str = "kl_gradient") -> torch.Tensor:
    r"""
    The direction `v` in which logits move away from the base model:

        kl_gradient        v = p (d - KL) = d KL(p || q) / dz
        logit_difference   v = d

    The first is `-J g` of the paper, with `J = diag(p) - p p^T` the Jacobian of the softmax and `g = -(d + 1)`: the
    paper's `mu J g` leads towards the base for a positive `mu`, so that its strength is `-mu`. The second is that of
    contrastive decoding and of proxy tuning. Tokens that the base model excludes do not move.

    Args:
        tuned (`torch.Tensor` of shape `(..., V)`): `z`; `-inf` excludes a token.
        base (`torch.Tensor` of shape `(..., V)`): Logits of the base model.
        direction (`str`, *optional*, defaults to `"kl_gradient"`): One of `DIRECTIONS`.

    Returns:
        `torch.Tensor` of shape `(..., V)`, float32 or wider.

    Raises:
        ValueError: There is no such direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` must be one of {', '.join(DIRECTIONS)}, received {direction!r}.")
    log_p, log_q = _wide(tuned).log_softmax(-1), _wide(base).log_softmax(-1)
    both = (log_p > -torch.inf) & (log_q > -torch.inf)
    d = torch.where(both, log_p, 0.0) - torch.where(both, log_q, 0.0)
    if direction == "logit_difference":
        return d
    p = log_p.exp()
    return torch.where(both, p * (d - (p * d).sum(-1, keepdim=True)), 0.0)


def plausible(tuned: torch.Tensor, alpha: float) -> torch.Tensor:
    r"""
    The confidence mask `p(y) >= alpha max p`; the likeliest token is always in it.

    Args:
        tuned (`torch.Tensor` of shape `(..., V)`): `z`.
        alpha (`float`): In `[0, 1]`; 0 keeps every token.

    Returns:
        `torch.Tensor` of shape `(..., V)`, bool.
    """
    log_p = _wide(tuned).log_softmax(-1)
    if alpha == 0:
        return torch.ones_like(log_p, dtype=torch.bool)
    largest = log_p.amax(-1, keepdim=True)
    return (log_p >= largest + torch.tensor(alpha, dtype=log_p.dtype).log().to(log_p.device)) | (log_p == largest)


def steered_logits(
    tuned: torch.Tensor,
    base: torch.Tensor,
    strength: float,
    alpha: float = 0.1,
    direction: str = "kl_gradient",
) -> torch.Tensor:
    r"""
    `z + strength v` where the mask keeps a token, `-inf` elsewhere. The mask comes after the scaling, so that it
    excludes the same tokens for a strength of any sign.

    Args:
        tuned (`torch.Tensor` of shape `(..., V)`): `z`.
        base (`torch.Tensor` of shape `(..., V)`): Logits of the base model; not read with a strength of 0.
        strength (`float`): Positive leads away from the base model, negative towards it; 0 changes nothing.
        alpha (`float`, *optional*, defaults to 0.1): Of [`plausible`][alignext.functional.svdecode.plausible].
        direction (`str`, *optional*, defaults to `"kl_gradient"`):
            Of [`steering`][alignext.functional.svdecode.steering].

    Returns:
        `torch.Tensor` of shape `(..., V)`, of the type of `tuned`.
    """
    moved = tuned if strength == 0 else (_wide(tuned) + strength * steering(tuned, base, direction)).to(tuned)
    return moved if alpha == 0 else moved.masked_fill(~plausible(tuned, alpha), -torch.inf)


class Positions(NamedTuple):
    """
    Positions with a known next token, on the tokens that the mask keeps.

    Attributes:
        logits (`torch.Tensor` of shape `(n, m)`): `z`, float64; `-inf` fills up.
        steering (`torch.Tensor` of shape `(n, m)`): `v`, float64; 0 fills up.
        targets (`torch.Tensor` of shape `(n,)`): The column of the next token.
        excluded (`int`): Positions that were left out, since the mask does not keep their next token.
    """

    logits: torch.Tensor
    steering: torch.Tensor
    targets: torch.Tensor
    excluded: int


def kept_positions(
    tuned: torch.Tensor, base: torch.Tensor, targets: torch.Tensor, alpha: float, direction: str
) -> Positions:
    """
    The part of logits that a fit of the strength reads.

    Args:
        tuned (`torch.Tensor` of shape `(n, V)`): `z`.
        base (`torch.Tensor` of shape `(n, V)`): Logits of the base model.
        targets (`torch.Tensor` of shape `(n,)`): The next tokens.
        alpha (`float`): Of the mask.
        direction (`str`): Of the steering.

    Returns:
        [`Positions`][alignext.functional.svdecode.Positions].
    """
    mask = plausible(tuned, alpha)
    inside = mask.gather(-1, targets[:, None])[:, 0]
    tuned, base, targets, mask = tuned[inside], base[inside], targets[inside], mask[inside]
    v = steering(tuned, base, direction).double()
    width = int(mask.sum(-1).max()) if len(mask) else 1
    # Kept tokens first, in their order.
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)[:, :width]
    kept = mask.gather(-1, order)
    z = torch.where(kept, tuned.double().gather(-1, order), -torch.inf)
    column = (order == targets[:, None]).to(torch.uint8).argmax(-1)
    return Positions(z, torch.where(kept, v.gather(-1, order), 0.0), column, int((~inside).sum()))


def mean_nll(positions: Positions, strength: float) -> float:
    """
    The mean of `-log p_s(y)` over the positions, with `p_s = softmax(z + s v)` on the kept tokens.

    Args:
        positions ([`Positions`][alignext.functional.svdecode.Positions]): At least one.
        strength (`float`): `s`.

    Returns:
        `float`, in nats.
    """
    log_p = (positions.logits + strength * positions.steering).log_softmax(-1)
    return float(-log_p.gather(-1, positions.targets[:, None]).mean())


def fit_strength(
    positions: Positions, estimator: str = "newton", grid: tuple[float, ...] = (), steps: int = 5
) -> float:
    r"""
    The strength `s` under which known tokens are likely. With `e_y` the known token, sums and means over positions:

        newton   s <- s + sum <e_y - p_s, v> / sum Var_{p_s}(v), which is exact on the mean NLL: it is convex in s
        paper    mean of <e_y - p, v> / (||v||^2 + 1e-12)
        grid     the value of `grid`, or 0, with the smallest NLL

    The denominator of the paper is not the curvature of the NLL, `Var_p(v) = sum p v^2 - (sum p v)^2`; its steps are
    too short where probabilities are small.

    Args:
        positions ([`Positions`][alignext.functional.svdecode.Positions]): At least one.
        estimator (`str`, *optional*, defaults to `"newton"`): One of `ESTIMATORS`.
        grid (`tuple[float, ...]`, *optional*): Of the last.
        steps (`int`, *optional*, defaults to 5): Newton steps behind the first; each halved until the NLL falls.

    Returns:
        `float`; 0 where the models do not differ.

    Raises:
        ValueError: There is no such estimator, or no position.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"`estimator` must be one of {', '.join(ESTIMATORS)}, received {estimator!r}.")
    z, v, targets, _ = positions
    if not len(z):
        raise ValueError("`positions` must have at least one known token that the mask keeps, received none.")
    if estimator == "grid":
        return min((0.0, *grid), key=lambda s: mean_nll(positions, s))
    known = v.gather(-1, targets[:, None])[:, 0]
    if estimator == "paper":
        ratios = (known - (z.softmax(-1) * v).sum(-1)) / (v.square().sum(-1) + 1e-12)
        return float(ratios[v.abs().amax(-1) > 1e-8].mean().nan_to_num(0.0))
    s, nll = 0.0, mean_nll(positions, 0.0)
    for _ in range(1 + steps):
        p = (z + s * v).softmax(-1)
        mean = (p * v).sum(-1)
        curvature = (p * v.square()).sum() - mean.square().sum()
        if curvature <= 1e-12 * len(z):
            break
        step = float((known - mean).sum() / curvature)
        while (there := mean_nll(positions, s + step)) > nll and abs(step) > 1e-9:
            step /= 2
        if there >= nll:
            break
        s, nll = s + step, there
    return s
