# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""A clean sample from one network call at any level."""

import pytest
import torch

from alignext.functional.direct_align import direct_align
from alignext.functional.predictions import add_noise, clean_and_noise, prediction_target


def normal(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow(s: float) -> tuple[float, float]:
    return 1 - s, s


def diffusion(s: float) -> tuple[float, float]:
    return (1 - s**2) ** 0.5, s


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("s", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("ds", [0.02, 0.1])
def test_an_exact_network_gives_back_the_clean_sample(kind: str, s: float, ds: float) -> None:
    level = flow if kind == "flow_prediction" else diffusion
    x0, noise = normal(0), normal(1)
    x = add_noise(x0, noise, *level(s))
    exact = prediction_target(x0, noise, *level(s), kind)
    assert (direct_align(exact, x, noise, level(s), level(s - ds), kind) - x0).abs().max() < 1e-12


def test_of_flows_it_is_the_published_formula() -> None:
    x0, noise, v = normal(0), normal(1), normal(2)
    s, ds = 0.7, 0.1
    x = add_noise(x0, noise, *flow(s))
    found = direct_align(v, x, noise, flow(s), flow(s - ds), "flow_prediction")
    assert (found - (x - ds * v - (s - ds) * noise) / (1 - s + ds)).abs().max() < 1e-12
    # The network's part in it is ds / (1 - s + ds): an error of 1 in v moves the result by that.
    other = direct_align(v + 1, x, noise, flow(s), flow(s - ds), "flow_prediction")
    assert torch.allclose(found - other, torch.full_like(found, ds / (1 - s + ds)), atol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction"])
def test_all_the_way_down_it_is_the_one_step_estimate(kind: str) -> None:
    level = flow if kind == "flow_prediction" else diffusion
    x, noise, prediction = normal(0), normal(1), normal(2)
    found = direct_align(prediction, x, noise, level(0.6), level(0.0), kind)
    assert (found - clean_and_noise(prediction, x, *level(0.6), kind)[0]).abs().max() < 1e-12
