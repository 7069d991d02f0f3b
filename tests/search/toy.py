# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A denoiser that is exact, Gaussian data in 8 dimensions; and the search written out from its description."""

import math

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler


DIM = 8
MEAN = torch.linspace(-1, 1, DIM, dtype=torch.float64)
VARIANCE = torch.linspace(0.1, 2.0, DIM, dtype=torch.float64)
KINDS = ("epsilon", "v_prediction", "flow")


def base(kind):
    if kind == "flow":
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    zero_snr = kind == "v_prediction"
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=0 if zero_snr else 1,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
    )


def levels(kind, scheduler, t):
    """(alpha, sigma) at a timestep, written independently of the engine."""
    if kind == "flow":
        sigma = float(t) / 1000
        return 1 - sigma, sigma
    abar = float(scheduler.alphas_cumprod[int(t)])
    return math.sqrt(abar), math.sqrt(1 - abar)


class Denoiser:
    """The exact conditional mean as a model output, which counts the rows it sees."""

    def __init__(self, kind, mean=MEAN, variance=VARIANCE):
        self.kind, self.scheduler, self.rows = kind, base(kind), 0
        self.mean, self.variance = mean, variance

    def __call__(self, z, t):
        self.rows += len(z)
        a, s = levels(self.kind, self.scheduler, t)
        x0 = self.mean + a * self.variance / (a * a * self.variance + s * s) * (z - a * self.mean)
        if self.kind == "v_prediction":
            return (a * z - x0) / s  # x0 = a z - s m
        if self.kind == "flow":
            return (z - x0) / s
        return (z - a * x0) / s


def reward(x0):
    """Rugged and different for every sample."""
    return (3 * x0).sin().sum(-1) - (x0 - 0.5).square().sum(-1)


def noises(steps, slots, seed=0):
    """noise[node, slot, dim]"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, slots, DIM, generator=generator, dtype=torch.float64)


def written_out_beam_search(kind, f, z, noise, steps, B, K, ahead, eta=1.0):
    """
    The loop of the paper for one prompt: every beam is evaluated again at its node, candidates are scored one by one.
    Returns the final sample, the parents per node, and how many evaluations there would be if the first lookahead
    evaluation of a survivor were kept.
    """
    scheduler = base(kind)
    scheduler.set_timesteps(steps)
    t = scheduler.timesteps.tolist()
    beams, parents, evaluations = list(z), [], B

    def clean(z, t):
        a, s = levels(kind, scheduler, t)
        m = f(z[None], t)[0]
        if kind == "v_prediction":
            return a * z - s * m, a * m + s * z
        if kind == "flow":
            return z - s * m, z + a * m
        return (z - s * m) / a, m

    def look(z, t):
        points = [t * j / ahead if kind == "flow" else int(t * j // ahead) for j in range(ahead, 0, -1)]
        for here, there in zip(points, [*points[1:], None], strict=True):
            x0, eps = clean(z, here)
            if there is not None:
                a, s = levels(kind, scheduler, there)
                z = a * x0 + s * eps
        return x0, len(set(points))

    for i in range(steps - 1):
        (a, s), (a2, s2) = levels(kind, scheduler, t[i]), levels(kind, scheduler, t[i + 1])
        r = a * s2 / (a2 * s)
        added = eta * s2 * math.sqrt(max(0.0, 1 - r * r))
        candidates = []
        for b, z in enumerate(beams):
            x0, eps = clean(z, t[i])
            for k in range(K):
                fresh = noise[i, b * K + k]
                candidates.append(a2 * x0 + math.sqrt(max(0.0, s2 * s2 - added * added)) * eps + added * fresh)
        looked = [look(z, t[i + 1]) for z in candidates]
        evaluations += sum(count for _, count in looked)
        scores = [float(reward(x0)) for x0, _ in looked]
        # One candidate per beam leaves nothing to choose: the slots, and with them their noise, stay in order.
        best = sorted(range(B * K), key=lambda c: -scores[c])[:B] if K > 1 else list(range(B))
        beams = [candidates[c] for c in best]
        parents.append(best)
    finals = [clean(z, t[-1])[0] for z in beams]
    return max(finals, key=lambda x0: float(reward(x0))), parents, evaluations
