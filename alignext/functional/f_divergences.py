# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""f-divergences `D_f(pi || p)` by their generator `f` and its derivative, in the logarithm of `t = pi / p`. All is
computed in float64 (float32 on MPS, which has no other)."""

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
