# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""The equations of f-DPG (Go, Korbak, Kruszewski, Rozen, Ryu, Dymetman: "Aligning Language Models with Preferences
through f-divergence Minimization", [arXiv 2302.08215](https://huggingface.co/papers/2302.08215), ICML 2023), and of
its family: GDC ([2012.11635](https://huggingface.co/papers/2012.11635)), CDPG
([2112.00791](https://huggingface.co/papers/2112.00791)).

Notation: `a` the initial policy, `pi` the policy, `q` the proposal that samples, `P = a exp(s)` the target without its
normaliser `Z`, `p = P / Z` the target, `t = pi / p`. All log-probabilities are of whole sequences. Everywhere

    log_t = log pi - log p = log pi - (log P - log Z)

so a positive `log_t` is a sequence that the policy gives too much, and `log_t = inf` one that the target excludes. All
is computed in float64 (float32 on MPS, which has no other).

Here are the advantages and the loss. The divergences are in `alignext.functional.f_divergences`, `Z` and distances in
`alignext.functional.target_estimates`, the coefficients of moments in `alignext.functional.moment_matching`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from alignext.functional.f_divergences import DIVERGENCES, Divergence, _wide, f_prime, f_value
from alignext.functional.moment_matching import fit_lambda
from alignext.functional.target_estimates import (
    divergence_estimates,
    effective_sample_size,
    estimate_log_z,
    qrs_estimates,
)


__all__ = [  # of the family, in one place
    "DIVERGENCES",
    "Divergence",
    "GroupAdvantages",
    "advantages",
    "divergence_estimates",
    "effective_sample_size",
    "estimate_log_z",
    "f_dpg_loss",
    "f_prime",
    "f_value",
    "fit_lambda",
    "group_advantages",
    "pseudo_rewards",
    "qrs_estimates",
]


def pseudo_rewards(
    divergence: Divergence, log_t: torch.Tensor, alpha: float | None = None, reward_clip: float | None = None
) -> torch.Tensor:
    r"""
    `-f'(t)`, clipped if wanted.

    Args:
        divergence (`str` or `Callable[[torch.Tensor], torch.Tensor]`):
            One of `DIVERGENCES`, or `f'` as a function of `log t`.
        log_t (`torch.Tensor`): `log pi - log p`, any shape, in `[-inf, inf]`.
        alpha (`float`, *optional*): `A` of `"alpha"`.
        reward_clip (`float`, *optional*): The result is clipped to plus and minus this.

    Returns:
        `torch.Tensor` of the shape of `log_t`, float64.
    """
    r = -(f_prime(divergence, log_t, alpha) if isinstance(divergence, str) else divergence(log_t))
    return r if reward_clip is None else r.clamp(-reward_clip, reward_clip)


def advantages(
    divergence: Divergence,
    log_pi: torch.Tensor,
    log_target: torch.Tensor,
    log_z: torch.Tensor,
    baseline: torch.Tensor | float = 0.0,
    *,
    alpha: float | None = None,
    reward_clip: float | None = None,
) -> torch.Tensor:
    r"""
    The advantages of samples whose `Z` and baseline are known, as the loss of [`FDPGTrainer`] takes them anew at every
    pass over its samples:

        u_i   = log pi_i - log P_i + log Z_i
        adv_i = -f'(exp u_i) - b_i

    Args:
        divergence (`str` or `Callable[[torch.Tensor], torch.Tensor]`):
            One of `DIVERGENCES`, or `f'` as a function of `log t`.
        log_pi (`torch.Tensor` of shape `(N,)`): Log-probabilities under the policy, detached here.
        log_target (`torch.Tensor` of shape `(N,)`): `log P`; `-inf` for excluded samples, NaN without a score.
        log_z (`torch.Tensor` of shape `(N,)`): `log Z`; NaN or `-inf` where there is no estimate.
        baseline (`torch.Tensor` of shape `(N,)` or `float`, *optional*, defaults to 0.0): `b`.
        alpha (`float`, *optional*): `A` of `"alpha"`.
        reward_clip (`float`, *optional*): Pseudo-rewards are clipped to plus and minus this.

    Returns:
        `torch.Tensor` of shape `(N,)`, float64; 0 for samples without a score or an estimate of `Z`.
    """
    log_pi, log_p, log_z = _wide(log_pi.detach()), _wide(log_target), _wide(log_z)
    known = ~log_p.isnan() & log_z.isfinite()
    log_t = torch.where(known, log_pi - log_p + log_z, 0.0)
    return torch.where(known, pseudo_rewards(divergence, log_t, alpha, reward_clip) - baseline, 0.0)


class GroupAdvantages(NamedTuple):
    """
    The result of [`group_advantages`][alignext.functional.f_dpg.group_advantages]: float64 of shape `(..., N)` each.

    Attributes:
        advantages (`torch.Tensor`): `-f'(t) - b`; 0 for samples without a score or an estimate of `Z`.
        log_t (`torch.Tensor`): `log pi - log P + log Z`; NaN there.
        pseudo_rewards (`torch.Tensor`): `-f'(t)`; 0 there.
        baseline (`torch.Tensor`): `b`; 0 there.
        log_z (`torch.Tensor`): The log of the `Z` that each sample was scored with; NaN or `-inf` there.
    """

    advantages: torch.Tensor
    log_t: torch.Tensor
    pseudo_rewards: torch.Tensor
    baseline: torch.Tensor
    log_z: torch.Tensor


def group_advantages(
    divergence: Divergence,
    log_pi: torch.Tensor,
    log_target: torch.Tensor,
    log_q: torch.Tensor | None = None,
    *,
    alpha: float | None = None,
    log_z: float | torch.Tensor | None = None,
    log_sum: float = -math.inf,
    count: int = 0,
    leave_one_out: bool = True,
    baseline: str | float = "leave_one_out",
    reward_clip: float | None = None,
) -> GroupAdvantages:
    r"""
    The advantages of the `N` samples of a context, for any number of contexts:

        u_i   = log pi_i - log P_i + log Z_{-i}
        adv_i = -f'(u_i) - b_i
        b_i   = mean_{j != i} -f'(log pi_j - log P_j + log Z_{-i})

    All terms of `b_i` have the `Z` of sample `i`, so that `b_i` does not depend on it and leaves the expected gradient
    as it is. Minimising goes along `-mean_i (pi_i / q_i) adv_i grad log pi_i`, see
    [`f_dpg_loss`][alignext.functional.f_dpg.f_dpg_loss]. With `"reverse_kl"` the advantages are those of RLOO with the
    reward `s - (log pi - log a)`.

    Args:
        divergence (`str` or `Callable[[torch.Tensor], torch.Tensor]`):
            One of `DIVERGENCES`, or `f'` as a function of `log t`.
        log_pi (`torch.Tensor` of shape `(..., N)`): Log-probabilities under the policy, finite.
        log_target (`torch.Tensor` of shape `(..., N)`):
            `log P = log a + s`, not normalised; `-inf` for excluded samples, NaN for samples without a score.
        log_q (`torch.Tensor` of shape `(..., N)`, *optional*): Under the proposal; `log_pi` if not given.
        alpha (`float`, *optional*): `A` of `"alpha"`.
        log_z (`float` or `torch.Tensor`, *optional*):
            Known `log Z`, instead of an estimate: one for all, of shape `(..., 1)` for each context, or `(..., N)`.
        log_sum, count, leave_one_out: Of [`estimate_log_z`][alignext.functional.target_estimates.estimate_log_z].
        baseline (`str` or `float`, *optional*, defaults to `"leave_one_out"`):
            `"leave_one_out"` (above), `"constant"` (`-f'(1)`), `"none"`, or a number. A sample without siblings has
            the constant one.
        reward_clip (`float`, *optional*): Pseudo-rewards are clipped to plus and minus this.

    Returns:
        [`GroupAdvantages`][alignext.functional.f_dpg.GroupAdvantages].

    Raises:
        ValueError: There is no such divergence or baseline. Or a pseudo-reward is infinite: the divergence is
            infinite where the target is 0, and the policy drew such a sample.
    """
    log_pi, log_p = _wide(log_pi), _wide(log_target)
    log_q = log_pi if log_q is None else _wide(log_q)

    def rewards(log_t: torch.Tensor) -> torch.Tensor:
        return pseudo_rewards(divergence, log_t, alpha, reward_clip)

    if log_z is None:
        log_z = estimate_log_z(log_p - log_q, log_sum=log_sum, count=count, leave_one_out=leave_one_out)
    log_z = _wide(log_z).to(log_p.device).expand_as(log_p)
    known = ~log_p.isnan() & log_z.isfinite()
    log_t = torch.where(known, log_pi - log_p + log_z, math.nan)
    pseudo = torch.where(known, rewards(torch.where(known, log_t, 0.0)), 0.0)
    _refuse_infinite(pseudo, log_t)
    b = torch.where(known, _baseline(baseline, rewards, log_pi - log_p, log_z, known), 0.0)
    return GroupAdvantages(pseudo - b, log_t, pseudo, b, log_z)


def _refuse_infinite(pseudo: torch.Tensor, log_t: torch.Tensor) -> None:
    if pseudo.isinf().any():
        raise ValueError(
            f"A sample has the pseudo-reward {pseudo[pseudo.isinf()][0].item()}, at log(pi / p) = "
            f"{log_t[pseudo.isinf()][0].item()}. If that is inf, the target excludes the sample, and this divergence "
            "is infinite there: use 'js', 'tv' or 'forward_kl', or a target that excludes nothing. Else clip: "
            "`log_t_clip` or `reward_clip`."
        )


def _baseline(
    baseline: str | float,
    rewards: Callable[[torch.Tensor], torch.Tensor],
    log_ratio: torch.Tensor,
    log_z: torch.Tensor,
    known: torch.Tensor,
) -> torch.Tensor:
    """`b` of every sample, from `log_ratio = log pi - log P`, which is NaN without a score."""
    if baseline == "none":
        return torch.zeros_like(log_ratio)
    if not isinstance(baseline, str):
        return torch.full_like(log_ratio, baseline)
    at_one = rewards(torch.zeros_like(log_ratio[..., :1]))
    if baseline == "constant":
        return at_one.expand_as(log_ratio)
    if baseline != "leave_one_out":
        raise ValueError(f"`baseline` must be 'leave_one_out', 'constant', 'none' or a number, received {baseline!r}.")
    scored = ~log_ratio.isnan()
    siblings = scored.sum(-1, keepdim=True) - 1
    total = _sum_over_siblings(rewards, torch.where(scored, log_ratio, 0.0), log_z, scored, known)
    return torch.where(siblings > 0, total / siblings.clamp(min=1), at_one)


def _sum_over_siblings(
    rewards: Callable[[torch.Tensor], torch.Tensor],
    log_ratio: torch.Tensor,
    log_z: torch.Tensor,
    scored: torch.Tensor,
    known: torch.Tensor,
) -> torch.Tensor:
    """`sum_{j != i} r(log_ratio_j + log_z_i)` over the scored `j`, of shape `(..., N)`, a block of `i` at a time."""
    log_z = torch.where(known, log_z, 0.0)
    n = log_z.shape[-1]
    sums = []
    for block in torch.arange(n, device=log_z.device).split(max(1, 2**20 // max(1, log_z.numel()))):
        other = scored[..., None, :] & (block[:, None] != torch.arange(n, device=log_z.device))
        r = rewards(log_ratio[..., None, :] + log_z[..., block, None])
        sums.append(torch.where(other, r, 0.0).sum(-1))
    return torch.cat(sums, -1)


def f_dpg_loss(
    log_pi: torch.Tensor,
    advantages: torch.Tensor,
    log_q: torch.Tensor | None = None,
    *,
    ratio_clip: float | None = None,
) -> torch.Tensor:
    r"""
    The loss of each sample, whose mean is minimised:

        -(pi_i / q_i) adv_i log pi_i

    with a gradient through the last factor alone: on average that of `D_f(pi || p)`. Its value means nothing.

    Args:
        log_pi (`torch.Tensor` of shape `(N,)`): Log-probabilities under the policy, with gradient.
        advantages (`torch.Tensor` of shape `(N,)`): `-f'(t) - b`, detached here.
        log_q (`torch.Tensor` of shape `(N,)`, *optional*): Under the proposal that sampled; `log_pi` if not given.
        ratio_clip (`float`, *optional*): Largest `pi / q`.

    Returns:
        `torch.Tensor` of shape `(N,)`, of the type of `log_pi`.
    """
    if log_q is None:
        return -advantages.detach().to(log_pi) * log_pi
    ratio = (log_pi.detach() - log_q).exp()
    if ratio_clip is not None:
        ratio = ratio.clamp(max=ratio_clip)
    return -ratio * advantages.detach().to(log_pi) * log_pi
