# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Search over initial noise."""

import pytest
import torch

from alignext.search.noise_search import RandomNoiseSearch, ZeroOrderNoiseSearch, search_noise


def seeded():
    return torch.Generator().manual_seed(0)


def test_random_search_is_the_best_of_its_pools():
    tried = []

    def evaluate(noise):
        tried.append(noise)
        return 2 * noise, noise.sum(1)

    sample, reward, history = search_noise(RandomNoiseSearch(rounds=3), evaluate, (4,), seeded())
    assert [len(noise) for noise in tried] == [2, 4, 8] == [len(entry["rewards"]) for entry in history]
    everything = torch.cat(tried)
    assert reward == everything.sum(1).max()
    assert torch.equal(sample, 2 * everything[everything.sum(1).argmax()])


def test_zero_order_search_climbs_and_starts_again_when_stuck():
    centers, rounds = [], []

    def evaluate(noise):
        rounds.append(noise)
        return noise, -(noise - 1).square().sum(1)

    method = ZeroOrderNoiseSearch(rounds=30, neighbors=3, threshold=0.9)
    _, reward, history = search_noise(method, evaluate, (6,), seeded())
    assert reward == max(entry["rewards"].max() for entry in history)
    sizes = [len(noise) for noise in rounds]
    assert sizes[0] == 4 and set(sizes) == {3, 4}
    best = -torch.inf
    for i, (size, entry) in enumerate(zip(sizes, history, strict=True)):
        stuck = i > 0 and size == 4
        if stuck:  # the round before did not improve
            assert history[i - 1]["rewards"].max() <= centers[-1]
        best = entry["rewards"].max() if size == 4 else max(best, entry["rewards"].max())
        centers.append(best)
    first = torch.cosine_similarity(rounds[1], rounds[0][history[0]["rewards"].argmax()][None])
    torch.testing.assert_close(first, torch.full((3,), 0.9))


@pytest.mark.parametrize(
    "make",
    [lambda: RandomNoiseSearch(rounds=0), lambda: ZeroOrderNoiseSearch(neighbors=0)],
    ids=["rounds", "neighbors"],
)
def test_bad_numbers(make):
    with pytest.raises(ValueError, match="at least 1, received 0"):
        make()
    with pytest.raises(ValueError, match="`threshold`"):
        ZeroOrderNoiseSearch(threshold=1.0)
