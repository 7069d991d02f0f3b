# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Single steps, equal to the stock schedulers where they agree and right where those are not; who survives."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXEulerAncestralRFScheduler,
)

from alignext.functional.latent_search import (
    beam_parents,
    effective_sample_size,
    local_parents,
    neighbor,
    noise_scale,
    smc_gain,
    systematic_resample,
    transition,
)
from alignext.functional.predictions import clean_and_noise


X = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
M = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
N = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
CLOSE = {"atol": 1e-6, "rtol": 1e-6}
KEEPING = ("ddpm", "rf_ancestral", "cps", "renoise")


def vp(abar):
    return math.sqrt(abar), math.sqrt(1 - abar)


def flow(sigma):
    return 1 - sigma, sigma


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_prediction_and_noise_make_up_the_sample(prediction):
    levels = flow(0.3) if prediction == "flow_prediction" else vp(0.7)
    x0, eps = clean_and_noise(M, X, *levels, prediction)
    torch.testing.assert_close(levels[0] * x0 + levels[1] * eps, X)
    output = {
        "epsilon": eps,
        "v_prediction": levels[0] * eps - levels[1] * x0,
        "sample": x0,
        "flow_prediction": eps - x0,
    }
    torch.testing.assert_close(output[prediction], M)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_is_the_ddim_step(prediction, eta):
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(10)
    t, following = scheduler.timesteps[3:5].tolist()
    abar, after = (float(scheduler.alphas_cumprod[i]) for i in (t, following))
    expected = scheduler.step(M, t, X, eta=eta, variance_noise=N)[0]
    x0, eps = clean_and_noise(M, X, *vp(abar), prediction)
    torch.testing.assert_close(transition("ddpm", x0, eps, N, *vp(abar), *vp(after), eta=eta), expected, **CLOSE)
    variance = eta**2 * float(scheduler._get_variance(t, following))
    assert noise_scale("ddpm", *vp(abar), *vp(after), eta) ** 2 == pytest.approx(variance, rel=1e-5)


def test_eta_zero_is_the_euler_step_of_a_flow():
    x0, eps = clean_and_noise(M, X, *flow(0.8), "flow_prediction")
    torch.testing.assert_close(transition("ddpm", x0, eps, N, *flow(0.8), *flow(0.5), eta=0.0), X + (0.5 - 0.8) * M)


# diffusers hands numpy a tensor's array method, which numpy 2 has deprecated.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_eta_one_is_the_first_order_sde_dpm_solver():
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        solver_order=1,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        flow_shift=3.0,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(10)
    for i in range(3):
        expected = scheduler.step(M.float(), scheduler.timesteps[i], X.float(), variance_noise=N.float())[0]
        sigma, after = scheduler.sigmas[i : i + 2].tolist()
        x0, eps = clean_and_noise(M, X, *flow(sigma), "flow_prediction")
        ours = transition("ddpm", x0, eps, N, *flow(sigma), *flow(after))
        torch.testing.assert_close(ours.float(), expected, atol=1e-5, rtol=1e-5)


def test_renoise_is_stochastic_sampling(monkeypatch):
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(5)
    module = "diffusers.schedulers.scheduling_flow_match_euler_discrete"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, dtype=None, **__: N.to(dtype))
    expected = scheduler.step(M, scheduler.timesteps[0], X)[0]
    sigma, after = scheduler.sigmas[:2].tolist()
    x0, eps = clean_and_noise(M, X, *flow(sigma), "flow_prediction")
    ours = transition("renoise", x0, eps, N, *flow(sigma), *flow(after))
    torch.testing.assert_close(ours.float(), expected.float(), **CLOSE)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_rf_ancestral_is_the_scheduler_of_ltx(eta, monkeypatch):
    scheduler = LTXEulerAncestralRFScheduler(eta=eta)
    sigmas = [0.9, 0.6, 0.3]
    scheduler.set_timesteps(sigmas=sigmas)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ltx_euler_ancestral_rf.randn_tensor", lambda *_, dtype=None, **__: N.to(dtype)
    )
    expected = scheduler.step(M.float(), scheduler.timesteps[0], X.float())[0]
    x0, eps = clean_and_noise(M, X, *flow(0.9), "flow_prediction")
    ours = transition("rf_ancestral", x0, eps, N, *flow(0.9), *flow(0.6), eta=eta)
    torch.testing.assert_close(ours.float(), expected, atol=1e-5, rtol=1e-5)


def test_flow_grpo_by_hand():
    """At sigma 0.5, a = 1: q = 1, dt = -0.25, so z' = 0.75 z - 0.375 v + 0.5 noise."""
    x0, eps = clean_and_noise(M, X, *flow(0.5), "flow_prediction")
    ours = transition("flow_grpo", x0, eps, N, *flow(0.5), *flow(0.25), eta=1.0)
    torch.testing.assert_close(ours, X * 0.75 - 0.375 * M + 0.5 * N)
    # sigma 1 is replaced in the denominator only: q^2 = a^2 1 / 0.25 = 4.
    ours = transition("flow_grpo", X, M, N, 0.0, 1.0, *flow(0.75), eta=1.0)
    torch.testing.assert_close(ours, M * (1 - 2 * 0.25) - 0.25 * (M - X) + 2 * 0.5 * N)


@pytest.mark.parametrize("steps", [2, 4, 10, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_grpo_starts_with_noise_of_its_level(steps, shift):
    """q sqrt(-dt) = a sqrt(1 / (1 - sigma')) sqrt(1 - sigma') = a, whatever the schedule."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    sigma, after = scheduler.sigmas[:2].double().tolist()
    zero = torch.zeros_like(N)
    added = transition("flow_grpo", zero, zero, N, *flow(sigma), *flow(after), eta=0.7)
    torch.testing.assert_close(added, 0.7 * N)


@pytest.mark.parametrize("noise", KEEPING)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_coefficients_are_kept(noise, eta):
    """The signal keeps its coefficient, and the two noises have the next level's variance together."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    levels = (*flow(0.8), *flow(0.5))
    assert transition(noise, one, zero, zero, *levels, eta=eta).item() == pytest.approx(0.5)
    old, new = (
        transition(noise, zero, one, zero, *levels, eta=eta),
        transition(noise, zero, zero, one, *levels, eta=eta),
    )
    assert (old**2 + new**2).item() == pytest.approx(0.25)
    assert new.item() == pytest.approx(noise_scale(noise, *levels, eta))


@pytest.mark.parametrize("noise", (*KEEPING, "flow_grpo"))
def test_finite_at_both_ends(noise):
    for levels in ((0.0, 1.0, *flow(0.7)), (*flow(0.2), 1.0, 0.0)):
        assert transition(noise, X, M, N, *levels, eta=0.7).isfinite().all()


def test_zero_snr_is_finite_where_stock_is_not():
    """1 - alpha_bar' - s^2 is -1e-8 there at eta 1: the stock square root is NaN for many numbers of steps."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    stock_nan = 0
    for steps in (25, 50, 51):
        scheduler.set_timesteps(steps)
        t, following = scheduler.timesteps[:2].tolist()
        stock = scheduler.step(M.float(), t, X.float(), eta=1.0, variance_noise=N.float())[0]
        stock_nan += int(stock.isnan().any())
        abar, after = (float(scheduler.alphas_cumprod[i]) for i in (t, following))
        x0, eps = clean_and_noise(M, X, *vp(abar), "v_prediction")
        assert transition("ddpm", x0, eps, N, *vp(abar), *vp(after)).isfinite().all()
    assert stock_nan


def test_names_are_checked():
    with pytest.raises(ValueError, match="received 'nonsense'"):
        transition("nonsense", X, X, X, 0.5, 0.5, 0.6, 0.4)


# ---------------------------------------------------------------------------------------------- who survives


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_beam_pools_all_candidates_and_repeats_each_survivor():
    assert beam_parents(rows([1, 9, 2, 8, 7, 3]), 2).tolist() == [[1, 1, 1, 3, 3, 3]]


def test_one_parent_may_take_all_places():
    assert beam_parents(rows([5, 6, 1, 2], [1, 2, 6, 5]), 2).tolist() == [[1, 1, 0, 0], [2, 2, 3, 3]]


@pytest.mark.parametrize("n, beams", [(6, 2), (32, 4), (64, 32)])
def test_ties_keep_the_lower_index(n, beams):
    assert beam_parents(torch.zeros(2, n), beams)[:, :: n // beams].tolist() == [list(range(beams))] * 2
    first = [b * (n // beams) for b in range(beams)]
    assert local_parents(torch.zeros(2, n), beams)[:, :: n // beams].tolist() == [first] * 2


def test_minus_infinity_ranks_last():
    assert beam_parents(rows([-math.inf, 1, -math.inf, 0]), 2).tolist() == [[1, 1, 3, 3]]


def test_cap_bounds_the_children_of_a_beam():
    rewards = rows([9, 8, 7, 1, 2, 3])  # two beams of three candidates
    assert beam_parents(rewards, 2, cap=1)[:, ::3].tolist() == [[0, 5]]
    rewards = rows([9, 8, 7, 6, 1, 2, 3, 0, 4, 4, 4, 4])  # three beams of four
    assert beam_parents(rewards, 3, cap=2)[:, ::4].tolist() == [[0, 1, 8]]
    assert beam_parents(rewards, 3, cap=4).tolist() == beam_parents(rewards, 3).tolist()


def test_local_has_no_competition_between_beams():
    assert local_parents(rows([9, 8, 1, 2]), 2).tolist() == [[0, 0, 3, 3]]


def test_systematic_resampling_gives_floor_or_ceil_of_the_expected_copies():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        W = torch.rand(4, 9, generator=generator, dtype=torch.float64).pow(4)
        W = W / W.sum(1, keepdim=True)
        parents = systematic_resample(W, torch.rand(4, generator=generator, dtype=torch.float64))
        copies = torch.nn.functional.one_hot(parents, 9).sum(1)
        assert ((copies - 9 * W).abs() < 1).all()


def test_systematic_resampling_never_picks_what_has_no_weight():
    W = rows([0, 1, 0, 0]) * (1 - 1e-12)
    assert systematic_resample(W, torch.tensor([0.999999999999999], dtype=torch.float64)).tolist() == [[1, 1, 1, 1]]
    assert systematic_resample(rows([0, 0.5, 0, 0.5]), torch.zeros(1)).tolist() == [[1, 1, 3, 3]]


@pytest.mark.parametrize("potential", ["diff", "max", "add", "rt"])
def test_what_the_nodes_add_makes_up_the_exponent_of_the_reward(potential):
    rewards = torch.randn(5, 1, 4, dtype=torch.float64)
    previous = total = torch.zeros(1, 4, dtype=torch.float64)
    for i, R in enumerate(rewards):
        gain, previous = smc_gain(potential, R, previous, total, 3.0, last=i == 4)
        total = total + gain
    torch.testing.assert_close(total, 3 * rewards[-1])


def test_effective_sample_size_by_hand():
    G = rows([0, 0, 0, 0], [5, 5, -math.inf, -math.inf], [-math.inf] * 4)
    torch.testing.assert_close(effective_sample_size(G)[:3], torch.tensor([4.0, 2, 4], dtype=torch.float64))


# -------------------------------------------------------------------------------------- neighbours of a noise


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.95])
def test_neighbors_keep_the_norm_and_the_angle(cosine):
    x, direction = torch.randn(5, 3, 4, dtype=torch.float64), torch.randn(5, 3, 4, dtype=torch.float64)
    y = neighbor(x, direction, cosine)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    found = torch.cosine_similarity(x.flatten(1), y.flatten(1))
    torch.testing.assert_close(found, torch.full_like(found, cosine))
