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
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F


# The name of a divergence, or its f' as a function of log t.
Divergence = str | Callable[[torch.Tensor], torch.Tensor]

_LOG_2 = math.log(2)


def _wide(value: torch.Tensor | float | Sequence[float]) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        return torch.tensor(value, dtype=torch.float64)
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


class _Generator(NamedTuple):
    """`f` and `f'` of a divergence in `u = log t`; `f'` also gets the clipped `u`, for exponentials."""

    f: Callable[[torch.Tensor], torch.Tensor]
    f_prime: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    at_zero: float  # f(0)
    at_one: float  # f'(1)


def _alpha(a: float) -> _Generator:
    return _Generator(
        lambda u: ((a * u).expm1() - a * u.expm1()) / (a * (a - 1)),
        lambda u, c: ((a - 1) * c).expm1() / (a - 1),
        1 / a if a > 0 else math.inf,
        0.0,
    )


_GENERATORS = {
    "forward_kl": _Generator(lambda u: -u, lambda u, c: -(-c).exp(), math.inf, -1.0),
    "reverse_kl": _Generator(lambda u: u.exp() * u, lambda u, c: u + 1, 0.0, 1.0),
    "js": _Generator(
        lambda u: u.exp() * (_LOG_2 + F.logsigmoid(u)) + _LOG_2 + F.logsigmoid(-u),
        lambda u, c: _LOG_2 + F.logsigmoid(u),
        _LOG_2,
        0.0,
    ),
    "tv": _Generator(
        lambda u: u.expm1().abs() / 2,
        lambda u, c: torch.where(u.abs() < 1e-12, 0.0, u.sign() / 2),  # rounding is no sign
        0.5,
        0.0,
    ),
    "chi2_forward": _Generator(lambda u: -u.expm1() * (-u).expm1(), lambda u, c: -(-2 * c).expm1(), math.inf, 0.0),
    "chi2_reverse": _Generator(lambda u: u.expm1().square(), lambda u, c: 2 * c.expm1(), 1.0, 0.0),
    "hellinger": _Generator(lambda u: (u / 2).expm1().square(), lambda u, c: -(-c / 2).expm1(), 1.0, 0.0),
    "jeffreys": _Generator(lambda u: u.expm1() * u, lambda u, c: u - (-c).expm1(), math.inf, 0.0),
}
DIVERGENCES = (*_GENERATORS, "alpha")


def _generator(name: str, alpha: float | None) -> _Generator:
    if name not in DIVERGENCES:
        raise ValueError(f"`divergence` must be one of {', '.join(DIVERGENCES)}, received {name!r}.")
    if name != "alpha":
        return _GENERATORS[name]
    if alpha is None or alpha in (0, 1) or not math.isfinite(alpha):
        raise ValueError(
            f"`alpha` must be a finite number other than 0 and 1, received {alpha}. The limits of the divergence "
            "there are 'forward_kl' (0) and 'reverse_kl' (1)."
        )
    return _alpha(alpha)


# Divergences


def f_value(name: str, log_t: torch.Tensor, alpha: float | None = None) -> torch.Tensor:
    r"""
    The generator `f(t)` of `D_f(pi || p) = E_p[f(pi / p)] + f'(inf) pi(p = 0)`, with `f(1) = 0`:

        forward_kl     -log t                                   KL(p, pi)
        reverse_kl     t log t                                  KL(pi, p)
        js             t log(2t/(t+1)) + log(2/(t+1))           twice the Jensen-Shannon divergence
        tv             |t - 1| / 2                              sum |pi - p| / 2
        chi2_forward   (t - 1)^2 / t                            sum (p - pi)^2 / pi
        chi2_reverse   (t - 1)^2                                sum (pi - p)^2 / p
        hellinger      (sqrt t - 1)^2                           sum (sqrt pi - sqrt p)^2
        jeffreys       (t - 1) log t                            KL(p, pi) + KL(pi, p)
        alpha          (t^A - A t - 1 + A) / (A (A - 1))        A = 1/2: 2 hellinger, 2: chi2_reverse / 2

    Args:
        name (`str`): One of `DIVERGENCES`.
        log_t (`torch.Tensor`): `log pi - log p`, any shape, in `[-inf, inf)`.
        alpha (`float`, *optional*): `A` of `"alpha"`, not 0 or 1.

    Returns:
        `torch.Tensor` of the shape of `log_t`, float64.

    Raises:
        ValueError: There is no such divergence, or `alpha` does not fit.
    """
    generator = _generator(name, alpha)
    u = _wide(log_t)
    return torch.where(u == -math.inf, generator.at_zero, generator.f(u))


def f_prime(
    name: str,
    log_t: torch.Tensor,
    alpha: float | None = None,
    *,
    normalize: bool = False,
    log_t_clip: float = 30.0,
) -> torch.Tensor:
    r"""
    The derivative `f'(t)`, as a function of `u = log t`; the pseudo-reward of a sample is `-f'(t)`:

        forward_kl     -exp(-u)                 from -inf at t = 0    to 0 at t = inf
        reverse_kl     u + 1                         -inf                inf
        js             log 2 - log(1 + exp(-u))      -inf                log 2
        tv             sign(u) / 2                   -1/2                1/2
        chi2_forward   1 - exp(-2u)                  -inf                1
        chi2_reverse   2 (exp(u) - 1)                -2                  inf
        hellinger      1 - exp(-u/2)                 -inf                1
        jeffreys       u + 1 - exp(-u)               -inf                inf
        alpha          (exp((A-1)u) - 1) / (A-1)     -inf (A < 1)        1/(1-A) (A < 1), inf (A > 1)

    A sample that the target excludes has `u = inf` and so `f'(inf)`.

    Args:
        name (`str`): One of `DIVERGENCES`.
        log_t (`torch.Tensor`): `log pi - log p`, any shape, in `[-inf, inf]`.
        alpha (`float`, *optional*): `A` of `"alpha"`, not 0 or 1.
        normalize (`bool`, *optional*, defaults to `False`):
            Subtract `f'(1)`, which leaves the divergence as it is (`f(t) + c (t - 1)` is the same one).
        log_t_clip (`float`, *optional*, defaults to 30.0):
            `u` is clipped to plus and minus this inside exponentials; `inf` for no clip. Has no effect on
            `"reverse_kl"`, `"js"` and `"tv"`, nor on `u = inf`.

    Returns:
        `torch.Tensor` of the shape of `log_t`, float64.

    Raises:
        ValueError: There is no such divergence, or `alpha` does not fit.
    """
    generator = _generator(name, alpha)
    u = _wide(log_t)
    value = generator.f_prime(u, torch.where(u == math.inf, u, u.clamp(-log_t_clip, log_t_clip)))
    return value - generator.at_one if normalize else value


# Partition function


def effective_sample_size(log_w: torch.Tensor) -> torch.Tensor:
    """
    `(sum w)^2 / sum w^2` of importance weights: `n` if all are the same, 1 if one has it all, 0 if there are none.

    Args:
        log_w (`torch.Tensor` of shape `(..., n)`): Log-weights, up to a constant; `-inf` and NaN weigh nothing.

    Returns:
        `torch.Tensor` of shape `(...)`, float64.
    """
    log_w = _wide(log_w)
    log_w = torch.where(log_w.isnan(), -math.inf, log_w)
    return (2 * log_w.logsumexp(-1) - (2 * log_w).logsumexp(-1)).exp().nan_to_num(0.0)


def estimate_log_z(
    log_w: torch.Tensor, *, log_sum: float = -math.inf, count: int = 0, leave_one_out: bool = True
) -> torch.Tensor:
    r"""
    The log of the partition function `Z = E_q[P / q]` of one context, for each of its `N` samples from all others:

        log Z_{-i} = log((S + sum_{j != i} w_j) / (n + N - 1)),  w_j = P_j / q_j

    with `S` and `n` the sum and the number of the weights seen before. As `Z_{-i}` does not depend on sample `i`, the
    gradient of reverse KL is unbiased and that of a power of `t` is parallel to the true one; with the sample itself
    in its `Z` neither is.

    Where `Z_{-i} = 0` and only `w_i` is positive, the sample's `Z` includes it, so that the one success counts. Where
    nothing but the sample itself is known, the estimate is NaN.

    Args:
        log_w (`torch.Tensor` of shape `(..., N)`):
            `log P - log q`; `-inf` where `P = 0`, NaN where the sample has no score: it is left out.
        log_sum (`float`, *optional*, defaults to `-inf`): `log S`.
        count (`int`, *optional*, defaults to 0): `n`.
        leave_one_out (`bool`, *optional*, defaults to `True`): Else the sample itself is in its sum, and `N` divides.

    Returns:
        `torch.Tensor` of shape `(..., N)`, float64.
    """
    log_w = _wide(log_w)
    valid = ~log_w.isnan()
    log_w = torch.where(valid, log_w, -math.inf)
    past = torch.full_like(log_w, log_sum)
    n = valid.sum(-1, keepdim=True).to(log_w) + count
    inclusive = torch.logaddexp(past, log_w.logsumexp(-1, keepdim=True)) - n.log()
    if not leave_one_out:
        return inclusive
    others = torch.logaddexp(past, _log_sum_of_others(log_w)) - (n - valid.to(log_w)).log()
    return torch.where((others == -math.inf) & (inclusive > -math.inf), inclusive, others)


def _log_sum_of_others(log_w: torch.Tensor) -> torch.Tensor:
    """`log sum_{j != i} exp(log_w_j)` along the last dimension, from the sums before and after."""
    none = torch.full_like(log_w[..., :1], -math.inf)
    before = torch.cat([none, log_w.logcumsumexp(-1)[..., :-1]], -1)
    after = torch.cat([none, log_w.flip(-1).logcumsumexp(-1)[..., :-1]], -1).flip(-1)
    return torch.logaddexp(before, after)


# Gradient


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
        log_sum, count, leave_one_out: Of [`estimate_log_z`][alignext.functional.f_dpg.estimate_log_z].
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


# Distributional targets

_LARGEST_STEP = 2.0  # nats


def fit_lambda(
    log_w: torch.Tensor,
    phi: torch.Tensor,
    moments: torch.Tensor | Sequence[float],
    *,
    tolerance: float = 1e-12,
    max_iterations: int = 100,
    max_abs: float = 50.0,
    names: Sequence[str] | None = None,
) -> torch.Tensor:
    r"""
    The coefficients `lambda` of the target `p(x|c) = a(x|c) exp(lambda . phi(x)) / Z(c)` that has the given moments,
    by Newton's method with a halving line search on the convex dual, in steps that move the weights by at most 2 nats:

        L(lambda) = mean_c log sum_i w_ci exp(lambda . phi_ci) - lambda . mu
        gradient  = mean_c mu_c(lambda) - mu,  Hessian = mean_c Cov_c(phi)

    Weights are normalised within each context, and contexts averaged. Of all distributions with these moments the
    result is the one nearest to `a` in `KL(p, a)`. For one feature in {0, 1} and one context it is
    `logit(mu) - logit(mu_a)`.

    Args:
        log_w (`torch.Tensor` of shape `(n,)` or `(C, K)`):
            `log a - log q` of samples from `q`, 0 for samples from `a`; `-inf` weighs nothing. With a binary
            constraint add `log b`.
        phi (`torch.Tensor` of shape `(n, F)` or `(C, K, F)`): The features.
        moments (`torch.Tensor` of shape `(F,)`): `mu`, the wanted means.
        tolerance (`float`, *optional*, defaults to 1e-12):
            Largest error of a moment. Where rounding ends the search earlier, 1e-6 will do.
        max_iterations (`int`, *optional*, defaults to 100): Of Newton's method.
        max_abs (`float`, *optional*, defaults to 50.0): Largest coefficient; what needs more counts as out of reach.
        names (`Sequence[str]`, *optional*): Of the features, for messages.

    Returns:
        `torch.Tensor` of shape `(F,)`, float64.

    Raises:
        ValueError: No sample has a weight, a feature is constant or not finite, or the moments cannot be reached.
    """
    log_w, phi = _wide(log_w), _wide(phi)
    mu = _wide(moments).to(phi)
    if log_w.ndim == 1:
        log_w, phi = log_w[None], phi[None]
    log_w = torch.where(log_w.isnan(), -math.inf, log_w)
    kept = (log_w > -math.inf).any(1)  # a context without any weight says nothing
    if not kept.any():
        raise ValueError("No sample has a positive weight, so `lambda` cannot be fitted: the constraint is never met.")
    log_w, phi = log_w[kept], phi[kept]
    phi = torch.where((log_w > -math.inf)[..., None], phi, 0.0)
    _check_moments(log_w, phi, mu, names or [f"feature {k}" for k in range(len(mu))])

    def state(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = log_w + phi @ value
        dual = logits.logsumexp(1).mean() - value @ mu
        weights = logits.softmax(1)
        mean = torch.einsum("ck,ckf->cf", weights, phi)
        centred = phi - mean[:, None]
        hessian = torch.einsum("ck,ckf,ckg->fg", weights, centred, centred) / len(log_w)
        return dual, mean.mean(0) - mu, hessian

    value = torch.zeros_like(mu)
    dual, gradient, hessian = state(value)
    for _ in range(max_iterations):
        if gradient.abs().max() < tolerance or value.abs().max() > max_abs:
            break
        damping = 1e-8 * hessian.trace() + torch.finfo(hessian.dtype).tiny
        step = torch.linalg.solve(hessian + damping * torch.eye(len(mu), dtype=mu.dtype, device=mu.device), gradient)
        size = 1.0
        while size > 1e-10:
            trial = value - size * step
            dual_there, gradient_there, hessian_there = state(trial)
            # The last steps change the dual by less than its rounding.
            falls = dual_there <= dual - 1e-4 * size * (gradient @ step) + 1e-13 * (1 + dual.abs())
            # KL(weights, weights there), by which rare features do not take a step to where all weight is on them:
            # the Hessian is 0 there, and nothing leads back.
            if falls and dual_there - dual + size * (gradient @ step) <= _LARGEST_STEP:
                break
            size /= 2
        else:
            break
        value, dual, gradient, hessian = trial, dual_there, gradient_there, hessian_there
    if gradient.abs().max() >= max(tolerance, 1e-6) or value.abs().max() > max_abs:
        reached = (gradient + mu).tolist()
        raise ValueError(
            f"The moments {mu.tolist()} cannot be reached together with coefficients up to {max_abs:g}: the search "
            f"ended at {reached} with lambda {value.tolist()}. Ask for less, take more samples, or scale the features "
            "up. A moment at the edge of its feature is a hard constraint: give `None` for it."
        )
    return value


def _check_moments(log_w: torch.Tensor, phi: torch.Tensor, mu: torch.Tensor, names: Sequence[str]) -> None:
    if len(mu) != phi.shape[-1] or len(names) != len(mu):
        raise ValueError(f"There are {phi.shape[-1]} features, {len(mu)} moments and {len(names)} names of features.")
    wrong = ~phi.isfinite()
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{names[where[-1]]} is {phi[where].item()} for a sample. A feature has to be a finite number."
        )
    absent = (log_w == -math.inf)[..., None]
    low = torch.where(absent, math.inf, phi).amin(1).mean(0)
    high = torch.where(absent, -math.inf, phi).amax(1).mean(0)
    base = torch.einsum("ck,ckf->cf", log_w.softmax(1), phi).mean(0)
    for k, name in enumerate(names):
        found = f"mean {base[k]:.4g}, range [{low[k]:.4g}, {high[k]:.4g}] over {log_w.numel()} samples"
        if low[k] == high[k]:
            raise ValueError(f"{name} is constant in what the initial model writes ({found}): no moment but its own.")
        if not low[k] < mu[k] < high[k]:
            raise ValueError(
                f"The moment {mu[k]:.4g} of {name} is out of reach: in what the initial model writes it has {found}. "
                "A moment must lie inside the range; for a constraint that always holds give `None`."
            )


# Estimates


def divergence_estimates(
    log_pi: torch.Tensor,
    log_target: torch.Tensor,
    log_ref: torch.Tensor | None = None,
    log_q: torch.Tensor | None = None,
    *,
    log_z: float | torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    r"""
    Distances between policy, target and initial model, from samples of `q`. With `rho = pi / q`, `w = P / (Z q)` and
    `m = (p + pi) / 2`:

        kl_target_policy = KL(p, pi) = -log Z + mean[w (log P - log pi)]
        tv               = mean|rho - w| / 2
        js               = mean[w (log p - log m) + rho (log pi - log m)] / 2   (the JSD: half of the objective "js")
        kl_policy_base   = KL(pi, a) = mean[rho (log pi - log a)]
        kl_target_base   = KL(p, a)  = -log Z + mean[w (log P - log a)]

    Samples with `p = 0` add 0 to `KL(p, .)`.

    Args:
        log_pi (`torch.Tensor` of shape `(N,)`): Log-probabilities under the policy.
        log_target (`torch.Tensor` of shape `(N,)`): `log P`, not normalised; `-inf` for excluded samples.
        log_ref (`torch.Tensor` of shape `(N,)`, *optional*): `log a`; without it the last two are left out.
        log_q (`torch.Tensor` of shape `(N,)`, *optional*): Under the proposal; `log_pi` if not given.
        log_z (`float` or `torch.Tensor`, *optional*):
            `log Z`, finite, one or one a sample; `log mean(P / q)` of these samples if not given.

    Returns:
        `dict[str, torch.Tensor]`: scalars, float64. Without `log_z`, `tv` and `js` are NaN and the KLs of the target
        `inf` if all samples are excluded: nothing is known of the target.
    """
    log_pi, log_p = _wide(log_pi), _wide(log_target)
    log_q = log_pi if log_q is None else _wide(log_q)
    if log_z is None:
        log_z = estimate_log_z(log_p - log_q, leave_one_out=False)
    log_z = _wide(log_z).to(log_p.device).expand_as(log_p)
    rho, w = (log_pi - log_q).exp(), (log_p - log_z - log_q).exp()
    inside = log_p > -math.inf

    def under_target(log_ratio: torch.Tensor) -> torch.Tensor:
        return torch.where(inside, w * torch.where(inside, log_ratio, 0.0), 0.0)

    log_m = torch.logaddexp(log_p - log_z, log_pi) - _LOG_2
    estimates = {
        "kl_target_policy": (under_target(log_p - log_pi) - log_z).mean(),
        "tv": (rho - w).abs().mean() / 2,
        "js": (under_target(log_p - log_z - log_m) + rho * (log_pi - log_m)).mean() / 2,
    }
    if log_ref is not None:
        log_ref = _wide(log_ref)
        estimates["kl_policy_base"] = (rho * (log_pi - log_ref)).mean()
        estimates["kl_target_base"] = (under_target(log_p - log_ref) - log_z).mean()
    return estimates


def qrs_estimates(
    log_target: torch.Tensor, log_q: torch.Tensor, betas: torch.Tensor | Sequence[float] | float
) -> dict[str, torch.Tensor]:
    r"""
    Estimates of quasi-rejection sampling from samples of `q`. It accepts `x ~ q` with probability
    `min(1, P / (beta q))`, and so samples `p_beta = min(P, beta q) / Z_beta`. The larger `beta`, the nearer `p_beta`
    is to `p` and the more is rejected.

        z               = E_q[P / q]
        z_beta          = E_q[min(P / q, beta)]
        acceptance_rate = z_beta / beta
        kl              = KL(p, p_beta),  tv = TV(p, p_beta)

    Args:
        log_target (`torch.Tensor` of shape `(N,)`): `log P`, not normalised.
        log_q (`torch.Tensor` of shape `(N,)`): Log-probabilities under the proposal that sampled.
        betas (`torch.Tensor` of shape `(B,)` or `float`): Positive, on the scale of `P / q`.

    Returns:
        `dict[str, torch.Tensor]`: of shape `(B,)` each, float64; `kl` and `tv` are NaN where no sample has weight.

    Raises:
        ValueError: A `beta` is not positive.
    """
    log_w, betas = _wide(log_target) - _wide(log_q), _wide(betas)
    if not (betas > 0).all():
        raise ValueError(f"`betas` are {betas.tolist()}, but each must be positive.")
    log_beta = betas.log().reshape(-1, 1).to(log_w.device)
    log_n = math.log(len(log_w))
    capped = torch.minimum(log_w, log_beta)  # (B, N)
    log_z, log_z_beta = log_w.logsumexp(0) - log_n, capped.logsumexp(1, keepdim=True) - log_n
    log_p, log_p_beta = log_w - log_z, capped - log_z_beta  # relative to q
    inside = log_w > -math.inf
    difference = torch.where(inside, log_p - log_p_beta, 0.0)
    shape = betas.reshape(-1).shape
    return {
        "z": log_z.exp().expand(shape),
        "z_beta": log_z_beta[:, 0].exp(),
        "acceptance_rate": (log_z_beta - log_beta)[:, 0].exp(),
        "kl": (log_p.exp() * difference).mean(1),
        "tv": (log_p.exp() - log_p_beta.exp()).abs().mean(1) / 2,
    }
