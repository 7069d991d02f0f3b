# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Identities, round trips and closed forms of the diffusion preference equations, in float64."""

import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler

from alignext.functional.diffusion_preference import (
    diffusion_dpo_errors,
    implicit_rewards,
    inversion_errors,
    label_factor,
    preference_errors,
    preference_loss,
    preference_margin,
    preference_probability,
    row_mse,
    two_pass_backward,
)
from alignext.functional.inversion import (
    Levels,
    ddim_levels,
    flow_levels,
    inversion_points,
    invert,
)
from alignext.functional.predictions import (
    PREDICTION_TYPES,
    add_noise,
    clean_and_noise,
    guide,
    prediction_of_noise,
    prediction_target,
    recovered_noise,
    step_weight,
)


ABAR = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
SHAPE = (3, 4, 4)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Net(torch.nn.Module):
    """A smooth function of latents, timestep and prompt, counting the rows it sees."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.mix = torch.nn.Parameter(torch.randn(3, 3, generator=g, dtype=torch.float64) / 2)
        self.shift = torch.nn.Parameter(torch.randn(3, 1, 1, generator=g, dtype=torch.float64) / 2)
        self.rows = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor | None = None) -> torch.Tensor:
        assert t.shape == x.shape[:1]
        self.rows += len(x)
        told = 0 if prompt is None else prompt[:, :, None, None]
        return (
            torch.tanh(torch.einsum("ij,bjhw->bihw", self.mix, x) + t[:, None, None, None] / 1000 + told) + self.shift
        )


def every_type(test):
    return pytest.mark.parametrize("kind", PREDICTION_TYPES)(test)


def level(kind: str, t: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "flow_prediction":
        return torch.tensor(0.4, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    return ABAR[t].sqrt(), (1 - ABAR[t]).sqrt()


def levels_of(kind: str, steps: int) -> Levels:
    if kind == "flow_prediction":
        return flow_levels(torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2)
    return ddim_levels(ABAR, steps, offset=1)


# What a network predicts


@every_type
def test_predictions_and_targets_are_inverse(kind: str) -> None:
    x0, n, (a, s) = randn(2, *SHAPE), randn(2, *SHAPE), level(kind)
    x = add_noise(x0, n, a, s)
    clean, noise = clean_and_noise(prediction_target(x0, n, a, s, kind), x, a, s, kind)
    torch.testing.assert_close(clean, x0, rtol=0, atol=1e-13)
    torch.testing.assert_close(noise, n, rtol=0, atol=1e-13)
    torch.testing.assert_close(recovered_noise(x, x0, a, s), n, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        prediction_of_noise(n, x, a, s, kind), prediction_target(x0, n, a, s, kind), rtol=0, atol=1e-13
    )


def test_noise_is_added_on_a_straight_line_of_a_flow() -> None:
    x0, n = randn(2, *SHAPE), randn(2, *SHAPE)
    assert torch.equal(add_noise(x0, n, 1.0, 0.0), x0) and torch.equal(add_noise(x0, n, 0.0, 1.0), n)
    torch.testing.assert_close(add_noise(x0, n, 0.7, 0.3), x0 + 0.3 * (n - x0), rtol=0, atol=1e-13)


def test_levels_are_those_of_each_row() -> None:
    x0, n, t = randn(3, *SHAPE), randn(3, *SHAPE), torch.tensor([3, 500, 999])
    a, s = ABAR[t].sqrt(), (1 - ABAR[t]).sqrt()
    stock = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    stock.alphas_cumprod = ABAR
    torch.testing.assert_close(add_noise(x0, n, a, s), stock.add_noise(x0, n, t), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        prediction_target(x0, n, a, s, "v_prediction"), stock.get_velocity(x0, n, t), rtol=0, atol=1e-14
    )


def test_guidance_is_one_call_of_both_rows_and_none_at_scale_1() -> None:
    net, x, t = Net(), randn(2, *SHAPE), torch.tensor([5, 700])
    nothing, prompt = {"prompt": torch.zeros(1, 3, dtype=torch.float64)}, randn(2, 3)
    assert guide(net, nothing, 1) is net
    found = guide(net, nothing, 2.5)(x, t, prompt=prompt)
    assert net.rows == 4
    u, c = net(x, t, torch.zeros(2, 3, dtype=torch.float64)), net(x, t, prompt)
    torch.testing.assert_close(found, u + 2.5 * (c - u), rtol=0, atol=1e-14)


# Inversion


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [1, 5, 80])
def test_constant_epsilon_inverts_in_closed_form(offset: int, steps: int) -> None:
    x0, c, levels = 3 * randn(2, *SHAPE), randn(1, *SHAPE), ddim_levels(ABAR, steps, offset=offset)
    walked = list(invert(lambda x, t: c.expand_as(x), x0, levels))
    for step in walked:
        a, s = levels.a[step.k], levels.s[step.k]
        clean = (x0 - levels.s[0] * c) / levels.a[0]  # data are taken to lie at level 0
        torch.testing.assert_close(step.x, a * clean + s * c, rtol=0, atol=1e-12)
        # What is recovered is `c` but for the noise that the data were taken to have.
        torch.testing.assert_close(recovered_noise(step.x, x0, a, s), c + a * (clean - x0) / s, rtol=0, atol=1e-11)
    assert offset or (walked[0].x - x0).abs().max() < 1e-14  # a step of length zero


def test_level_and_timestep_must_belong_together() -> None:
    x0, c, levels = randn(1, *SHAPE), randn(1, *SHAPE), ddim_levels(ABAR, 10, offset=1)
    x = list(invert(lambda x, t: c.expand_as(x), x0, levels))[4].x
    off_grid = ABAR[int(levels.timesteps[4]) + 40]
    right = recovered_noise(x, x0, levels.a[5], levels.s[5])
    wrong = recovered_noise(x, x0, off_grid.sqrt(), (1 - off_grid).sqrt())
    assert (right - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("steps", [4, 50])
def test_ddim_inversion_is_undone_by_the_stock_sampler(steps: int) -> None:
    x0, net = 3 * randn(2, *SHAPE), Net()
    stock = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False
    )
    stock.alphas_cumprod, stock.final_alpha_cumprod = ABAR, ABAR[0]
    stock.set_timesteps(steps)
    walked = list(invert(net, x0, ddim_levels(ABAR, steps)))
    assert [int(t) for t in stock.timesteps] == [
        int(ddim_levels(ABAR, steps).timesteps[s.k - 1]) for s in walked[::-1]
    ]
    for step in walked[::-1]:
        t = int(ddim_levels(ABAR, steps).timesteps[step.k - 1])
        back = stock.step(step.prediction, t, step.x).prev_sample
        torch.testing.assert_close(back, step.source, rtol=0, atol=1e-11)


def test_levels_are_those_of_the_stock_inverse_scheduler() -> None:
    stock = DDIMInverseScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    stock.alphas_cumprod, stock.initial_alpha_cumprod = ABAR, ABAR[0]
    stock.set_timesteps(10)
    net, x = Net(), randn(2, *SHAPE)
    walked = list(invert(net, x, ddim_levels(ABAR, 10, offset=1)))
    for step, t in zip(walked, stock.timesteps, strict=True):
        x = stock.step(net(x, t.expand(2)), int(t), x).prev_sample
        torch.testing.assert_close(step.x, x, rtol=0, atol=1e-12)


def test_flow_inversion_is_undone_by_the_stock_sampler() -> None:
    stock = FlowMatchEulerDiscreteScheduler(shift=3.0)
    stock.set_timesteps(7)
    levels, net, x0 = flow_levels(stock.sigmas.double()), Net(), 3 * randn(2, *SHAPE)
    walked = list(invert(net, x0, levels, prediction_type="flow_prediction"))
    assert torch.equal(levels.timesteps.flip(0), 1000 * stock.sigmas[:-1].double())
    for step in walked:
        by = levels.s[step.k] - levels.s[step.k - 1]
        torch.testing.assert_close(step.x, step.source + by * step.prediction, rtol=0, atol=1e-12)
    sample = walked[-1].x
    for step, t in zip(walked[::-1], stock.timesteps, strict=True):
        sample = stock.step(step.prediction, t, sample).prev_sample
        torch.testing.assert_close(sample.double(), step.source, rtol=0, atol=1e-5)  # the stock one is in float32


def test_v_and_epsilon_networks_of_the_same_model_invert_alike() -> None:
    epsilon, levels, x0 = Net(), ddim_levels(ABAR, 8, offset=1), randn(2, *SHAPE)

    def v(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        k = int((levels.timesteps == t[0]).nonzero()) + 1  # what the network is told, on data of the level before
        a, s = levels.a[k - 1], levels.s[k - 1]
        return (epsilon(x, t) - s * x) / a

    pairs = zip(invert(epsilon, x0, levels), invert(v, x0, levels, prediction_type="v_prediction"), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", PREDICTION_TYPES[:3])
def test_one_round_of_renoising_is_the_step_of_the_mean(kind: str) -> None:
    net, levels, x0 = Net(), levels_of(kind, 3), randn(2, *SHAPE)
    step = next(invert(net, x0, levels, prediction_type=kind, num_renoise_steps=1))
    t, start, end = levels.timesteps[:1].expand(2), (levels.a[0], levels.s[0]), (levels.a[1], levels.s[1])
    e1 = net(x0, t)
    e2 = net(add_noise(*clean_and_noise(e1, x0, *start, kind), *end), t)
    expected = add_noise(*clean_and_noise((e1 + e2) / 2, x0, *start, kind), *end)
    torch.testing.assert_close(step.x, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.prediction, (e1 + e2) / 2, rtol=0, atol=1e-12)


def test_rows_stop_where_they_are_told_and_cost_nothing_after() -> None:
    net, levels, x0, prompt = Net(), ddim_levels(ABAR, 10, offset=1), randn(4, *SHAPE), randn(4, 3)
    last = torch.tensor([3, 0, 10, 3])
    points = inversion_points(invert(net, x0, levels, {"prompt": prompt}, last=last), last[None])
    assert net.rows == 16
    for row in (0, 2, 3):
        alone = list(invert(net, x0[row, None], levels, {"prompt": prompt[row, None]}))[last[row] - 1]
        for name in ("x", "source", "prediction"):
            torch.testing.assert_close(getattr(points, name)[row], getattr(alone, name)[0], rtol=0, atol=1e-12)
    assert points.x[1].isnan().all()


def test_points_are_kept_point_by_point() -> None:
    levels, x0 = ddim_levels(ABAR, 6, offset=1), randn(2, *SHAPE)
    walked = list(invert(Net(), x0, levels))
    points = inversion_points(walked, torch.tensor([[2, 5], [6, 1]]))
    for at, (k, row) in enumerate([(2, 0), (5, 1), (6, 0), (1, 1)]):
        assert torch.equal(points.x[at], walked[k - 1].x[row])
        assert torch.equal(points.source[at], walked[k - 1].source[row])
    assert torch.equal(points[1].x, points.x[2:])
    assert torch.equal(points[1].k, points.k[1:])


def test_noise_of_inpo_has_the_variance_of_the_ddim_posterior() -> None:
    levels, x0, z = ddim_levels(ABAR, 10, offset=1), randn(1, *SHAPE), randn(1, *SHAPE)
    stock = DDIMScheduler()
    stock.alphas_cumprod = ABAR
    plain, still = (list(invert(Net(), x0, levels, eta=0.0, noise=noise)) for noise in (None, lambda k: z))
    assert all(torch.equal(one.x, other.x) for one, other in zip(plain, still, strict=True))
    noisy = list(invert(Net(), x0, levels, eta=0.1, noise=lambda k: z if k == 2 else 0 * z))
    expected = plain[1].x + 0.1 * stock._get_variance(101, 1).sqrt() * z
    torch.testing.assert_close(noisy[1].x, expected, rtol=0, atol=1e-12)


def test_no_graph_is_left_by_an_inversion() -> None:
    step = next(invert(Net(), randn(2, *SHAPE).requires_grad_(), ddim_levels(ABAR, 4)))
    assert not step.x.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 1001}, "num_steps"),
        ({"num_steps": 1000, "offset": 1}, "offset"),
    ],
)
def test_impossible_grids_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ddim_levels(ABAR, **arguments)


def test_flow_levels_want_sigmas_down_to_zero() -> None:
    for wrong in ([1.0, 0.5], [0.0, 1.0], [0.0]):
        with pytest.raises(ValueError, match="sigmas"):
            flow_levels(torch.tensor(wrong))


def test_unknown_prediction_type_and_target_are_named() -> None:
    x, one = randn(2, *SHAPE), torch.ones(())
    with pytest.raises(ValueError, match="prediction_type"):
        prediction_target(x, x, one, one, "score")
    with pytest.raises(ValueError, match="prediction_type"):
        clean_and_noise(x, x, one, one, "score")
    levels = ddim_levels(ABAR, 2)
    points = inversion_points(invert(Net(), x, levels), torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="target"):
        inversion_errors(Net(), Net(), x, points, levels, target="noise")


# Margins and losses


def test_margin_of_a_hand_made_pair() -> None:
    # The reference misses the winner by 1 everywhere, the policy hits it; both hit the loser.
    target = randn(2, *SHAPE)
    wrong = torch.stack([target[0] + 1, target[1]])
    errors = preference_errors(lambda x, t: target, lambda x, t: wrong, target, torch.zeros(2), target)
    margin = preference_margin(implicit_rewards(errors.delta, beta=2000))
    torch.testing.assert_close(margin, torch.tensor([1000.0], dtype=torch.float64))
    assert preference_margin(implicit_rewards(errors.delta, beta=2000, reverse_sign=True)).item() == -margin.item()
    assert preference_margin(implicit_rewards(errors.delta.flip(0), beta=2000)).item() == -margin.item()


def test_rewards_differ_by_the_margin() -> None:
    delta, factor = randn(6), torch.rand(3, dtype=torch.float64)
    chosen, rejected = implicit_rewards(delta, 3.0, factor).chunk(2)
    assert torch.equal(chosen - rejected, preference_margin(implicit_rewards(delta, 3.0, factor)))
    torch.testing.assert_close(
        preference_margin(implicit_rewards(delta, 3.0, factor)), -1.5 * factor * (delta[:3] - delta[3:])
    )


def test_loss_is_log2_at_zero_and_odd_up_to_the_margin() -> None:
    m = torch.linspace(-900, 900, 13, dtype=torch.float64)
    assert preference_loss(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(math.log(2), abs=1e-15)
    torch.testing.assert_close(preference_loss(-m), preference_loss(m) + m)
    assert preference_loss(m).isfinite().all()


def test_errors_are_means_in_float32_or_better() -> None:
    p, q = randn(4, *SHAPE), randn(4, *SHAPE)
    torch.testing.assert_close(row_mse(p, q), (p - q).pow(2).mean((1, 2, 3)))
    low, other = p.bfloat16(), q.bfloat16()
    assert row_mse(low, other).dtype == torch.float32
    torch.testing.assert_close(row_mse(low, other).double(), row_mse(low.double(), other.double()), rtol=1e-6, atol=0)


def dpo_margin(policy: Net, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, **kwargs) -> torch.Tensor:
    a, s = ABAR[t].sqrt(), (1 - ABAR[t]).sqrt()
    return preference_margin(
        implicit_rewards(diffusion_dpo_errors(policy, Net(9), x0, noise, t, a, s, **kwargs).delta, 50.0)
    )


def test_diffusion_dpo_by_hand() -> None:
    policy, x0, noise, t = Net(), randn(2, *SHAPE), randn(1, *SHAPE), torch.tensor([321])
    x = ABAR[321].sqrt() * x0 + (1 - ABAR[321]).sqrt() * noise

    def error(net: Net, row: int) -> torch.Tensor:
        return (net(x[row, None], t) - noise).square().mean()

    gain = [error(policy, row) - error(Net(9), row) for row in (0, 1)]
    torch.testing.assert_close(dpo_margin(policy, x0, noise, t)[0], -25 * (gain[0] - gain[1]))


def test_same_picture_twice_has_no_margin_and_no_gradient() -> None:
    policy, x0, noise, t = Net(), randn(2, *SHAPE), randn(2, *SHAPE), torch.tensor([100, 900])
    margin = dpo_margin(policy, torch.cat([x0, x0]), noise, t)
    assert not margin.any()
    preference_loss(margin).sum().backward()
    assert policy.mix.grad.abs().max() < 1e-14


def test_one_step_down_on_the_winner_is_a_positive_margin() -> None:
    policy, x0, noise, t = Net(9), randn(2, *SHAPE), randn(1, *SHAPE), torch.tensor([300])
    a, s = ABAR[t].sqrt(), (1 - ABAR[t]).sqrt()
    row_mse(policy(add_noise(x0[:1], noise, a, s), t), noise).sum().backward()
    with torch.no_grad():
        for p in policy.parameters():
            p -= 1e-3 * p.grad
    lost = randn(1, *SHAPE) * 10  # far away, so that it hardly notices
    assert dpo_margin(policy, torch.cat([x0[:1], lost]), noise, t) > 0


def test_batch_is_its_pairs() -> None:
    policy, x0, noise = Net(), randn(6, *SHAPE), randn(3, *SHAPE)
    t, prompt, p = torch.tensor([3, 444, 999]), randn(6, 3), torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64)
    a, s = ABAR[t].sqrt(), (1 - ABAR[t]).sqrt()

    def losses(rows: list[int]) -> torch.Tensor:
        both = rows + [row + 3 for row in rows]
        errors = diffusion_dpo_errors(
            policy, Net(9), x0[both], noise[rows], t[rows], a[rows], s[rows], {"prompt": prompt[both]}
        )
        return preference_loss(preference_margin(implicit_rewards(errors.delta, 20.0, label_factor(p[rows]))))

    torch.testing.assert_close(losses([0, 1, 2]), torch.cat([losses([i]) for i in range(3)]), rtol=0, atol=1e-12)


# Inversion-DPO, InPO and SmPO


def points_of(net: Net, x0: torch.Tensor, levels: Levels, k: list[list[int]], kind: str = "epsilon", **kwargs):
    return inversion_points(invert(net, x0, levels, prediction_type=kind, **kwargs), torch.tensor(k))


@every_type
@pytest.mark.parametrize("target", ["reference", "trajectory", "recovered"])
def test_at_the_reference_only_the_published_target_has_no_gradient(kind: str, target: str) -> None:
    policy, reference, levels, x0 = Net(), Net(), levels_of(kind, 6), randn(4, *SHAPE)
    points = points_of(reference, x0, levels, [[2, 5, 2, 5]], kind)
    errors = inversion_errors(policy, reference, x0, points, levels, target=target, prediction_type=kind)
    assert not errors.delta.any()
    loss = preference_loss(preference_margin(implicit_rewards(errors.delta, 2000.0))).mean()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    loss.backward()
    assert policy.mix.grad.any() == (target != "reference")


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction", "sample"])
def test_weight_makes_errors_those_of_the_clean_picture(kind: str) -> None:
    (a, s), x, p, q = level(kind), randn(1, *SHAPE), randn(1, *SHAPE), randn(1, *SHAPE)
    clean = [clean_and_noise(value, x, a, s, kind)[0] for value in (p, q)]
    expected = (clean[0] - clean[1]).square().mean() / (2 * s**2)
    torch.testing.assert_close(step_weight(a, s, kind) * row_mse(p, q)[0], expected)


def test_weight_of_v_is_that_of_epsilon() -> None:
    (a, s), x, p, q = level("v_prediction"), randn(1, *SHAPE), randn(1, *SHAPE), randn(1, *SHAPE)
    noise = [clean_and_noise(value, x, a, s, "v_prediction")[1] for value in (p, q)]
    of_v, of_epsilon = step_weight(a, s, "v_prediction"), step_weight(a, s, "epsilon")
    torch.testing.assert_close(of_v * row_mse(p, q), of_epsilon * row_mse(*noise))


def test_inversion_dpo_by_hand() -> None:
    """All steps, offset 0, as released; the sign is that of the paper's figure."""
    policy, reference, N, x0 = Net(), Net(9), 8, randn(2, *SHAPE)
    nothing, prompt = {"prompt": torch.zeros(1, 3, dtype=torch.float64)}, randn(1, 3).repeat(2, 1)
    S = []
    for row in (0, 1):
        x, total = x0[row, None], 0
        for k in range(N):
            t, before = k * 125, max(k * 125 - 125, 0)

            def guided(net: Net, x=x, t=t) -> torch.Tensor:
                u, c = net(x, torch.tensor([t]), 0 * prompt[:1]), net(x, torch.tensor([t]), prompt[:1])
                return u + 2 * (c - u)

            e = guided(reference)
            total = total + (guided(policy) - e).square().mean() / (2 * ABAR[t])
            clean = (x - (1 - ABAR[before]).sqrt() * e) / ABAR[before].sqrt()
            x = ABAR[t].sqrt() * clean + (1 - ABAR[t]).sqrt() * e
        S.append(total / N)
    levels = ddim_levels(ABAR, N)
    k = torch.arange(1, N + 1)[:, None].expand(N, 2)
    walk = invert(guide(reference, nothing, 2.0), x0, levels, {"prompt": prompt})
    errors = inversion_errors(
        guide(policy, nothing, 2.0), None, x0, inversion_points(walk, k), levels, {"prompt": prompt}
    )
    torch.testing.assert_close(preference_margin(implicit_rewards(errors.delta, 2000.0))[0], -1000 * (S[0] - S[1]))


def test_points_of_several_steps_are_averaged() -> None:
    policy, reference, levels, x0, prompt = (
        Net(),
        Net(9),
        ddim_levels(ABAR, 6, offset=1),
        randn(4, *SHAPE),
        randn(4, 3),
    )
    given = {"prompt": prompt}
    for target in ("reference", "trajectory", "recovered"):
        points = points_of(reference, x0, levels, [[1, 4, 1, 4], [3, 6, 3, 6]], conditioning=given)
        at_once = inversion_errors(policy, reference, x0, points, levels, given, target=target)
        single = [inversion_errors(policy, reference, x0, points[i], levels, given, target=target) for i in (0, 1)]
        torch.testing.assert_close(at_once.delta, (single[0].delta + single[1].delta) / 2, rtol=0, atol=1e-12)
        torch.testing.assert_close(at_once.policy, (single[0].policy + single[1].policy) / 2, rtol=0, atol=1e-12)


@every_type
def test_trajectory_target_leads_back_exactly(kind: str) -> None:
    levels, x0, goals = levels_of(kind, 5), randn(2, *SHAPE), []
    points = points_of(Net(), x0, levels, [[4, 4]], kind)

    def policy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        goals.append(x)
        return torch.zeros_like(x)

    errors = inversion_errors(policy, policy, x0, points, levels, target="trajectory", prediction_type=kind)
    # A network that says the target would take the deterministic step from x_k back to x_{k-1}.
    pair = clean_and_noise(points.prediction, points.source, levels.a[3], levels.s[3], kind)
    target = prediction_target(*pair, levels.a[4], levels.s[4], kind)
    assert torch.equal(goals[0], points.x)
    torch.testing.assert_close(errors.policy, row_mse(torch.zeros_like(target), target), rtol=0, atol=1e-12)
    back = add_noise(*clean_and_noise(target, points.x, levels.a[4], levels.s[4], kind), levels.a[3], levels.s[3])
    torch.testing.assert_close(back, points.source, rtol=0, atol=1e-11)


def test_smpo_by_hand() -> None:
    policy, reference, levels, x0 = Net(), Net(9), ddim_levels(ABAR, 5, offset=1), randn(2, *SHAPE)
    x = x0
    for k in (1, 2, 3):
        t = levels.timesteps[k - 1].expand(2)
        source, target = ABAR[max((k - 2) * 200 + 1, 0)], ABAR[(k - 1) * 200 + 1]

        def to(e: torch.Tensor, x=x, source=source, target=target) -> torch.Tensor:
            clean = (x - (1 - source).sqrt() * e) / source.sqrt()
            return target.sqrt() * clean + (1 - target).sqrt() * e

        e1 = policy(x, t)
        x = to((e1 + policy(to(e1), t)) / 2)
    x = x.detach()
    n = (x - ABAR[401].sqrt() * x0) / (1 - ABAR[401]).sqrt()
    gain = [
        (policy(x, torch.tensor([401, 401]))[i] - n[i]).square().mean()
        - (reference(x, torch.tensor([401, 401]))[i] - n[i]).square().mean()
        for i in (0, 1)
    ]
    points = points_of(policy, x0, levels, [[3, 3]], num_renoise_steps=1)
    errors = inversion_errors(policy, reference, x0, points, levels, target="recovered")
    factor = label_factor(torch.tensor([0.6], dtype=torch.float64))
    torch.testing.assert_close(
        preference_margin(implicit_rewards(errors.delta, 2000.0, factor))[0], -1000 * 2.0 * (gain[0] - gain[1])
    )


# Soft labels


def test_probability_is_the_softmax_of_scaled_scores() -> None:
    chosen, rejected = torch.tensor([0.25, 0.2, 0.28201571106910706]), torch.tensor([0.25, 0.21, 0.11543526500463486])
    p = preference_probability(chosen, rejected)
    assert p[0] == 0.5
    assert p[1] < 0.5
    assert p[2].item() == pytest.approx(math.e / (math.e + 1), abs=1e-6)
    scaled = (chosen - rejected).double() / (0.28201571106910706 - 0.11543526500463486)
    torch.testing.assert_close(label_factor(p.double()), 10 * (scaled / 2).tanh(), rtol=0, atol=1e-5)


def test_an_unsure_label_is_neutral_and_a_swapped_one_the_opposite() -> None:
    delta, p = randn(2).requires_grad_(), torch.tensor([0.3], dtype=torch.float64)
    preference_loss(
        preference_margin(implicit_rewards(delta, 2000.0, label_factor(torch.full((1,), 0.5))))
    ).sum().backward()
    assert not delta.grad.any()
    loss = preference_loss(preference_margin(implicit_rewards(delta, 20.0, label_factor(p))))
    swapped = preference_loss(preference_margin(implicit_rewards(delta.flip(0), 20.0, label_factor(1 - p))))
    torch.testing.assert_close(loss, swapped)


# All steps in two passes


def test_two_passes_give_the_gradient_of_one_graph() -> None:
    policy, reference, levels, x0 = Net(), Net(9), ddim_levels(ABAR, 7), randn(4, *SHAPE)
    points = points_of(reference, x0, levels, torch.arange(1, 8)[:, None].expand(7, 4).tolist())

    def loss(delta: torch.Tensor) -> torch.Tensor:
        return preference_loss(preference_margin(implicit_rewards(delta, 5.0))).mean()

    value = loss(inversion_errors(policy, None, x0, points, levels).delta)
    expected = torch.autograd.grad(value, list(policy.parameters()))
    seen, policy.rows = [], 0

    def context(last: bool):
        seen.append(last)
        return torch.enable_grad()

    found = two_pass_backward(
        lambda i: inversion_errors(policy, None, x0, points[i], levels).delta / 7,
        7,
        loss,
        torch.Tensor.backward,
        context,
    )
    assert policy.rows == 2 * 7 * 4
    assert seen == [False] * 6 + [True]
    torch.testing.assert_close(found, value.detach(), rtol=0, atol=1e-14)
    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


def test_a_mask_of_ones_is_none_and_zeros_are_left_out() -> None:
    prediction, target = randn(4, *SHAPE), randn(4, *SHAPE)
    whole = row_mse(prediction, target)
    torch.testing.assert_close(row_mse(prediction, target, torch.full((4, 1, 4, 4), 0.3)), whole)
    half = torch.zeros(4, 1, 4, 4)
    half[..., :2] = 1
    torch.testing.assert_close(row_mse(prediction, target, half), row_mse(prediction[..., :2], target[..., :2]))


def test_shares_of_votes_are_the_mean_over_all_of_them() -> None:
    m = randn(5).requires_grad_()
    votes = torch.tensor([[3.0, 1.0]] * 5, dtype=torch.float64)
    each = votes[:, 0] * preference_loss(m) + votes[:, 1] * preference_loss(-m)
    torch.testing.assert_close(preference_loss(m, votes[:, 0] / votes.sum(1)), each / votes.sum(1))
    torch.testing.assert_close(preference_loss(m, torch.ones(5)), preference_loss(m))
    # The least loss is where the margin says what the votes say.
    best = torch.tensor([math.log(3)], dtype=torch.float64, requires_grad=True)
    preference_loss(best, torch.tensor([0.75])).sum().backward()
    assert best.grad.abs().item() < 1e-12
