# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The engine on plain functions: against the search written out, and against what must hold for any search."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import KarrasVeScheduler
from diffusers.utils.torch_utils import randn_tensor

from alignext.logs import warn_once
from alignext.search import SearchConfig, SearchScheduler
from alignext.search.plan import Level, level_source

from . import toy
from .toy import DIM, KINDS, Denoiser, noises, reward


def search(kind, config, steps=10, seed=0, latents=None, prompts=1, reward=reward, noise=None, f=None, **kwargs):
    """One search on the toy with noise `noise[node, slot]`; returns scheduler and denoiser."""
    f = f or Denoiser(kind)
    n = config.budget * prompts
    noise = noises(steps, n, seed) if noise is None else noise
    sampler = {"noise_sampler": lambda node, shape: noise[node].reshape(shape)}
    kwargs = (sampler if "generator" not in kwargs else {}) | kwargs
    scheduler = SearchScheduler(toy.base(kind), reward, config, num_prompts=prompts, **kwargs)
    scheduler.set_timesteps(steps)
    if latents is None:
        latents = noises(1, prompts * scheduler.starts, seed + 100)[0]
    scheduler.run(f, latents)
    return scheduler, f


# ---------------------------------------------------------------------------------------- against the written-out loop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ahead", [1, 2, 3, 6])
@pytest.mark.parametrize("B, K", [(2, 3), (1, 4), (3, 1)])
@pytest.mark.parametrize("eta", [1.0, 0.6])
def test_is_the_search_written_out(kind, ahead, B, K, eta):
    z = noises(1, B, 100)[0]
    expected, parents, evaluations = toy.written_out_beam_search(
        kind, Denoiser(kind), z, noises(10, B * K), 10, B, K, ahead, eta
    )
    config = SearchConfig(num_beams=B, num_candidates=K, lookahead_steps=ahead, eta=eta)
    ours, f = search(kind, config, latents=z)
    torch.testing.assert_close(ours.latents[0, 0], expected, atol=1e-5, rtol=1e-5)
    assert ours.rewards[0, 0].item() == pytest.approx(float(reward(expected)), abs=1e-5)
    if K > 1:
        assert [entry["parents"][0, ::K].tolist() for entry in ours.history] == parents
        assert ours.nfe == f.rows == evaluations


def test_evaluations_are_those_promised():
    """Beams are evaluated once: B + (T - 1) K B T', where re-evaluating survivors takes T B + (T - 1) K B T'."""
    for ahead, expected in ((1, 396), (6, 2356)):
        config = SearchConfig(num_beams=4, num_candidates=2, lookahead_steps=ahead)
        ours, f = search("flow", config, steps=50)
        assert ours.nfe == f.rows == expected == 4 + 49 * 8 * ahead
        assert ours.reward_evals == 49 * 8 + (4 if ahead > 1 else 0)
        assert len(ours.history) == 49


def test_repeated_lookahead_points_are_left_out():
    """The last timestep here is 1: six points 1, 0, 0, 0, 0, 0 are two."""
    ours, f = search("epsilon", SearchConfig(num_beams=2, num_candidates=2), steps=10)
    last = [point.timestep for point in ours.plan if point.node == 9]
    assert last == [1, 0]
    assert ours.nfe == f.rows == 2 + 8 * 4 * 6 + 4 * 2


def test_keeping_the_first_evaluation_changes_nothing():
    """The first lookahead evaluation is at the candidate itself, which is what its step needs if it survives."""
    config = SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=3)
    seen = {}

    class Watched(Denoiser):
        def __call__(self, z, t):
            out = super().__call__(z, t)
            for row, value in zip(z, out, strict=True):
                key = (float(t), *row.tolist())
                assert torch.equal(seen.setdefault(key, value), value)
            return out

    search("epsilon", config, f=Watched("epsilon"))


# ----------------------------------------------------------------------------------------------------------- selection


def test_survivors_come_from_the_pool_not_from_each_beam():
    """A reward that only knows the ancestor: after one step all beams descend from the best start."""
    z = torch.zeros(3, DIM, dtype=torch.float64)
    z[:, 0] = torch.tensor([-5.0, 5.0, 0.0])
    config = SearchConfig(num_beams=3, num_candidates=3, lookahead_steps=1, eta=0.1)
    ours, _ = search("flow", config, latents=z, reward=lambda x0: x0[:, 0])
    assert ours.history[0]["parents"][0, ::3].tolist() == sorted(
        range(3, 6), key=lambda c: -ours.history[0]["rewards"][0, c]
    )
    local, _ = search(
        "flow", SearchConfig(num_beams=3, num_candidates=3, lookahead_steps=1, eta=0.1, strategy="local"),
        latents=z, reward=lambda x0: x0[:, 0],
    )  # fmt: skip
    assert [c // 3 for c in local.history[0]["parents"][0, ::3].tolist()] == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_ties_keep_the_first(kind):
    ours, _ = search(kind, SearchConfig(num_beams=3, num_candidates=2), reward=lambda x0: torch.zeros(len(x0)))
    assert all(entry["parents"].tolist() == [[0, 0, 1, 1, 2, 2]] for entry in ours.history)
    assert ours.slots.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_lookahead_does_not_move_the_beam(kind):
    """It only scores: with a constant reward the result does not depend on it."""
    results = [
        search(kind, SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=a), reward=lambda x: [0.0] * len(x))
        for a in (1, 6)
    ]
    torch.testing.assert_close(results[0][0].latents, results[1][0].latents)


def test_larger_is_better():
    config = SearchConfig(num_beams=2, num_candidates=4, lookahead_steps=1)
    up, down = (search("flow", config, reward=lambda x, s=s: s * x.mean(1))[0].latents.mean() for s in (1, -1))
    assert up > down


def test_one_candidate_is_best_of_b_and_scored_once():
    config = SearchConfig(num_beams=4, num_candidates=1)
    ours, f = search("epsilon", config)
    assert ours.history == [] and ours.reward_evals == 4 and ours.nfe == f.rows == 40
    best, _ = search("epsilon", SearchConfig(num_beams=2, num_candidates=2, strategy="best_of_n"))
    torch.testing.assert_close(best.latents, ours.latents)
    alone = [
        search(
            "epsilon", SearchConfig(num_beams=1, num_candidates=1), latents=noises(1, 4, 100)[0][b : b + 1],
            noise=noises(10, 4)[:, b : b + 1],
        )[0].rewards.item()
        for b in range(4)
    ]  # fmt: skip
    torch.testing.assert_close(ours.rewards[0], torch.tensor(sorted(alone, reverse=True), dtype=torch.float64))


def test_greedy_is_one_beam():
    greedy, _ = search("flow", SearchConfig(num_beams=2, num_candidates=3, strategy="greedy"), latents=noises(1, 1)[0])
    beam, _ = search("flow", SearchConfig(num_beams=1, num_candidates=6), latents=noises(1, 1)[0])
    assert torch.equal(greedy.latents, beam.latents) and greedy.nfe == beam.nfe


def test_initial_latents_can_be_selected_too():
    config = SearchConfig(num_beams=2, num_candidates=3, lookahead_steps=1, init_selection=True)
    ours, f = search("flow", config)
    assert ours.starts == 6 and ours.nfe == f.rows == 60
    assert [entry["node"] for entry in ours.history] == list(range(10))


def test_scoring_every_other_node_and_in_a_range():
    config = SearchConfig(num_beams=2, num_candidates=2, score_every=3, search_range=(0.2, 0.8), lookahead_steps=4)
    ours, f = search("flow", config)
    assert [entry["node"] for entry in ours.history] == [3, 6]
    assert ours.nfe == f.rows == 2 + 7 * 4 + 2 * 4 * 4
    assert ours.rewards.shape == (1, 4)  # nothing was pruned at the end: all four finals count
    every, _ = search("flow", SearchConfig(num_beams=2, num_candidates=2, score_every=10))
    assert every.history == [] and every.reward_evals == 4
    # No selection at all: the best of n paths from B starts.
    paths = search(
        "flow", SearchConfig(num_beams=4, num_candidates=1), latents=noises(1, 2, 100)[0].repeat_interleave(2, 0)
    )[0]
    torch.testing.assert_close(every.latents, paths.latents)


def test_slots_that_are_not_scored_keep_their_ancestors():
    """Unscored nodes leave every slot where it is; the written-out search with parents looked up agrees."""
    config = SearchConfig(num_beams=2, num_candidates=2, score_every=2, lookahead_steps=1)
    ours, _ = search("flow", config)
    f, noise, steps = Denoiser("flow"), noises(10, 4), toy.base("flow")
    steps.set_timesteps(10)
    z, sigmas = noises(1, 2, 100)[0].repeat_interleave(2, 0), steps.sigmas.double().tolist()
    parents = {entry["node"]: entry["parents"][0] for entry in ours.history}
    for i in range(10):
        v = f(z, 1000 * sigmas[i])
        x0, eps = z - sigmas[i] * v, z + (1 - sigmas[i]) * v
        if i in parents:
            assert torch.equal(reward(x0).argsort(descending=True, stable=True)[:2], parents[i][::2])
            x0, eps = x0[parents[i]], eps[parents[i]]
        if i < 9:
            s, s2 = sigmas[i : i + 2]
            r = (1 - s) * s2 / ((1 - s2) * s)
            added = s2 * math.sqrt(max(0, 1 - r * r))
            z = (1 - s2) * x0 + math.sqrt(s2 * s2 - added * added) * eps + added * noise[i]
    torch.testing.assert_close(ours.rewards[0, 0], reward(x0).max(), atol=1e-4, rtol=1e-4)


def test_one_step_is_the_best_of_the_initial_latents():
    ours, f = search("flow", SearchConfig(num_beams=2, num_candidates=3), steps=1)
    assert ours.nfe == f.rows == ours.reward_evals == 6
    assert ours.rewards[0, 0] == ours.rewards.max()


# ----------------------------------------------------------------------------------------------------------------- SMC


def smc(**kwargs):
    return SearchConfig(**{"num_beams": 6, "num_candidates": 1, "lookahead_steps": 1, "strategy": "smc"} | kwargs)


@pytest.mark.parametrize("potential", ["diff", "max", "add", "rt"])
def test_smc_without_reward_is_n_paths(potential):
    ours, f = search("flow", smc(smc_lambda=0.0, smc_potential=potential, smc_threshold=1.0))
    paths, _ = search("flow", SearchConfig(num_beams=6, num_candidates=1))
    torch.testing.assert_close(ours.latents, paths.latents)
    assert ours.nfe == f.rows == 60 and len(ours.history) == 9


def test_smc_of_infinite_weight_is_greedy():
    shared = {"lookahead_steps": 1, "init_selection": True, "num_beams": 6, "num_candidates": 1}
    ours, _ = search("epsilon", SearchConfig(strategy="smc", smc_lambda=1e9, smc_threshold=1.0, **shared))
    greedy, _ = search("epsilon", SearchConfig(strategy="greedy", **shared))
    torch.testing.assert_close(ours.latents[0, 0], greedy.latents[0, 0])
    assert [e["parents"].tolist() for e in ours.history] == [e["parents"].tolist() for e in greedy.history]


def test_smc_samples_the_tilted_distribution():
    """With a linear reward a.x on N(mu, S) data the target's mean is mu + lambda S a."""
    a, n, steps = torch.full((DIM,), 0.3, dtype=torch.float64), 4000, 100
    config = smc(num_beams=n, smc_lambda=2.0, score_every=10)
    ours, _ = search(
        "epsilon", config, steps=steps, reward=lambda x0: x0 @ a, generator=torch.Generator().manual_seed(0)
    )
    weights = ours.log_weights.softmax(1).gather(1, ours.slots)
    mean = (weights[0, :, None] * ours.latents[0]).sum(0)
    shift = 2.0 * toy.VARIANCE * a
    assert ((mean - toy.MEAN - shift).abs() < 0.1 * shift.max() + 0.05).all()


def test_smc_with_lookahead_weighs_the_last_node_by_the_sample_itself():
    ours, f = search("flow", smc(lookahead_steps=3, smc_threshold=0.0))
    assert ours.nfe == f.rows == 6 + 8 * 6 * 3 + 6
    torch.testing.assert_close(ours.log_weights.gather(1, ours.slots), 10 * ours.rewards)


# -------------------------------------------------------------------------------------------------- lookahead estimate


def test_lookahead_nears_the_rest_of_the_path():
    """At sigma 0.6 the error of the estimated reward falls with every further evaluation."""
    f, scheduler = Denoiser("flow"), SearchScheduler(toy.base("flow"), reward, SearchConfig())
    z = 0.4 * (toy.MEAN + toy.VARIANCE.sqrt() * noises(1, 500)[0]) + 0.6 * noises(1, 500, 1)[0]

    def estimate(steps):
        x = z
        points = scheduler.levels.ahead(Level(600.0, 0.4, 0.6), steps)
        for here, there in zip(points, [*points[1:], (0.0, 1.0, 0.0)], strict=True):
            v = f(x, here[0])
            x0, eps = x - here[2] * v, x + here[1] * v
            x = there[1] * x0 + there[2] * eps
        return (x0 - 1.5).square().sum(1)

    full = estimate(400)
    errors = [(estimate(steps) - full).abs().mean().item() for steps in (1, 2, 3, 6, 12)]
    assert all(a > 1.3 * b for a, b in pairwise(errors)), errors


def test_more_search_is_worth_more():
    """Mean final reward over 200 seeds (as 200 prompts): one sample < best of 8 < 4 x 2 beams < 8 x 2 beams."""

    def mean(B, K, strategy="beam"):
        config = SearchConfig(num_beams=B, num_candidates=K, lookahead_steps=1, strategy=strategy)
        ours, _ = search(
            "flow", config, steps=20, prompts=200, reward=lambda x: -(x - 1.5).square().sum(1),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return ours.rewards[:, 0].mean().item()

    single, best, beam, wide = mean(1, 1), mean(8, 1), mean(4, 2), mean(8, 2)
    assert single + 2 < best and best + 2 < beam and beam < wide


# ----------------------------------------------------------------------------------------------------- several prompts


@pytest.mark.parametrize("strategy", ["beam", "local", "smc"])
def test_prompts_do_not_mix(strategy):
    config = SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=2, strategy=strategy)
    noise, z = noises(10, 8), noises(1, 8, 7)[0]
    starts = 4 if strategy == "smc" else 2
    u = {"uniform_sampler": lambda node, shape: torch.full(shape, 0.3)}
    both, _ = search("flow", config, prompts=2, noise=noise, latents=z[: 2 * starts], **u)
    for p in (0, 1):
        one, _ = search("flow", config, noise=noise[:, 4 * p : 4 * p + 4], latents=z[p * starts :][:starts], **u)
        torch.testing.assert_close(both.latents[p], one.latents[0])
        torch.testing.assert_close(both.rewards[p], one.rewards[0])


def test_generators_one_per_prompt_equal_single_runs():
    config = SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=1)
    z = noises(1, 4, 7)[0]
    seeds = [torch.Generator().manual_seed(i) for i in (0, 1)]
    both, _ = search("flow", config, prompts=2, latents=z, generator=seeds)
    for p in (0, 1):
        one, _ = search("flow", config, latents=z[2 * p : 2 * p + 2], generator=torch.Generator().manual_seed(p))
        torch.testing.assert_close(both.latents[p], one.latents[0])


def test_rewards_see_rows_prompt_major_and_how_far_it_is():
    seen = []

    def watched(x0, timestep_fraction, is_final):
        seen.append((len(x0), timestep_fraction, is_final))
        return torch.arange(len(x0)) // (len(x0) // 3)

    ours, _ = search("flow", SearchConfig(num_beams=2, num_candidates=2), prompts=3, reward=watched)
    assert [row for row, *_ in seen] == [12] * 9 + [6]
    assert [final for *_, final in seen] == [False] * 9 + [True]
    fractions = [f for _, f, _ in seen]
    assert fractions == sorted(fractions, reverse=True) and 0 < fractions[-1] < 1
    assert ours.rewards.tolist() == [[p] * 2 for p in range(3)]


# ---------------------------------------------------------------------------------------------------------- scheduling


def test_injected_noise_is_asked_for_per_node():
    asked = []
    config = SearchConfig(num_beams=2, num_candidates=3, lookahead_steps=2)

    def sampler(node, shape):
        asked.append((node, tuple(shape)))
        return torch.zeros(shape)

    search("flow", config, noise_sampler=sampler)
    assert asked == [(i, (6, DIM)) for i in range(9)]


def test_the_plan_says_what_each_evaluation_is():
    ours, _ = search("flow", SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=3), steps=3)
    assert [(p.node, p.is_lookahead) for p in ours.plan] == [
        (0, False), (1, False), (1, True), (1, True), (2, False), (2, True), (2, True),
    ]  # fmt: skip
    assert len(ours.timesteps) == len(ours.sigmas) - 1 == 7 and ours.order == 1 and ours.init_noise_sigma == 1


def test_rows_of_one_sample_stay_together():
    """Loops over frames step on [P * n * f, ...]."""
    config = SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=2)
    frames, f = 3, Denoiser("flow")
    x, noise = torch.randn(4, frames, DIM, dtype=torch.float64), torch.randn(10, 4, frames, DIM, dtype=torch.float64)
    shapes = set()

    def mean_reward(x0):
        shapes.add(tuple(x0.shape[1:]))
        return reward(x0).mean(1)

    results = []
    for flat in (True, False):
        scheduler = SearchScheduler(
            toy.base("flow"), mean_reward, config, noise_sampler=lambda node, shape: noise[node].reshape(shape)
        )
        scheduler.set_timesteps(10)
        z = x.flatten(0, 1) if flat else x
        for t in scheduler.timesteps:
            z = scheduler.step(f(z, t), t, z).prev_sample
        results.append(z.view(4, frames, DIM))
    assert torch.equal(*results) and shapes == {(frames, DIM)}


def test_learned_variance_is_dropped():
    f = Denoiser("epsilon")
    config = SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=1)
    plain, _ = search("epsilon", config)
    twice, _ = search("epsilon", config, f=lambda x, t: torch.cat([f(x, t), torch.ones_like(x)], dim=1))
    assert torch.equal(plain.latents, twice.latents)


def test_half_precision_samples_are_stepped_in_float32():
    scheduler = SearchScheduler(toy.base("flow"), lambda x: x.float().sum(1), SearchConfig(num_beams=2))
    scheduler.set_timesteps(4)
    dtypes = set()

    def f(x, t):
        dtypes.add(x.dtype)
        return Denoiser("flow")(x, t).to(torch.bfloat16)

    scheduler.run(f, noises(1, 2)[0].to(torch.bfloat16))
    assert dtypes == {torch.bfloat16} and scheduler.latents.dtype == torch.float32


SOURCES = {
    "ddim": (toy.base("epsilon"), DDIMScheduler),
    "pndm": (PNDMScheduler(), DDIMScheduler),
    "euler": (EulerDiscreteScheduler(prediction_type="v_prediction"), DDIMScheduler),
    "unipc flow": (
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        UniPCMultistepScheduler,
    ),
    "flow euler": (FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler),
    "lcm": (LCMScheduler(), LCMScheduler),
    "cogvideox": (
        CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        CogVideoXDDIMScheduler,
    ),
}


# diffusers hands numpy a tensor's array method, which numpy 2 has deprecated.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", SOURCES)
def test_levels_come_from_any_of_these_schedulers(name):
    stock, expected = SOURCES[name]
    assert isinstance(level_source(stock), expected) and level_source(stock) is not stock
    scheduler = SearchScheduler(stock, lambda x: x.sum(1), SearchConfig(num_beams=2, lookahead_steps=2))
    scheduler.set_timesteps(4)
    scheduler.run(lambda x, t: 0.1 * x, torch.randn(2, DIM))
    assert scheduler.latents.isfinite().all() and len(scheduler.history) == 3
    squares = [p.alpha + p.sigma if scheduler.is_flow else p.alpha**2 + p.sigma**2 for p in scheduler.plan]
    assert squares == pytest.approx([1.0] * len(squares))


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_it_is_the_stock_deterministic_sampler(kind):
    """One beam, eta 0: DDIM and Euler, up to the last step, which is left out for the prediction itself."""
    ours, f = search(kind, SearchConfig(num_beams=1, num_candidates=1, eta=0.0))
    stock = toy.base(kind)
    stock.set_timesteps(10)
    z = noises(1, 1, 100)[0]
    for t in stock.timesteps:
        step = stock.step(f(z, t), t, z)
        z, x0 = step[0], getattr(step, "pred_original_sample", step[0])
    torch.testing.assert_close(ours.latents[0], x0.double(), atol=1e-5, rtol=1e-5)


def test_inverted_sigmas_are_the_same_flow():
    class Inverted(Denoiser):
        def __call__(self, z, t):
            return -super().__call__(z, 1000 - float(t))

    config = SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=3)
    plain, _ = search("flow", config, steps=5)
    scheduler = SearchScheduler(
        FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=True), reward, config,
        noise_sampler=lambda node, shape: noises(5, 4)[node],
    )  # fmt: skip
    scheduler.set_timesteps(5)
    scheduler.run(Inverted("flow"), noises(1, 2, 100)[0])
    torch.testing.assert_close(scheduler.latents, plain.latents, atol=1e-4, rtol=1e-4)


def test_given_timesteps_and_sigmas_are_used():
    scheduler = SearchScheduler(toy.base("epsilon"), reward, SearchConfig(lookahead_steps=1))
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.timesteps.tolist() == [900, 500, 100]
    with pytest.raises(ValueError, match="takes no `sigmas`"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5])
    flow = SearchScheduler(FlowMatchEulerDiscreteScheduler(), reward, SearchConfig(lookahead_steps=1))
    flow.set_timesteps(sigmas=[1.0, 0.5])
    assert flow.timesteps.tolist() == [1000, 500]


def test_random_draws_are_the_generators(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "alignext.search.draws.randn_tensor", lambda *a: drawn.append((tuple(a[0]), a[3])) or randn_tensor(*a)
    )
    config = SearchConfig(num_beams=2, num_candidates=2, lookahead_steps=1)
    search("flow", config, steps=3, generator=torch.Generator().manual_seed(0))
    assert drawn == [((4, DIM), torch.float32)] * 2


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "bad, error, text",
    [
        (lambda x: None, ValueError, "returned None"),
        (lambda x, y: x, ValueError, "takes .x, y. and is called with 1 argument"),
        (lambda x: torch.zeros(len(x) + 1), ValueError, "must return 4 real numbers"),
        (lambda x: torch.zeros(len(x), dtype=torch.complex64), ValueError, "real numbers"),
        (lambda x: ["a"] * len(x), ValueError, "must return numbers"),
        (lambda x: torch.full((len(x),), math.inf), ValueError, r"\+inf"),
        (lambda x: torch.full((len(x),), math.nan), ValueError, "no finite number"),
    ],
)
def test_bad_rewards(bad, error, text):
    with pytest.raises(error, match=text):
        search("flow", SearchConfig(num_beams=2, num_candidates=2), reward=bad)


def test_a_single_nan_ranks_last():
    def broken(x0):
        values = reward(x0)
        values[values.argmax()] = math.nan
        return values

    ours, _ = search("flow", SearchConfig(num_beams=2, num_candidates=2), reward=broken)
    assert all(entry["rewards"].isneginf().sum() == 1 for entry in ours.history)
    for entry in ours.history:
        assert entry["rewards"].argmin() not in entry["parents"]


@pytest.mark.parametrize(
    "stock, settings, text",
    [
        (toy.base("flow"), {}, "eta=1 with fewer than 20 steps loses variance"),
        (toy.base("flow"), {"eta": 0.6}, None),
        (LCMScheduler(), {}, "noise='renoise'"),
        (LCMScheduler(), {"noise": "renoise"}, None),
    ],
)
def test_doubtful_settings_are_said(stock, settings, text, monkeypatch):
    said = []
    monkeypatch.setattr("alignext.search.scheduler.logger.warning", said.append)
    warn_once.cache_clear()
    for steps in (4, 4, 5):
        SearchScheduler(stock, reward, SearchConfig(**settings)).set_timesteps(steps)
    assert (len(said) == 1 and text in said[0]) if text else said == []  # once, however many searches there are


def test_wrong_use_is_named():
    scheduler = SearchScheduler(toy.base("flow"), reward, SearchConfig(num_beams=2, num_candidates=2))
    scheduler.set_timesteps(4)
    x = torch.zeros(3, DIM)
    with pytest.raises(ValueError, match="expects 4 rows"):
        scheduler.step(x, scheduler.timesteps[0], x)
    x = torch.zeros(4, DIM)
    with pytest.raises(ValueError, match="step more than once"):
        scheduler.step(x, scheduler.timesteps[1], x)
    with pytest.raises(ValueError, match="is for flow models"):
        SearchScheduler(toy.base("epsilon"), reward, SearchConfig(noise="flow_grpo"))
    with pytest.raises(ValueError, match="cannot read the levels of KarrasVeScheduler"):
        SearchScheduler(KarrasVeScheduler(), reward)
    with pytest.raises(ValueError, match="a list of 1, received 2"):
        SearchScheduler(toy.base("flow"), reward, generator=[torch.Generator()] * 2)
    zero_snr = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="zero SNR"):
        SearchScheduler(zero_snr, reward).set_timesteps(4)
