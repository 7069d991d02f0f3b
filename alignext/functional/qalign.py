# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
r"""The equations of QAlign (Faria and Smith: "Sample, Don't Search: Rethinking Test-Time Alignment for Language
Models", [arXiv 2504.03790](https://huggingface.co/papers/2504.03790)), whose sampler is that of QUEST
([arXiv 2406.00049](https://huggingface.co/papers/2406.00049)).

Notation: `p(y | x)` is the law of whole completions of the model, `r` a reward, `|y|` the number of tokens, the one
that ends the text included. The target is `pi(y | x) = p(y | x) exp(r(x, y) / beta) / Z(x)`. A proposal keeps the
first `i` tokens of `y`, with `i` uniform on `{0, ..., |y| - 1}`, and draws the rest anew from `p`.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import torch


def log_acceptance(
    rewards: torch.Tensor,
    proposed_rewards: torch.Tensor,
    lengths: torch.Tensor,
    proposed_lengths: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    r"""
    The logarithm of the Metropolis-Hastings ratio: a proposal is accepted with probability `min(1, exp(.))`.

        (r(y') - r(y)) / beta + log |y| - log |y'|

    The move by index `i` has the density `p(rest | y[:i]) / |y|`: `p` cancels against the target, the lengths stay.
    Balance holds for every `i` by itself, so that rows of a batch may share the draw of `i / |y|`.

    Args:
        rewards (`torch.Tensor` of shape `(B,)`): `r(y)`.
        proposed_rewards (`torch.Tensor` of shape `(B,)`): `r(y')`.
        lengths (`torch.Tensor` of shape `(B,)`): `|y|`, at least 1.
        proposed_lengths (`torch.Tensor` of shape `(B,)`): `|y'|`, at least 1.
        beta (`float`): Positive; the smaller, the more reward.

    Returns:
        `torch.Tensor` of shape `(B,)`, of the type of the rewards.
    """
    return (proposed_rewards - rewards) / beta + lengths.to(rewards).log() - proposed_lengths.to(rewards).log()


def suffix_starts(u: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """
    The indices `i = floor(u |y|)`, uniform on `{0, ..., |y| - 1}` for a uniform `u`.

    Args:
        u (`torch.Tensor` of shape `(B,)`): In `[0, 1)`; rows may have the same.
        lengths (`torch.Tensor` of shape `(B,)`): `|y|`, at least 1.

    Returns:
        `torch.Tensor` of shape `(B,)`, int64.
    """
    return torch.minimum((u.double() * lengths).long(), lengths.long() - 1)


def tilt_weights(rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """
    The weights `softmax(r / beta)` that make independent draws of `p` stand for the target: of soft best-of-n, and of
    weighted votes.

    Args:
        rewards (`torch.Tensor` of shape `(..., n)`): Of the draws.
        beta (`float`): Positive.

    Returns:
        `torch.Tensor` of shape `(..., n)`, which sums to 1 over the last axis.
    """
    return (rewards / beta).softmax(-1)


# What a chain is worth


def split_rhat(chains: torch.Tensor) -> torch.Tensor:
    """
    The potential scale reduction of Gelman and Rubin, over the halves of all chains: near 1 where they agree. With a
    single chain its halves are compared.

    Args:
        chains (`torch.Tensor` of shape `(C, N)`): A number for each state, such as its reward; `N >= 4`.

    Returns:
        `torch.Tensor`, a scalar; 1 where nothing varies, infinite where only means of halves do, NaN below 4 states.
    """
    half = chains.shape[1] // 2
    if half < 2:
        return torch.tensor(math.nan, dtype=torch.float64)
    parts = torch.cat([chains[:, :half], chains[:, -half:]]).double()
    within, between = parts.var(1).mean(), parts.mean(1).var()
    if within == 0:
        return torch.tensor(1.0 if between == 0 else math.inf, dtype=torch.float64)
    return (((half - 1) / half * within + between) / within).sqrt()


def effective_sample_size(chains: torch.Tensor) -> torch.Tensor:
    """
    How many independent draws estimate the mean as well as these states do: `C N / (1 + 2 sum_t rho_t)`, with the sum
    over pairs of lags up to the first pair that is not positive (Geyer's initial positive sequence), pairs never
    rising.

    Args:
        chains (`torch.Tensor` of shape `(C, N)`): A number for each state, such as its reward.

    Returns:
        `torch.Tensor`, a scalar of at most `C N log10(C N)`; NaN below 4 states or where nothing varies.
    """
    count, length = chains.shape
    if length < 4:
        return torch.tensor(math.nan, dtype=torch.float64)
    centered = chains.double() - chains.double().mean(1, keepdim=True)
    # autocovariance at every lag, by a transform of twice the length
    spectrum = torch.fft.rfft(centered, n=2 * length)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), n=2 * length)[:, :length] / length
    within = covariance[:, 0].mean() * length / (length - 1)
    pooled = (length - 1) / length * within
    if count > 1:
        pooled = pooled + chains.double().mean(1).var()
    if pooled == 0:
        return torch.tensor(math.nan, dtype=torch.float64)
    rho = 1 - (within - covariance.mean(0) * length / (length - 1)) / pooled
    rho[0] = 1.0
    pairs = rho[: length // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    stop = int((pairs <= 0).long().argmax()) if bool((pairs <= 0).any()) else len(pairs)
    tau = 2 * pairs[:stop].cummin(0).values.sum() - 1
    total = count * length
    return total / tau.clamp(min=1 / math.log10(total))


# Answers of several states


def rouge_1(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """
    ROUGE-1 F1: the harmonic mean of the shares of tokens that two texts have in common, repeats counted.

    Args:
        first (`Sequence`): Tokens.
        second (`Sequence`): Tokens.

    Returns:
        `float` in [0, 1]; 1 for two empty texts.
    """
    if not first and not second:
        return 1.0
    common = sum((Counter(first) & Counter(second)).values())
    return 2 * common / (len(first) + len(second))


def minimum_bayes_risk(texts: Sequence[Sequence[Hashable]], weights: Sequence[float] | None = None) -> int:
    """
    The state that is most like all others: `argmax_y sum_y' w(y') ROUGE-1(y, y')`, the first of equals.

    Args:
        texts (`Sequence[Sequence]`): Tokens of each state; repeats count as often as they occur.
        weights (`Sequence[float]`, *optional*): `w`; all equal if not given.

    Returns:
        `int`: Its place.
    """
    given = [1.0] * len(texts) if weights is None else weights
    mass: dict[tuple, float] = {}
    for text, weight in zip(texts, given, strict=True):
        mass[tuple(text)] = mass.get(tuple(text), 0.0) + weight
    utility = {text: sum(w * rouge_1(text, other) for other, w in mass.items()) for text in mass}
    return max(range(len(texts)), key=lambda i: utility[tuple(texts[i])])


def majority(answers: Sequence[Hashable | None], weights: Sequence[float] | None = None) -> int:
    """
    The first state with the answer that most states give.

    Args:
        answers (`Sequence`): The answer of each state; those with None do not vote.
        weights (`Sequence[float]`, *optional*): Of the votes; all equal if not given.

    Returns:
        `int`: Its place; 0 if nobody votes.
    """
    given = [1.0] * len(answers) if weights is None else weights
    votes: dict[Hashable, float] = {}
    for answer, weight in zip(answers, given, strict=True):
        if answer is not None:
            votes[answer] = votes.get(answer, 0.0) + weight
    return answers.index(max(votes, key=votes.__getitem__)) if votes else 0
