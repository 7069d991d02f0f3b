# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Log-probabilities under a head of low rank, `z = W h + B u`, in tiles: neither `W + B A` nor the logits exist."""

from typing import Any, NamedTuple

import torch


TOKENS = 4096  # of a tile
VOCABULARY = 32768


class HeadOutputs(NamedTuple):
    """Scores of `N` tokens under a head; gradients flow through `log_probs` only.

    Attributes:
        log_probs (`torch.Tensor` of shape `(N,)`): `log softmax(z)[target]`, float32.
        entropy (`torch.Tensor` of shape `(N,)`): Of `softmax(z)`, in nats.
        mean_logits (`torch.Tensor` of shape `(N,)`): The mean of `z` over the vocabulary.
        is_top1 (`torch.Tensor` of shape `(N,)`): Whether the target has the largest logit, the first one in a tie.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor


def low_rank_log_probs(
    hidden: torch.Tensor,  # (N, d)
    down: torch.Tensor,  # (N, r)
    weight: torch.Tensor,  # (V, d)
    up: torch.Tensor,  # (V, r)
    targets: torch.Tensor,  # (N,)
    *,
    bias: torch.Tensor | None = None,  # (V,)
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocabulary_tile: int = VOCABULARY,
) -> HeadOutputs:
    r"""
    Scores `targets` under the logits `z = f(W h + B u + b)` with `u = s A h` and `f(x) = c tanh(x scale / c)`, or `x
    scale` without a cap `c`. `W` gets no gradient: it is the frozen head that the low-rank ones are added to.

    The largest thing made is a tile of 4,096 tokens by `vocabulary_tile` logits, forwards and again backwards.
    Statistics and gradients are summed in float32 (float64 for float64 inputs).

    Args:
        hidden (`torch.Tensor` of shape `(N, d)`): `h`.
        down (`torch.Tensor` of shape `(N, r)`): `u`.
        weight (`torch.Tensor` of shape `(V, d)`): `W`.
        up (`torch.Tensor` of shape `(V, r)`): `B`.
        targets (`torch.Tensor` of shape `(N,)`): Token ids.
        bias (`torch.Tensor` of shape `(V,)`, *optional*): `b`, as frozen as `W`.
        logit_scale (`float`, *optional*, defaults to 1.0): `scale`.
        softcap (`float`, *optional*): `c`.
        vocabulary_tile (`int`, *optional*, defaults to 32768): Width of a tile.

    Returns:
        [`HeadOutputs`][alignext.functional.low_rank_head.HeadOutputs].
    """
    settings = (logit_scale, softcap, vocabulary_tile)
    return HeadOutputs(*_LowRankLogProbs.apply(hidden, down, up, weight.detach(), bias, targets, settings))


class _LowRankLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, down, up, weight, bias, targets, settings):
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wide = torch.promote_types(dtype, torch.float32)
        n, vocabulary = len(hidden), len(weight)
        log_z, top, target = (hidden.new_full((n,), -torch.inf, dtype=wide) for _ in range(3))
        mean, expected = (hidden.new_zeros(n, dtype=wide) for _ in range(2))
        first = torch.zeros_like(targets)  # index of the largest logit so far
        ctx.settings, ctx.dtype, ctx.wide = settings, dtype, wide
        for rows, columns in _tiles(n, vocabulary, settings[2]):
            z, _ = _tile(ctx, hidden, down, weight, up, bias, rows, columns)
            new_log_z = torch.logaddexp(log_z[rows], z.logsumexp(-1))
            p = (z - new_log_z[:, None]).exp()
            expected[rows] = expected[rows] * (log_z[rows] - new_log_z).exp() + (p * z).sum(-1)
            log_z[rows] = new_log_z
            mean[rows] += z.sum(-1)
            largest, index = z.max(-1)
            first[rows] = torch.where(largest > top[rows], index + columns.start, first[rows])
            top[rows] = torch.maximum(top[rows], largest)
            local = targets[rows] - columns.start
            inside = (local >= 0) & (local < z.shape[-1])
            here = z.gather(-1, local.clamp(0, z.shape[-1] - 1)[:, None])[:, 0]
            target[rows] = torch.where(inside, here, target[rows])
        ctx.save_for_backward(hidden, down, up, weight, bias, targets, log_z)
        outputs = target - log_z, log_z - expected, mean / vocabulary, first == targets
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any):
        hidden, down, up, weight, bias, targets, log_z = ctx.saved_tensors
        grads = [torch.zeros_like(x, dtype=ctx.wide) for x in (hidden, down, up)]
        gradient = gradients[0].to(ctx.wide)
        for rows, columns in _tiles(len(hidden), len(weight), ctx.settings[2]):
            z, slope = _tile(ctx, hidden, down, weight, up, bias, rows, columns)
            # d log p(target) / dz_j = 1[j = target] - p_j
            g = z.sub_(log_z[rows, None]).exp_().neg_()
            local = targets[rows] - columns.start
            inside = (local >= 0) & (local < g.shape[-1])
            g.scatter_add_(1, local.clamp(0, g.shape[-1] - 1)[:, None], inside[:, None].to(g.dtype))
            g = (g * slope).mul_(gradient[rows, None]).to(ctx.dtype)
            grads[0][rows] += (g @ weight[columns].to(ctx.dtype)).to(ctx.wide)
            grads[1][rows] += (g @ up[columns].to(ctx.dtype)).to(ctx.wide)
            grads[2][columns] += (g.t() @ down[rows].to(ctx.dtype)).to(ctx.wide)
        return *(g.to(x.dtype) for g, x in zip(grads, (hidden, down, up), strict=True)), None, None, None, None


def _tiles(n: int, vocabulary: int, width: int) -> list[tuple[slice, slice]]:
    """The rows and columns of each tile."""
    rows = [slice(i, min(i + TOKENS, n)) for i in range(0, n, TOKENS)]
    columns = [slice(i, min(i + width, vocabulary)) for i in range(0, vocabulary, width)]
    return [(row, column) for row in rows for column in columns]


def _tile(ctx: Any, hidden, down, weight, up, bias, rows, columns) -> tuple[torch.Tensor, torch.Tensor | float]:
    """The logits of a tile and their derivative with respect to what the head gives."""
    scale, cap, _ = ctx.settings
    dtype = ctx.dtype
    z = hidden[rows].to(dtype) @ weight[columns].to(dtype).t()
    z.addmm_(down[rows].to(dtype), up[columns].to(dtype).t())
    if bias is not None:
        z += bias[columns].to(dtype)
    z = z.to(ctx.wide)
    if scale != 1.0:
        z = z * scale
    if cap is None:
        return z, scale
    squashed = torch.tanh(z / cap)
    return cap * squashed, scale * (1 - squashed * squashed)
