# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""CHES scores: which preference pairs will lower the likelihood of their chosen answer (Razin et al.: "Unintentional
Unalignment: Likelihood Displacement in Direct Preference Optimization",
[arXiv 2410.08847](https://huggingface.co/papers/2410.08847), ICLR 2025). The score is its Definition 2, the growth of
the likelihood that it comes from its Theorem 6; the other equations are not numbered here.

Notation: `h_k` is the input of the output layer at the position that predicts the `k`-th token of an answer `y`,
`k = 1..|y|`; `S(y) = sum_k h_k`; `A_k = onehot(y_k) - p_k` over the vocabulary; `+` the chosen and `-` the rejected
answer.
"""

import torch


def answer_sums(states: torch.Tensor, answer_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `S(y)` and `|y|` of each row. The state at `t` predicts the token at `t + 1`, so that the state of an answer's last
    token does not count, and that of the last token before the answer does.

    Args:
        states (`torch.Tensor` of shape `(B, T, D)`): Last hidden states, after the final norm.
        answer_mask (`torch.Tensor` of shape `(B, T)`): 1 at the tokens of the answer, padding on either side.

    Returns:
        `torch.Tensor` of shape `(B, D)`, float64, and `torch.Tensor` of shape `(B,)`, float64. On MPS, float32.
    """
    wide = torch.float32 if states.device.type == "mps" else torch.float64
    mask = answer_mask[:, 1:].to(wide)
    kept = states[:, :-1].to(wide).masked_fill(mask[..., None] == 0, 0.0)
    return kept.sum(1), mask.sum(1)


def ches_scores(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """
    `CHES = <S(y+), S(y-)> - |S(y+)|^2`, computed as `<S(y+), S(y-) - S(y+)>`, in which nothing cancels. The larger,
    the more the likelihood of the chosen answer falls. Longer rejected answers score higher, so that only pairs of
    equal lengths compare.

    Args:
        chosen (`torch.Tensor` of shape `(B, D)`): `S(y+)`, see [`answer_sums`][alignext.functional.ches.answer_sums].
        rejected (`torch.Tensor` of shape `(B, D)`): `S(y-)`.

    Returns:
        `torch.Tensor` of shape `(B,)`.
    """
    return (chosen * (rejected - chosen)).sum(-1)


def ln_ches_scores(
    chosen: torch.Tensor, rejected: torch.Tensor, chosen_lengths: torch.Tensor, rejected_lengths: torch.Tensor
) -> torch.Tensor:
    """
    The length-normalised score, `<S(y+), S(y-)> / (|y+| |y-|) - |S(y+)|^2 / |y+|^2`: CHES of the mean states, by which
    pairs are filtered.

    Args:
        chosen (`torch.Tensor` of shape `(B, D)`): `S(y+)`.
        rejected (`torch.Tensor` of shape `(B, D)`): `S(y-)`.
        chosen_lengths (`torch.Tensor` of shape `(B,)`): `|y+|`.
        rejected_lengths (`torch.Tensor` of shape `(B,)`): `|y-|`.

    Returns:
        `torch.Tensor` of shape `(B,)`; NaN where an answer is empty.
    """
    return ches_scores(chosen / chosen_lengths[:, None], rejected / rejected_lengths[:, None])


def growth_kernel(
    states: torch.Tensor, residuals: torch.Tensor, other_states: torch.Tensor, other_residuals: torch.Tensor
) -> torch.Tensor:
    """
    `K(a, b) = sum_kl <A_k, A_l> <h_k, h_l>`, the inner product of the gradients of `log pi(a)` and `log pi(b)` by the
    output layer. Training on a pair makes `log pi(y+)` grow, as far as that layer goes, in proportion to
    `K(+, +) - K(+, -)`; CHES is what is left with every `<A_k, A_l>` set to 1, its sign turned.

    Args:
        states (`torch.Tensor` of shape `(n, D)`): `h_k` of one answer.
        residuals (`torch.Tensor` of shape `(n, V)`): `A_k` of its tokens.
        other_states (`torch.Tensor` of shape `(m, D)`): `h_l` of the other answer.
        other_residuals (`torch.Tensor` of shape `(m, V)`): `A_l` of its tokens.

    Returns:
        `torch.Tensor`, a scalar.
    """
    return ((residuals @ other_residuals.T) * (states @ other_states.T)).sum()
