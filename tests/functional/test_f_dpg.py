# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The equations of f-DPG on a space of 64 sequences, where every expectation and gradient is a finite sum."""

import math
from itertools import product

import pytest
import torch

from alignext.functional.f_dpg import (
    DIVERGENCES,
    advantages,
    divergence_estimates,
    effective_sample_size,
    estimate_log_z,
    f_dpg_loss,
    f_prime,
    f_value,
    fit_lambda,
    group_advantages,
    qrs_estimates,
)


ALPHAS = [("alpha", alpha) for alpha in (-1.0, 0.3, 0.5, 2.0)]
ALL = [(name, None) for name in DIVERGENCES if name != "alpha"] + ALPHAS
FINITE_AT_ZERO = [(n, a) for n, a in ALL if f_prime(n, torch.tensor(math.inf), a) < math.inf]
every_divergence = pytest.mark.parametrize(("name", "alpha"), ALL)
every_finite = pytest.mark.parametrize(("name", "alpha"), FINITE_AT_ZERO)

INF = math.inf
SEQUENCES = torch.tensor(list(product(range(4), repeat=3)))


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the 64 sequences of 3 tokens under a tabular policy of 4 + 16 + 64 logits."""
    one, two, three = logits[:4], logits[4:20].view(4, 4), logits[20:].view(16, 4)
    x, y, z = SEQUENCES.T
    return one.log_softmax(0)[x] + two.log_softmax(1)[x, y] + three.log_softmax(1)[4 * x + y, z]


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(84, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOG_A = log_probs(0.7 * random_logits(1))
REWARD = torch.randn(64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
HAS_2 = (SEQUENCES == 2).any(1).double()
RARE = ((SEQUENCES == torch.tensor([3, 1, 0])).all(1) | (SEQUENCES == torch.tensor([0, 3, 3])).all(1)).double()
PHI = torch.stack([(SEQUENCES[:, 0] == 1).double(), (SEQUENCES == 2).sum(1).double()], 1)
SCORES = {
    "exponential 0.5": REWARD / 0.5,
    "exponential 0.1": REWARD / 0.1,
    "binary": HAS_2.log(),
    "rare": RARE.log(),
    "distributional": PHI @ fit_lambda(LOG_A, PHI, [0.5, 1.2]),
}


def f_divergence(name: str, log_pi: torch.Tensor, log_p: torch.Tensor, alpha: float | None = None) -> torch.Tensor:
    """`D_f(pi || p)` of shape `(...)` of distributions of shape `(..., X)` that are given in full; `-inf` for 0."""
    inside = log_p > -INF
    # Inside the `where`s no infinity meets a 0: a gradient would be NaN.
    log_t = torch.where(inside, log_pi - torch.where(inside, log_p, 0.0), 0.0)
    value = torch.where(inside, log_p.exp() * f_value(name, log_t, alpha), 0.0).sum(-1)
    outside = torch.where(inside, 0.0, log_pi.exp()).sum(-1)
    slope = torch.where(outside > 0, f_prime(name, outside.new_tensor(INF), alpha), 0.0)
    return value + slope * outside


def target(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`log P` and `log Z`."""
    log_p = LOG_A + SCORES[name]
    return log_p, log_p.logsumexp(0)


def gradient(coefficients: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """`sum_x c(x) grad log pi(x)`."""
    logits = logits.clone().requires_grad_()
    (coefficients.detach() @ log_probs(logits)).backward()
    return logits.grad


def true_gradient(name: str, alpha: float | None, logits: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    f_divergence(name, log_probs(logits), log_p, alpha).backward()
    return logits.grad


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


# Divergences


@every_divergence
def test_f_prime_is_the_derivative_of_f(name, alpha):
    t = torch.tensor([1e-3, 0.1, 0.5, 1.0, 1.7, 10.0, 300.0], dtype=torch.float64, requires_grad=True)
    f_value(name, t.log(), alpha).sum().backward()
    expected = f_prime(name, t.detach().log(), alpha)
    if name == "tv":  # at 1 the derivative is any of [-1/2, 1/2]
        t.grad[3] = 0.0
    assert torch.allclose(t.grad, expected, rtol=1e-10, atol=1e-12)
    assert f_value(name, torch.zeros(()), alpha) == 0


@pytest.mark.parametrize(
    ("name", "alpha", "at_one", "curvature", "at_infinity", "at_zero"),
    [
        ("forward_kl", None, -1, 1, 0, -INF),
        ("reverse_kl", None, 1, 1, INF, -INF),
        ("js", None, 0, 0.5, math.log(2), -INF),
        ("tv", None, 0, None, 0.5, -0.5),
        ("chi2_forward", None, 0, 2, 1, -INF),
        ("chi2_reverse", None, 0, 2, INF, -2),
        ("hellinger", None, 0, 0.5, 1, -INF),
        ("jeffreys", None, 0, 2, INF, -INF),
        ("alpha", 0.3, 0, 1, 1 / 0.7, -INF),
        ("alpha", 2.0, 0, 1, INF, -1),
    ],
)
def test_values_of_f_prime_at_the_ends(name, alpha, at_one, curvature, at_infinity, at_zero):
    u = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = f_prime(name, u, alpha)
    assert value.item() == at_one
    if curvature is not None:  # d f'(e^u) / du at u = 0 is f''(1)
        value.backward()
        assert u.grad.item() == pytest.approx(curvature)
    assert f_prime(name, torch.tensor(INF), alpha).item() == pytest.approx(at_infinity)
    assert f_prime(name, torch.tensor(-INF), alpha, log_t_clip=INF).item() == pytest.approx(at_zero)
    assert f_prime(name, torch.tensor(0.0), alpha, normalize=True) == 0


@every_divergence
def test_f_prime_stays_finite_and_in_order(name, alpha):
    u = torch.linspace(-1000, 1000, 401)
    value = f_prime(name, u, alpha)
    assert value.isfinite().all()
    assert (value.diff() >= 0).all()


def test_alpha_contains_the_others():
    u = torch.linspace(-3, 3, 13)
    for alpha, name, factor in ((0.5, "hellinger", 2), (2.0, "chi2_reverse", 0.5), (-1.0, "chi2_forward", 0.5)):
        assert torch.allclose(f_prime("alpha", u, alpha), factor * f_prime(name, u), rtol=1e-12)
        assert torch.allclose(f_value("alpha", u, alpha), factor * f_value(name, u), rtol=1e-12, atol=1e-15)
    for alpha, name in ((1e-7, "forward_kl"), (1 - 1e-7, "reverse_kl")):
        assert torch.allclose(f_prime("alpha", u, alpha), f_prime(name, u, normalize=True), rtol=1e-5, atol=1e-5)


def test_divergences_are_what_their_names_say():
    log_pi, (log_p, log_z) = log_probs(random_logits(3)), target("exponential 0.5")
    pi, p = log_pi.exp(), (log_p - log_z).exp()
    m = (pi + p) / 2
    js = (p @ (p / m).log() + pi @ (pi / m).log()) / 2
    expected = {
        "forward_kl": p @ (p / pi).log(),
        "reverse_kl": pi @ (pi / p).log(),
        "js": 2 * js,
        "tv": (pi - p).abs().sum() / 2,
        "chi2_forward": ((p - pi) ** 2 / pi).sum(),
        "chi2_reverse": ((p - pi) ** 2 / p).sum(),
        "hellinger": ((pi.sqrt() - p.sqrt()) ** 2).sum(),
        "jeffreys": p @ (p / pi).log() + pi @ (pi / p).log(),
    }
    for name, value in expected.items():
        assert f_divergence(name, log_pi, log_p - log_z).item() == pytest.approx(value.item(), rel=1e-12)


def test_chi2_forward_is_the_one_that_explodes_where_the_policy_is_too_small():
    log_p, log_pi = torch.tensor([0.5, 0.5]).log(), torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64).log()
    assert f_divergence("chi2_forward", log_pi, log_p) > 1e8
    assert f_divergence("chi2_reverse", log_pi, log_p) < 2


@every_divergence
def test_divergence_where_the_target_has_no_mass(name, alpha):
    log_pi, (log_p, log_z) = log_probs(random_logits(3)), target("binary")
    value = f_divergence(name, log_pi, log_p - log_z, alpha)
    outside = log_pi.exp()[HAS_2 == 0].sum().item()
    if (name, alpha) not in FINITE_AT_ZERO:
        assert value == INF
    else:  # almost no mass there is almost the same divergence
        softened = torch.where(HAS_2 == 1, 0.0, math.log(1e-13)) + LOG_A
        assert value.item() == pytest.approx(
            f_divergence(name, log_pi, softened - softened.logsumexp(0), alpha).item(), rel=1e-3
        )
        assert outside > 0.1
    inside = log_p - log_z
    assert f_divergence(name, inside, inside, alpha).item() == pytest.approx(0, abs=1e-12)


@every_divergence
def test_divergences_of_several_pairs_are_those_of_each(name, alpha):
    """One pair's target excludes nothing, the other's does: where f'(inf) = inf, only that one is infinite."""
    log_pi = torch.stack([log_probs(random_logits(seed)) for seed in (3, 4)])
    log_p = torch.stack(
        [log_p - log_z for log_p, log_z in map(target, ("exponential 0.5", "binary"))]
    ).requires_grad_()
    both = f_divergence(name, log_pi, log_p, alpha)
    each = [f_divergence(name, log_pi[k], log_p[k], alpha) for k in (0, 1)]
    assert torch.equal(both, torch.stack(each))
    both[0].backward()
    assert log_p.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "alpha", "match"),
    [
        ("kl", None, "forward_kl"),
        ("alpha", None, "alpha"),
        ("alpha", 1, "reverse_kl"),
        ("alpha", math.nan, "finite"),
    ],
)
def test_unknown_divergences_are_named(name, alpha, match):
    for function in (f_value, f_prime):
        with pytest.raises(ValueError, match=match):
            function(name, torch.zeros(2), alpha)


# Gradient


@every_divergence
@pytest.mark.parametrize("where", SCORES)
def test_policy_gradient_is_the_gradient_of_the_divergence(name, alpha, where):
    log_p, log_z = target(where)
    if (name, alpha) not in FINITE_AT_ZERO and bool((log_p == -INF).any()):
        pytest.skip("infinite")
    logits = random_logits(3)
    log_pi = log_probs(logits)
    expected = true_gradient(name, alpha, logits, log_p - log_z)
    # all sequences once, under a proposal that draws each as often: the mean is the expectation
    log_q = torch.full((64,), -math.log(64), dtype=torch.float64)

    def unclipped(log_t: torch.Tensor) -> torch.Tensor:
        return f_prime(name, log_t, alpha, log_t_clip=INF)

    for constant in (0.0, 3.0):
        result = group_advantages(unclipped, log_pi, log_p, log_q, log_z=log_z, baseline=constant)
        moved = logits.clone().requires_grad_()
        f_dpg_loss(log_probs(moved), result.advantages, log_q).mean().backward()
        assert torch.allclose(moved.grad, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def expected_gradient(name: str, logits: torch.Tensor, log_p: torch.Tensor, size: int, **settings) -> torch.Tensor:
    """The expectation of the estimator over all groups of `size` samples of the policy, or of `log_q`."""
    log_pi = log_probs(logits)
    log_q = settings.pop("log_q", log_pi)
    weighted = settings.pop("weighted", True)
    groups = torch.cartesian_prod(*[torch.arange(64)] * size)
    result = group_advantages(name, log_pi[groups], log_p[groups], log_q[groups], **settings)
    chance = log_q[groups].sum(1).exp()
    ratio = (log_pi - log_q).exp()[groups[:, 0]] if weighted else 1.0
    # by symmetry, the first sample stands for all
    coefficients = torch.zeros(64, dtype=torch.float64).index_add_(
        0, groups[:, 0], chance * ratio * result.advantages[:, 0]
    )
    return -gradient(coefficients, logits)


@pytest.mark.parametrize("size", [2, 3])
def test_reverse_kl_is_unbiased(size):
    (log_p, log_z), logits = target("exponential 0.5"), random_logits(3)
    expected = true_gradient("reverse_kl", None, logits, log_p - log_z)
    found = expected_gradient("reverse_kl", logits, log_p, size)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "alpha"), [("forward_kl", None), ("hellinger", None), ("alpha", 0.3)])
def test_powers_of_t_are_parallel_to_the_gradient(name, alpha):
    (log_p, log_z), logits = target("exponential 0.5"), random_logits(3)
    expected = true_gradient(name, alpha, logits, log_p - log_z)
    found = expected_gradient(name, logits, log_p, 3, alpha=alpha)
    assert cosine(found, expected) == pytest.approx(1, abs=1e-10)


def test_a_sample_in_its_own_partition_function_biases():
    (log_p, log_z), logits = target("exponential 0.5"), random_logits(3)
    expected = true_gradient("forward_kl", None, logits, log_p - log_z)
    found = expected_gradient("forward_kl", logits, log_p, 3, leave_one_out=False)
    assert cosine(found, expected) < 0.95
    # js is no power of t: with 3 samples its direction is nearly right, and nearer than with the sample in its own Z.
    expected = true_gradient("js", None, logits, log_p - log_z)
    with_it, without = (
        cosine(expected_gradient("js", logits, log_p, 3, leave_one_out=o), expected) for o in (False, True)
    )
    assert with_it < 0.9 < without


def test_total_variation_needs_many_samples():
    """Only the sign of log t counts, which Z from 3 samples gets wrong too often; with the exact Z all is right."""
    (log_p, log_z), logits = target("exponential 0.5"), random_logits(3)
    expected = true_gradient("tv", None, logits, log_p - log_z)
    assert cosine(expected_gradient("tv", logits, log_p, 3), expected) < 0.8
    assert cosine(expected_gradient("tv", logits, log_p, 3, log_z=log_z), expected) == pytest.approx(1)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "js"])
def test_the_baseline_does_not_move_the_expectation(name):
    (log_p, _), logits = target("exponential 0.5"), random_logits(3)
    without, constant, siblings = (
        expected_gradient(name, logits, log_p, 3, baseline=baseline)
        for baseline in ("none", "constant", "leave_one_out")
    )
    assert torch.allclose(constant, without, rtol=1e-9, atol=1e-12)
    assert torch.allclose(siblings, without, rtol=1e-9, atol=1e-12)


def test_many_groups_average_to_the_gradient():
    (log_p, log_z), logits = target("exponential 0.5"), random_logits(3)
    log_pi = log_probs(logits)
    jacobian = torch.autograd.functional.jacobian(log_probs, logits)  # (64, 84)
    groups = torch.multinomial(log_pi.exp(), 40_000 * 4, replacement=True).view(-1, 4)
    result = group_advantages("reverse_kl", log_pi[groups], log_p[groups])
    samples = -torch.einsum("gn,gnk->gk", result.advantages, jacobian[groups]) / 4
    expected = true_gradient("reverse_kl", None, logits, log_p - log_z)
    z = (samples.mean(0) - expected) / (samples.std(0) / len(samples) ** 0.5)
    assert z.abs().max() < 5


def test_samples_of_another_proposal_need_their_weights():
    (log_p, log_z), logits = target("exponential 0.5"), random_logits(3)
    expected = true_gradient("reverse_kl", None, logits, log_p - log_z)
    found = expected_gradient("reverse_kl", logits, log_p, 2, log_q=LOG_A)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    forgotten = expected_gradient("reverse_kl", logits, log_p, 2, log_q=LOG_A, weighted=False)
    assert cosine(forgotten, expected) < 0.95
    forward = true_gradient("forward_kl", None, logits, log_p - log_z)
    assert cosine(expected_gradient("forward_kl", logits, log_p, 2, log_q=LOG_A), forward) == pytest.approx(1)


TRAINED = [("exponential 0.5", "reverse_kl"), ("distributional", "forward_kl")]
TRAINED_TOO = [("exponential 0.5", "tv"), ("exponential 0.5", "js"), ("exponential 0.5", "forward_kl")]
TRAINED_TOO += [("distributional", name) for name in ("js", "tv", "reverse_kl")]


@pytest.mark.parametrize(
    ("where", "name"), [*TRAINED, *(pytest.param(*case, marks=pytest.mark.slow) for case in TRAINED_TOO)]
)
def test_training_reaches_the_target(where, name):
    log_p, log_z = target(where)
    logits = (0.7 * random_logits(1)).requires_grad_()  # the initial model
    optimizer = torch.optim.Adam([logits], lr=0.02)
    log_sum, count = -INF, 0
    for _ in range(600):
        log_pi = log_probs(logits)
        drawn = torch.multinomial(log_pi.detach().exp(), 32, replacement=True)
        now = log_pi.detach()[drawn]
        result = group_advantages(name, now, log_p[drawn], log_sum=log_sum, count=count)
        log_w = log_p[drawn] - now
        log_sum, count = float(torch.logaddexp(torch.tensor(log_sum), log_w.logsumexp(0))), count + 32
        optimizer.zero_grad()
        f_dpg_loss(log_pi[drawn], result.advantages).mean().backward()
        optimizer.step()
    distance = [f_divergence("tv", log, log_p - log_z).item() for log in (LOG_A, log_probs(logits.detach()))]
    assert distance[1] < 0.02 < distance[0], distance
    assert log_sum - math.log(count) == pytest.approx(log_z.item(), abs=0.05)


def test_each_context_needs_its_own_partition_function():
    """Two contexts whose policies are alike and whose constraints are not: one Z for both weighs them wrongly."""
    logits, log_pi = random_logits(3), log_probs(random_logits(3))
    targets = [LOG_A + HAS_2.log(), LOG_A + RARE.log()]
    exact = [true_gradient("forward_kl", None, logits, log_p - log_p.logsumexp(0)) for log_p in targets]
    shared = torch.stack([log_p.logsumexp(0) for log_p in targets]).logsumexp(0) - math.log(2)

    def mean(log_zs: list[torch.Tensor]) -> torch.Tensor:
        both = []
        for log_p, log_z in zip(targets, log_zs, strict=True):
            result = group_advantages("forward_kl", log_pi, log_p, log_z=log_z, baseline="none")
            both.append(-gradient(log_pi.exp() * result.advantages, logits))
        return sum(both) / 2

    true = sum(exact) / 2
    assert torch.allclose(mean([log_p.logsumexp(0) for log_p in targets]), true, rtol=1e-8, atol=1e-12)
    assert cosine(mean([shared, shared]), true) < 0.8


@every_divergence
def test_at_the_target_nothing_is_to_be_done(name, alpha):
    log_p, _ = target("exponential 0.5")
    drawn = torch.randint(64, (16,))
    log_pi = log_p[drawn] - log_p.logsumexp(0)
    result = group_advantages(name, log_pi, log_p[drawn], alpha=alpha)
    assert torch.allclose(result.advantages, torch.zeros(16).double(), atol=1e-12)
    same = group_advantages(name, LOG_A[drawn], LOG_A[drawn], alpha=alpha)
    assert (same.advantages == 0).all() and same.log_t.abs().max() < 1e-12


@every_divergence
def test_a_constant_added_to_all_rewards_changes_nothing(name, alpha):
    drawn = torch.randint(64, (8,))
    log_pi, log_p = log_probs(random_logits(3))[drawn], LOG_A[drawn] + REWARD[drawn]
    for log_sum, count in ((-INF, 0), (1.5, 40)):
        base = group_advantages(name, log_pi, log_p, alpha=alpha, log_sum=log_sum, count=count)
        moved = group_advantages(name, log_pi, log_p + 400, alpha=alpha, log_sum=log_sum + 400, count=count)
        assert torch.allclose(moved.advantages, base.advantages, rtol=1e-9, atol=1e-9)
        assert torch.allclose(moved.log_z, base.log_z + 400)


@every_divergence
def test_huge_rewards_stay_finite(name, alpha):
    log_pi = torch.full((6,), -20.0)
    log_p = log_pi + torch.tensor([400.0, 0.0, -400.0, 100.0, 5.0, 399.0])
    assert group_advantages(name, log_pi, log_p, alpha=alpha).advantages.isfinite().all()


@every_finite
def test_excluded_samples(name, alpha):
    log_pi = torch.tensor([-3.0, -4.0, -5.0, -2.0])
    none = group_advantages(name, log_pi, torch.full((4,), -INF), alpha=alpha)
    assert (none.advantages == 0).all()
    one = torch.tensor([-INF, -4.0, -INF, -INF])
    result = group_advantages(name, log_pi, one, alpha=alpha)
    assert result.advantages[1] > 0
    assert (result.advantages[[0, 2, 3]] <= 0).all() and result.advantages.isfinite().all()
    assert result.log_z[1] == pytest.approx(math.log(1 / 4))  # itself included, or its success would be lost
    assert result.log_z[0] == pytest.approx(math.log(1 / 3))


def test_excluded_samples_are_refused_where_the_divergence_is_infinite():
    with pytest.raises(ValueError, match=r"-inf, at .* = inf.*js"):
        group_advantages("reverse_kl", torch.zeros(3), torch.tensor([0.0, -INF, 0.0]))


def test_infinite_pseudo_rewards_and_unknown_baselines_are_named():
    def unclipped(log_t: torch.Tensor) -> torch.Tensor:
        return f_prime("forward_kl", log_t, log_t_clip=INF)

    with pytest.raises(ValueError, match=r"pseudo-reward inf, at .* = -900.*log_t_clip"):
        group_advantages(unclipped, torch.tensor([-900.0, -3.0, -3.0]), torch.tensor([0.0, -3.0, -3.0]))
    with pytest.raises(ValueError, match=r"leave_one_out.*'mean'"):
        group_advantages("js", torch.zeros(3), torch.zeros(3), baseline="mean")


def test_samples_without_a_score_are_left_out():
    log_pi, log_p = torch.tensor([-3.0, -4.0, -5.0, -2.0, -9.0]), torch.tensor([-2.0, -5.0, -5.5, -1.0, math.nan])
    whole = group_advantages("js", log_pi, log_p)
    part = group_advantages("js", log_pi[:4], log_p[:4])
    assert torch.allclose(whole.advantages[:4], part.advantages) and whole.advantages[4] == 0
    lonely = group_advantages("js", log_pi[:2], torch.tensor([-2.0, math.nan]))
    assert (lonely.advantages == 0).all()


def test_advantages_of_reverse_kl_are_those_of_rloo():
    drawn = torch.randint(64, (8,))
    log_pi, beta = log_probs(random_logits(3))[drawn], 0.1
    reward = REWARD[drawn] - beta * (log_pi - LOG_A[drawn])
    rloo = reward - (reward.sum() - reward) / 7
    ours = group_advantages("reverse_kl", log_pi, LOG_A[drawn] + REWARD[drawn] / beta)
    assert torch.allclose(beta * ours.advantages, rloo, rtol=1e-12, atol=1e-12)


def test_custom_divergence_clip_and_blocks_of_a_large_group():
    log_pi, log_p = torch.randn(1500), torch.randn(1500)
    named = group_advantages("js", log_pi, log_p)
    own = group_advantages(lambda u: f_prime("js", u), log_pi, log_p)
    assert torch.equal(named.advantages, own.advantages)
    z, ratio = named.log_z[700], (log_pi - log_p).double()
    expected = -f_prime("js", ratio + z)
    assert named.baseline[700].item() == pytest.approx((expected.sum() - expected[700]).item() / 1499)
    clipped = group_advantages("forward_kl", log_pi, log_p, reward_clip=0.5)
    assert clipped.pseudo_rewards.abs().max() == 0.5
    assert group_advantages("js", log_pi, log_p, baseline=0.25).baseline.unique() == 0.25


@every_finite
def test_advantages_of_known_z_and_baseline_are_those_of_the_group(name, alpha):
    (log_p, _), log_pi = target("binary"), log_probs(random_logits(3))
    log_p = log_p.clone()
    log_p[5] = math.nan
    for clip in (None, 0.3):
        group = group_advantages(name, log_pi, log_p, alpha=alpha, reward_clip=clip)
        again = advantages(name, log_pi, log_p, group.log_z, group.baseline, alpha=alpha, reward_clip=clip)
        assert torch.equal(again, group.advantages)
    unknown = advantages(name, log_pi, log_p, torch.full((64,), -INF), 3.0, alpha=alpha)
    assert (unknown == 0).all()


def test_loss_reads_the_proposal_and_clips_its_ratio():
    log_pi = torch.tensor([-1.0, -2.0], requires_grad=True)
    log_q, advantages = torch.tensor([-3.0, -2.0]), torch.tensor([2.0, 1.0])
    f_dpg_loss(log_pi, advantages, log_q).sum().backward()
    assert log_pi.grad.tolist() == pytest.approx([-2 * math.exp(2), -1])
    log_pi.grad = None
    f_dpg_loss(log_pi, advantages, log_q, ratio_clip=3.0).sum().backward()
    assert log_pi.grad.tolist() == pytest.approx([-6, -1])


# Partition function


def test_log_z_of_all_others():
    w = torch.tensor([[3.0, 0.0, 2.0, 7.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    past, n = 5.0, 6
    expected = (past + w.sum(1, keepdim=True) - w) / (n + 3)
    found = estimate_log_z(w.log(), log_sum=math.log(past), count=n)
    assert torch.allclose(found.exp(), expected, rtol=1e-12)
    inclusive = estimate_log_z(w.log(), log_sum=math.log(past), count=n, leave_one_out=False)
    assert torch.allclose(inclusive.exp().expand_as(w), ((past + w.sum(1, keepdim=True)) / (n + 4)).expand_as(w))
    assert torch.allclose(estimate_log_z(w.log() + 1000), estimate_log_z(w.log()) + 1000)


def test_log_z_with_nothing_known():
    assert estimate_log_z(torch.tensor([2.0])).isnan().all()
    assert estimate_log_z(torch.tensor([2.0]), log_sum=1.0, count=2).item() == pytest.approx(1 - math.log(2))
    assert (estimate_log_z(torch.tensor([-INF, -INF])) == -INF).all()
    found = estimate_log_z(torch.tensor([0.0, math.nan, 1.0]))
    assert found[0] == 1 and found[2] == 0


def test_effective_sample_size():
    assert effective_sample_size(torch.full((7,), 300.0)).item() == pytest.approx(7)
    assert effective_sample_size(torch.tensor([0.0, -INF, math.nan])) == 1
    assert effective_sample_size(torch.tensor([-INF, -INF])) == 0


# Distributional targets


def logit(x: float) -> float:
    return math.log(x / (1 - x))


@pytest.mark.parametrize(("share", "wanted"), [(0.001, 0.1), (0.3, 0.99), (0.5, 0.5), (0.7, 0.01)])
def test_lambda_of_one_binary_feature_is_a_difference_of_logits(share, wanted):
    phi = (torch.arange(1000) < 1000 * share).double()[:, None]
    found = fit_lambda(torch.zeros(1000), phi, [wanted])
    assert found.item() == pytest.approx(logit(wanted) - logit(share), abs=1e-8)


@pytest.mark.parametrize("wanted", [0.5, 0.7, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("share", [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1])
def test_lambda_of_a_rare_feature_is_the_closed_form(share, wanted):
    met = round(4096 * share)
    phi = torch.zeros(4096, 1, dtype=torch.float64)
    phi[:met] = 1.0
    expected = math.log(wanted / (1 - wanted)) - math.log(met / (4096 - met))
    for scale in (1.0, 0.5, 40.0):  # a feature may be on any scale
        found = fit_lambda(torch.zeros(4096), scale * phi, [scale * wanted]).item()
        assert found == pytest.approx(expected / scale, rel=1e-9)


def test_lambda_of_two_rare_features_and_of_a_moment_at_the_top():
    # Independent features: each has the coefficient that it would have alone.
    first, second = torch.arange(4096) % 64 == 0, torch.arange(4096) // 64 == 7
    phi = torch.stack([first, second], 1).double()
    expected = [math.log(wanted / (1 - wanted)) + math.log(63) for wanted in (0.95, 0.2)]
    assert fit_lambda(torch.zeros(4096), phi, [0.95, 0.2]).tolist() == pytest.approx(expected, rel=1e-9)
    # Weights of thousands of nats: on a grid, exp(-20 y) has a mean of d / (exp(20 d) - 1) below the top.
    x = torch.linspace(0, 100, 100_001, dtype=torch.float64)[:, None]
    moment = 100 - 1e-3 / math.expm1(20e-3)
    assert fit_lambda(torch.zeros(len(x)), x, [moment]).item() == pytest.approx(20, rel=1e-6)


def test_lambda_gives_the_moments_and_the_nearest_distribution():
    log_p = LOG_A + SCORES["distributional"]
    p = (log_p - log_p.logsumexp(0)).exp()
    assert torch.allclose(p @ PHI, torch.tensor([0.5, 1.2]).double(), atol=1e-6)
    # another distribution with the same moments is further from the initial one
    direction = torch.randn(64, dtype=torch.float64)
    basis = torch.cat([PHI, torch.ones(64, 1)], 1)
    direction -= basis @ torch.linalg.lstsq(basis, direction).solution
    for size in (-1e-3, 1e-3):
        other = p + size * direction * p.min() / direction.abs().max()
        assert other @ (other.log() - LOG_A) > p @ (p.log() - LOG_A)


def test_hybrid_weighs_by_the_constraint():
    found = fit_lambda(LOG_A + HAS_2.log(), PHI[:, :1], [0.6])
    inside = LOG_A.exp() * HAS_2
    share = (inside @ PHI[:, 0] / inside.sum()).item()
    assert found.item() == pytest.approx(logit(0.6) - logit(share), abs=1e-8)


def test_contexts_weigh_the_same():
    phi = torch.zeros(2, 100, 1, dtype=torch.float64)
    phi[0, :50], phi[1, :10] = 1, 1
    log_w = torch.zeros(2, 100)
    log_w[1] += 5  # what a context weighs in all does not matter
    found = fit_lambda(log_w, phi, [0.5]).item()
    means = [1 / (1 + math.exp(-(logit(share) + found))) for share in (0.5, 0.1)]
    assert sum(means) / 2 == pytest.approx(0.5, abs=1e-9)
    padded = torch.cat([phi, torch.ones(2, 3, 1)], 1), torch.cat([log_w, torch.full((2, 3), -INF)], 1)
    assert fit_lambda(padded[1], padded[0], [0.5]).item() == pytest.approx(found, abs=1e-9)


def test_lambda_of_features_on_other_scales():
    phi = torch.stack([PHI[:, 0] * 100, PHI[:, 1] / 10 + 3], 1)
    found = fit_lambda(LOG_A, phi, [50.0, 3.12])
    expected = fit_lambda(LOG_A, PHI, [0.5, 1.2])
    assert torch.allclose(found * torch.tensor([100.0, 0.1]), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("phi", "moments", "match"),
    [
        (PHI, [0.5, 3.5], "length.*out of reach|out of reach.*length"),
        (torch.ones(64, 1), [1.0], "constant"),
        (torch.stack([PHI[:, 0], 1 - PHI[:, 0]], 1), [0.6, 0.6], "together"),
        (PHI, [0.5], "2 features, 1 moments"),
        (torch.where(PHI == 3, INF, PHI), [0.5, 1.2], "length is inf"),
        (torch.where(PHI == 3, math.nan, PHI), [0.5, 1.2], "length is nan"),
        (torch.where(PHI == torch.tensor([1, 0]), torch.tensor([math.nan, INF]), PHI), [0.5, 1.2], "length is inf"),
    ],
)
def test_moments_out_of_reach_are_refused(phi, moments, match):
    with pytest.raises(ValueError, match=match):
        fit_lambda(LOG_A, phi, moments, names=["first", "length"][: len(moments)])


def test_lambda_needs_a_sample_that_meets_the_constraint():
    with pytest.raises(ValueError, match="never met"):
        fit_lambda(torch.full((64,), -INF), PHI, [0.5, 1.0])


# Estimates: all 64 sequences under a uniform proposal, so that a mean is the exact value

UNIFORM = torch.full((64,), -math.log(64), dtype=torch.float64)


@pytest.mark.parametrize("where", SCORES)
def test_estimates_are_the_divergences(where):
    log_pi, (log_p, log_z) = log_probs(random_logits(3)), target(where)
    for z in (log_z, None):
        found = divergence_estimates(log_pi, log_p, LOG_A, UNIFORM, log_z=z)
        expected = {
            "kl_target_policy": f_divergence("forward_kl", log_pi, log_p - log_z),
            "tv": f_divergence("tv", log_pi, log_p - log_z),
            "js": f_divergence("js", log_pi, log_p - log_z) / 2,
            "kl_policy_base": f_divergence("reverse_kl", log_pi, LOG_A),
            "kl_target_base": f_divergence("forward_kl", LOG_A, log_p - log_z),
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-9, abs=1e-12), name
    assert "kl_policy_base" not in divergence_estimates(log_pi, log_p)


@pytest.mark.parametrize("where", ["exponential 0.5", "binary"])
def test_quasi_rejection_estimates_are_exact(where):
    log_p, log_z = target(where)
    log_q, p = log_probs(random_logits(3)), (log_p - log_z).exp()
    ratio = (log_p - log_q).exp()
    betas = torch.tensor([0.1, 1.0, 5.0, float(ratio.max())])
    # under the uniform proposal first: P / q has to be that of the proposal that samples
    found = qrs_estimates(log_p, UNIFORM, betas * 64)
    for k, beta in enumerate((betas * 64).double()):
        law = torch.minimum(log_p.exp(), beta / 64)
        assert found["z"][k].item() == pytest.approx(log_z.exp().item())
        assert found["z_beta"][k].item() == pytest.approx(law.sum().item())
        assert found["acceptance_rate"][k].item() == pytest.approx((law.sum() / beta).item())
        law = law / law.sum()
        inside = p > 0
        assert found["kl"][k].item() == pytest.approx((p[inside] @ (p / law)[inside].log()).item(), abs=1e-12)
        assert found["tv"][k].item() == pytest.approx(((p - law).abs().sum() / 2).item(), abs=1e-12)
    exact = qrs_estimates(log_p, UNIFORM, [1e9])
    assert exact["kl"].item() == pytest.approx(0, abs=1e-12)
    assert (found["acceptance_rate"].diff() <= 0).all() and (found["tv"].diff() <= 1e-12).all()
    with pytest.raises(ValueError, match=r"-1\.0"):
        qrs_estimates(log_p, UNIFORM, [1.0, -1.0])


def test_estimates_where_nothing_is_known_of_the_target():
    found = divergence_estimates(LOG_A[:3], torch.full((3,), -INF), LOG_A[:3])
    assert found["kl_policy_base"] == 0
    assert found["kl_target_policy"] == found["kl_target_base"] == INF
    assert found["tv"].isnan() and found["js"].isnan()
    assert qrs_estimates(torch.full((3,), -INF), LOG_A[:3], 1.0)["kl"].isnan()
