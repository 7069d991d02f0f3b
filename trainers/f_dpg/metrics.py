# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The figures that f-DPG logs of a batch, and what it warns of."""

import math
from collections.abc import Iterator, Sequence

import torch
from accelerate.utils import gather_object

from alignext.functional.target_estimates import divergence_estimates, effective_sample_size

from .diversity import distinct_n, self_bleu
from .samples import Estimates, Samples
from .state import FDPGState


def batch_metrics(samples: Samples, found: Estimates, names: Sequence[str]) -> dict[str, float]:
    """Everything about a batch that needs no more than its samples, see the documentation of f-DPG."""
    contexts = samples.contexts()
    z = found.full_log_z[torch.tensor([int(rows[0]) for rows in contexts.values()])]
    z = z[~z.isnan()]
    log_w = found.log_p - samples.log_q
    scored = found.scored
    known = scored & found.full_log_z.isfinite()
    noted: dict[str, float | torch.Tensor] = {
        "z/ess": torch.stack([effective_sample_size(log_w[rows]) for rows in contexts.values()]).mean(),
        "advantage/std": found.advantages.std(correction=0),
    }
    if scored.any():
        noted["in_support_fraction"] = (found.log_p[scored] > -math.inf).double().mean()
    if len(z):
        noted |= {"z/mean": z.exp().mean(), "z/zero_fraction": (z == -math.inf).double().mean()}
    if (z > -math.inf).any():
        noted["z/log_mean"] = z[z > -math.inf].mean()
    if known.any():
        pseudo = found.pseudo_rewards[known]
        log_t = samples.log_pi[known] - found.log_p[known] + found.full_log_z[known]
        finite = log_t[log_t.isfinite()]
        noted |= {
            "pseudo_reward/mean": pseudo.mean(),
            "pseudo_reward/max": pseudo.max(),
            "boost_minus_downweight": (log_t < 0).sum() - (log_t > 0).sum(),
        }
        if len(finite):
            noted |= {"log_t/mean": finite.mean(), "log_t/min": finite.min(), "log_t/max": finite.max()}
        noted |= {f"divergence/{name}": value for name, value in distances(samples, found, known, "policy").items()}
        noted |= _features(samples, found, known, names)
    return {name: float(value) for name, value in noted.items()}


def distances(samples: Samples, found: Estimates, known: torch.Tensor, whose: str) -> dict[str, torch.Tensor]:
    """Distances of the policy, or of the proposal, from target and initial model."""
    log_q = samples.log_q[known]
    return divergence_estimates(
        samples.log_pi[known] if whose == "policy" else log_q,
        found.log_p[known],
        samples.log_ref[known],
        log_q,
        log_z=found.full_log_z[known],
    )


def _features(samples: Samples, found: Estimates, known: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """The mean of each reward function under the policy, and under the target by importance sampling."""
    log_q = samples.log_q[known]
    rho = (samples.log_pi[known] - log_q).exp()
    w = (found.log_p[known] - found.full_log_z[known] - log_q).exp()
    means = {}
    for k, name in enumerate(names):
        values = samples.rewards[known, k]
        given = ~values.isnan()
        for whose, weights in (("policy", rho), ("target", w)):
            total = weights[given].sum()
            if total > 0:
                means[f"features/{name}/{whose}"] = ((weights[given] * values[given]).sum() / total).item()
    return means


def diversity(completions: list) -> dict[str, float]:
    """Differences between at most 128 completions of all processes."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in gather_object(completions)][:128]
    measures = {f"diversity/distinct_{n}": distinct_n(texts, n) for n in (1, 2, 3)}
    return measures | {"diversity/self_bleu_5": self_bleu(texts)}


def poor_weights(samples: Samples, found: Estimates) -> Iterator[str]:
    """Reasons why the estimates of a batch are poor."""
    log_w = found.log_p - samples.log_q
    sizes = [effective_sample_size(log_w[rows]).item() for rows in samples.contexts().values()]
    sizes = [size for size in sizes if size > 0]
    if sizes and sum(sizes) / len(sizes) < 1.5:
        yield (
            "The effective sample size of a group is below 1.5: the estimates rest on single samples. Raise "
            "`num_generations`, or choose a target nearer to the initial model (a larger `beta`)."
        )
    log_t = (samples.log_pi - found.log_p + found.full_log_z).abs()
    if (log_t[log_t.isfinite()] > 100).any():
        yield (
            "|log(pi / p)| is above 100 for a sample: the target is very far from the policy. Choose a larger "
            "`beta`, or smaller rewards."
        )


def rare_constraint(samples: Samples, found: Estimates, state: FDPGState) -> Iterator[str]:
    """Count how often a binary target is met, over batches, and say when it is hardly ever, or too often."""
    firsts = [rows[0] for rows in samples.contexts().values()]
    unmet = torch.tensor([bool(found.full_log_z[row] == -math.inf) for row in firsts]).double().mean().item()
    state.unmet = [*state.unmet, unmet][-50:]
    if len(state.unmet) == 50 and sum(state.unmet) > 45:
        yield (
            "For more than 90 % of the prompts no sample of the last 50 batches met the constraint. Start from a "
            "prompt or a fine-tuned model that meets it now and then, or use an exponential target."
        )
    w = (found.log_p - samples.log_q)[found.scored].exp()
    new = (len(w), w.sum().item(), w.square().sum().item())
    state.weights = [a + b for a, b in zip(state.weights, new, strict=True)]
    n, total, squares = state.weights
    if n <= 100:
        return
    error = math.sqrt(max(squares / n - (total / n) ** 2, 0.0) / n)
    if total / n > 1 + 3 * error:
        yield (
            "The estimate of Z, the chance of meeting the constraint, is above 1 by more than three standard "
            "errors: importance weights blow up. Lower the learning rate, or use `proposal='adaptive'`."
        )
