# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Measures of diversity: copies, orthogonal features, brute force over pairs."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from alignext.functional.diversity import (
    bootstrap,
    duplicate_rate,
    pairwise_distance,
    perceptual_hash,
    tonal_variance,
    tones,
    vendi_score,
)


IMAGES = torch.rand(2, 4, 3, 20, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
COPIES = IMAGES[:, :1].expand(2, 4, 3, 20, 28)


def test_copies_have_no_diversity():
    e = torch.rand(2, 1, 8, dtype=torch.float64).expand(2, 4, 8)
    torch.testing.assert_close(pairwise_distance(e), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(vendi_score(e), torch.ones(2), atol=1e-6, rtol=0)
    assert tonal_variance(COPIES).abs().max() < 1e-12
    assert duplicate_rate(perceptual_hash(COPIES), 0).tolist() == [1, 1]


def test_orthogonal_features_have_all():
    e = torch.eye(5, dtype=torch.float64)[None] * 3
    torch.testing.assert_close(vendi_score(e), torch.tensor([5.0]))
    torch.testing.assert_close(pairwise_distance(e), torch.ones(1, dtype=torch.float64))
    halves = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0)[None]  # two and two copies
    torch.testing.assert_close(vendi_score(halves), torch.tensor([2.0]))


def test_pairs_by_brute_force():
    e = torch.randn(3, 5, 7, dtype=torch.float64)
    pairs = list(itertools.combinations(range(5), 2))
    expected = torch.stack([1 - F.cosine_similarity(e[:, i], e[:, j], dim=-1) for i, j in pairs]).mean(0)
    torch.testing.assert_close(pairwise_distance(e), expected)
    bits = perceptual_hash(IMAGES)
    near = [[bool((row[i] != row[j]).sum() <= 28) for i, j in itertools.combinations(range(4), 2)] for row in bits]
    assert duplicate_rate(bits, 28).tolist() == pytest.approx([sum(row) / 6 for row in near])
    assert 0 < sum(map(sum, near)) < 12  # 28 bits tell some of these from others


def test_tones_by_hand():
    red, grey = torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.5)
    red[0] = 1
    torch.testing.assert_close(tones(red), torch.tensor([0.299, 0, 1, 1]))
    torch.testing.assert_close(tones(grey), torch.tensor([0.5, 0, 0, 0]), atol=1e-7, rtol=0)
    half = torch.cat([torch.zeros(3, 4, 2), torch.ones(3, 4, 2)], -1)
    torch.testing.assert_close(tones(half), torch.tensor([0.5, 0.5, 0, 0]))
    torch.testing.assert_close(
        tonal_variance(torch.stack([red, grey])[None]), tones(torch.stack([red, grey])).std(0)[None]
    )


def test_a_hash_sees_the_layout_and_neither_light_nor_size():
    drawing = torch.ones(3, 64, 64)
    drawing[:, 10:30, 5:40] = 0.2
    found = perceptual_hash(drawing)
    assert found.shape == (64,)
    for same in (drawing * 0.5 + 0.3, F.interpolate(drawing[None], size=(128, 128), mode="bilinear")[0]):
        assert (perceptual_hash(same) != found).sum() <= 4
    assert (perceptual_hash(drawing.flip(-1)) != found).sum() > 8
    assert torch.equal(perceptual_hash(torch.ones(3, 64, 64)), perceptual_hash(torch.ones(3, 32, 48)))


def test_a_bootstrap_has_the_width_of_the_standard_error():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
    mean, low, high = bootstrap(values)
    assert mean == pytest.approx(values.mean().item()) and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.1)
    assert bootstrap(values) == (mean, low, high)  # the same draws
    assert bootstrap(torch.ones(5)) == (1, 1, 1)
