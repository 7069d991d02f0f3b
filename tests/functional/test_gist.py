# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""GIST and LESS: projections, scores and their limits, as identities in float64."""

import pytest
import torch

from alignext.functional.gist import (
    adam_direction,
    basis,
    count_sketch,
    gist_scores,
    group_means,
    less_scores,
    subspace,
)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_projection_is_that_of_the_svd(rank: int):
    g = rows(7, 40)
    u, s = subspace(g @ g.T, rank)
    p = basis(g, u, s)
    _, values, right = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(s, values[:rank], rtol=0, atol=1e-10)
    torch.testing.assert_close(p.T @ p, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close((p.T @ right[:rank].T).abs(), torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-10)
    # Block by block it is the same, and the target's own features need no second pass.
    torch.testing.assert_close(torch.cat([basis(g[:, :15], u, s), basis(g[:, 15:], u, s)]), p)
    torch.testing.assert_close(g @ p, u * s, rtol=0, atol=1e-10)


def test_the_rank_holds_the_share_that_is_asked_for():
    gram = torch.diag(torch.tensor([50.0, 30.0, 15.0, 5.0], dtype=torch.float64))
    assert [len(subspace(gram, share=share)[1]) for share in (0.4, 0.8, 0.95, 0.96)] == [2, 2, 3, 4]
    twice = rows(3, 20).repeat(2, 1)  # duplicates among the target's rows span nothing
    assert len(subspace(twice @ twice.T, 6)[1]) == 3


def test_all_directions_keep_inner_products_and_few_lose_them():
    g, t = rows(5, 60), rows(9, 60, seed=1)
    u, s = subspace(g @ g.T, 5)
    p = basis(g, u, s)
    torch.testing.assert_close((t @ p) @ (u * s).T, t @ g.T, rtol=0, atol=1e-10)
    # A target's own row has cosine 1 with itself.
    own = gist_scores(g @ p, u * s)
    torch.testing.assert_close(own, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-10)


def test_normalisation():
    g = rows(4, 60)
    u, s = subspace(g @ g.T, 1)
    p = basis(g, u, s)
    t = rows(50, 60, seed=1)
    inside = gist_scores(t @ p, group_means(u * s, torch.zeros(4, dtype=torch.long)))
    assert torch.equal(inside.abs().round(decimals=9), torch.ones(50, dtype=torch.float64))  # all of them tie
    u, s = subspace(g @ g.T, 4)
    p, norms = basis(g, u, s), t.norm(dim=1)
    full = gist_scores(t @ p, group_means(u * s, torch.zeros(4, dtype=torch.long)), norms)
    wanted = torch.nn.functional.cosine_similarity(t, g.mean(0, keepdim=True))
    torch.testing.assert_close(full, wanted, rtol=0, atol=1e-10)
    # A row without a part in the subspace: no energy, no score.
    across = t - t @ p @ p.T
    assert ((across @ p).norm(dim=1) / across.norm(dim=1)).max() < 1e-6
    assert gist_scores(across @ p, u * s, across.norm(dim=1)).abs().max() < 1e-6


def test_groups_are_averaged_before_the_cosine_by_gist_and_after_it_by_less():
    targets, z = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
    groups = torch.tensor([0, 0, 1])
    means = group_means(targets, groups)
    assert means.tolist() == [[0.5, 1.5], [-1.0, 0.0]]
    assert gist_scores(z, means).item() == pytest.approx(0.5 / 2.5**0.5)
    assert less_scores(z, targets, groups).item() == pytest.approx(0.5)
    assert gist_scores(torch.zeros(1, 2).double(), means).isnan().all()


def test_adam_takes_the_step_that_less_says():
    """Epsilon stands within the root, and nothing is corrected for the first steps."""
    g, m, v = rows(1, 5), rows(5, seed=1), rows(5, seed=2).square()
    found = adam_direction(g, m, v, 0.9, 0.99, 1e-3)
    wanted = (0.9 * m[2] + 0.1 * g[0, 2]) / (0.99 * v[2] + 0.01 * g[0, 2] ** 2 + 1e-3).sqrt()
    assert found[0, 2].item() == pytest.approx(wanted.item(), rel=1e-12)


def test_a_sketch_keeps_inner_products_on_average():
    x = rows(2, 300)
    found = torch.stack([count_sketch(x, 64, seed)[0] @ count_sketch(x, 64, seed)[1] for seed in range(400)])
    spread = found.std() / 20
    assert abs(found.mean() - x[0] @ x[1]) < 4 * spread
    assert torch.equal(count_sketch(x, 64, 3), count_sketch(x, 64, 3))
    assert not torch.equal(count_sketch(x, 64, 3), count_sketch(x, 64, 4))


def test_a_rotation_of_lora_s_factors_changes_gist_not_and_adam_does():
    """`(R A, B R^T)` is the same model; the gradients of the factors turn with it."""
    g = torch.Generator().manual_seed(0)
    a, b = rows(3, 8, seed=3), rows(6, 3, seed=4)
    whole = torch.randn(12, 6, 8, generator=g, dtype=torch.float64)  # gradients of the product B A

    def factors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([(b.T @ whole).flatten(1), (whole @ a.T).flatten(1)], 1)

    r = torch.linalg.qr(rows(3, 3, seed=5))[0]
    scores, adam = [], []
    for grads in (factors(a, b), factors(r @ a, b @ r.T)):
        u, s = subspace(grads[:4] @ grads[:4].T, 3)
        scores.append(gist_scores(grads[4:] @ basis(grads[:4], u, s), u * s))
        moments = torch.ones(grads.shape[1], dtype=torch.float64)
        step = adam_direction(grads[4:], 0 * moments, 0.1 * moments + grads[0].square())
        adam.append(less_scores(step, grads[:4], torch.zeros(4, dtype=torch.long)))
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-10)
    assert (adam[0] - adam[1]).abs().max() > 1e-3


def test_targets_that_span_nothing():
    with pytest.raises(ValueError, match="the target's gradients are all zero"):
        subspace(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="not finite"):
        subspace(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="`rank` must be 1 or more, received 0"):
        subspace(torch.eye(2), 0)
