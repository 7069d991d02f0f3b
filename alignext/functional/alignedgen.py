# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The equations of AlignedGen (Zhang, Du, Wang, Gu, Li, Zhang: "AlignedGen: Aligning Style Across Generated Images",
[arXiv 2509.17088](https://huggingface.co/papers/2509.17088), NeurIPS 2025).

Notation: `a` is the anchor, the image whose style the others take over; `b` a target. Attention tensors have the
layout `(B, S, n, d)`: images, tokens, heads, channels of a head. A picture is `h x w` tokens, `N = h w`; the position
of a token is `(0, row, column)`. The paper's numbers of its equations were not at
hand; they are not numbered here.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def token_statistics(x: torch.Tensor, *, eps: float = 1e-5) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Mean and standard deviation over the tokens, separately per image, head and channel:

        mu = mean_s x_s,   sigma = sqrt(var_s(x_s) + eps)

    with the unbiased variance (the biased one, zero, for a single token), in float32 or better.

    Args:
        x (`torch.Tensor` of shape `(B, N, n, d)`):
            Queries or keys of image tokens, after their RMS norm and before their rotation.
        eps (`float`, *optional*, defaults to 1e-5):
            Added to the variance.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `mu` and `sigma` of shape `(B, 1, n, d)`.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(x, dim=1, keepdim=True, correction=min(1, x.shape[1] - 1))
    return mean, (var + eps).sqrt()


def adain(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, *, eps: float = 1e-5) -> torch.Tensor:
    r"""
    Give the tokens of each target the anchor's statistics, per head and channel:

        x_b <- (x_b - mu_b) / sigma_b * sigma_a + mu_a

    Args:
        x (`torch.Tensor` of shape `(B, N, n, d)`):
            Queries or keys of the targets' image tokens, after their RMS norm and before their rotation. Values and
            text tokens stay as they are.
        mean, std (`torch.Tensor` of shape `(1, 1, n, d)`):
            `mu_a` and `sigma_a`, from [`token_statistics`].
        eps (`float`, *optional*, defaults to 1e-5):
            As in [`token_statistics`].

    Returns:
        `torch.Tensor` of shape `(B, N, n, d)`, dtype of `x`.
    """
    own_mean, own_std = token_statistics(x, eps=eps)
    return ((x.to(own_mean.dtype) - own_mean) / own_std * std + mean).to(x.dtype)


def shifted_ids(ids: torch.Tensor, shift: tuple[float, ...]) -> torch.Tensor:
    """
    Positions of the anchor's keys as the targets see them (shifted position embedding): `ids + shift`.

    With `shift = (0, 0, w)` the anchor lies immediately to the right of a target of width `w`. In float32, since
    bfloat16 positions are exact up to 256 only.

    Args:
        ids (`torch.Tensor` of shape `(N, axes)`): The anchor's own positions.
        shift (`tuple[float, ...]`): What is added to each axis.

    Returns:
        `torch.Tensor` of shape `(N, axes)`, float32.
    """
    return ids.float() + torch.tensor(shift, dtype=torch.float32, device=ids.device)


def grid_size(ids: torch.Tensor) -> tuple[int, int]:
    """
    `(h, w)` of the smallest grid that holds all positions.

    Args:
        ids (`torch.Tensor` of shape `(N, axes)`): Positions of the tokens; axes 1 and 2 are row and column.
    """
    spread = ids[:, 1:3].float().aminmax(dim=0)
    h, w = (spread.max - spread.min + 1).tolist()
    return int(h), int(w)


def shared_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    shared_key: torch.Tensor,
    shared_value: torch.Tensor,
    *,
    style_lambda: float | torch.Tensor = 1.0,
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    r"""
    Attention of the targets to their own tokens and to the anchor's image tokens:

        out_b = softmax(q_b [K_b; lambda K_a]^T / sqrt(d)) [V_b; V_a]

    The anchor's keys are multiplied after their rotation, so `lambda` scales their logits. At `lambda = 0` these
    logits are 0, which is not the same as leaving the anchor out.

    Args:
        query, key, value (`torch.Tensor` of shape `(B, S, n, d)`):
            Of the targets, all their tokens, rotated.
        shared_key (`torch.Tensor` of shape `(1, N, n, d)`):
            `K_a`, rotated to the shifted positions; see [`shifted_ids`].
        shared_value (`torch.Tensor` of shape `(1, N, n, d)`):
            `V_a`.
        style_lambda (`float` or 0-dim `torch.Tensor`, *optional*, defaults to 1.0):
            `lambda`.
        attend (`Callable`, *optional*):
            Computes `softmax(q k^T / sqrt(d)) v` of three tensors in this layout; torch's scaled dot product
            attention if not given.

    Returns:
        `torch.Tensor` of shape `(B, S, n, d)`.
    """
    rows = len(query)
    key = torch.cat([key, (shared_key * style_lambda).expand(rows, -1, -1, -1)], dim=1)
    value = torch.cat([value, shared_value.expand(rows, -1, -1, -1)], dim=1)
    return (attend or plain_attention)(query, key, value)


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """
    `softmax(q k^T / sqrt(d)) v`.

    Args:
        query, key, value (`torch.Tensor` of shape `(B, S, n, d)`): Of S tokens and n heads.
    """
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def sigma_squared(sigma: float | torch.Tensor) -> float | torch.Tensor:
    """
    `lambda = sigma^2`, the decreasing schedule: strong while the layout forms, weak for the details.

    Args:
        sigma (`float` or `torch.Tensor`): Noise level, from 1 (noise) to 0.
    """
    return sigma * sigma
