# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""D²-Align's equations, and what happens to the prompt without a bound."""

import pytest
import torch
import torch.nn.functional as F

from alignext.functional.d2_align import fit_direction, guided_text, prompt_margin, relative_text


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def clip_like(n: int = 200, d: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures and texts in two cones, each pair near to each other within them, as of a dual encoder."""
    common = unit(2, d, seed=1)
    of_pair, noise = unit(n, d, seed=2), unit(2, n, d, seed=3)
    images = F.normalize(common[0] + 0.6 * of_pair + 0.6 * noise[0], dim=-1)
    texts = F.normalize(common[1] + 0.6 * of_pair + 0.6 * noise[1], dim=-1)
    return images, texts, torch.arange(n)


e, b = unit(5, 8), 0.4 * unit(8, seed=9)


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 1.5, 3.0])
def test_no_direction_leaves_the_text_as_it_is(w):
    torch.testing.assert_close(guided_text(e, torch.zeros(8, dtype=e.dtype), w), e, atol=1e-12, rtol=0)


def test_guidance_of_one_takes_one_side_and_a_half_the_mean():
    plus, minus = F.normalize(e + b, dim=-1), F.normalize(e - b, dim=-1)
    torch.testing.assert_close(guided_text(e, b, 1.0), plus, atol=1e-12, rtol=0)
    torch.testing.assert_close(guided_text(e, b, 0.0), minus, atol=1e-12, rtol=0)
    torch.testing.assert_close(guided_text(e, b, 0.5), (plus + minus) / 2, atol=1e-12, rtol=0)


def test_a_small_direction_moves_the_text_orthogonally_and_one_and_a_half_twice_as_far():
    small = 1e-5 * b
    expected = 1e-5 * (b - (e @ b)[:, None] * e)
    for w, times in ((1.0, 1), (1.5, 2), (0.5, 0)):
        torch.testing.assert_close(guided_text(e, small, w) - e, times * expected, atol=1e-9, rtol=0)


def test_the_led_text_is_not_normalised_again():
    """By hand: e = (1, 0), b = (0, 1), e+- = (1, +-1) / sqrt 2: with w = 1.5 it is (1, 2) / sqrt 2."""
    found = guided_text(
        torch.tensor([[1.0, 0]], dtype=torch.float64), torch.tensor([0.0, 1], dtype=torch.float64), 1.5
    )
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 2**0.5]], dtype=torch.float64))
    assert found.norm() == pytest.approx(2.5**0.5)


def test_the_gradient_is_that_of_finite_differences():
    image, at = unit(5, 8, seed=4), b.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: (image * guided_text(e, b, 1.5)).sum(), at)


def test_relative_text_by_hand():
    torch.testing.assert_close(relative_text(e, e, 0.25), 0.25 * e)
    torch.testing.assert_close(relative_text(e, -e, 0.0), 2 * e)


def test_the_margin_is_the_expectation_of_shuffled_prompts():
    images, texts = unit(6, 8, seed=5), unit(3, 8, seed=6)
    index = torch.tensor([0, 1, 2, 2, 0, 1])
    scores = images @ texts.T
    by_hand = [scores[i, k] - scores[i, [j for j in range(3) if j != k]].mean() for i, k in enumerate(index.tolist())]
    torch.testing.assert_close(prompt_margin(images, texts, index), torch.stack(by_hand).mean())


def test_without_a_bound_the_reward_forgets_the_prompt_and_the_bound_stops_it():
    """The trap of stage 1: the reward grows and grows, and what it says of the prompt goes to nothing."""
    images, texts, index = clip_like()
    free = fit_direction(images, texts, index, max_norm=None, keep_margin=None, learning_rate=1e-2, num_steps=1000)
    assert free.reward > 3 * free.plain_reward and free.margin < 0.3 * free.plain_margin
    margins = [row["margin"] for row in free.log[::5]]
    assert margins == sorted(margins, reverse=True)  # it only falls
    assert free.log[-1]["norm"] > 1

    held = fit_direction(images, texts, index, max_norm=0.3, keep_margin=None, learning_rate=1e-2, num_steps=300)
    assert held.margin > 0.8 * held.plain_margin and held.reward > held.plain_reward
    assert max(row["norm"] for row in held.log) <= 0.3 + 1e-12

    stopped = fit_direction(images, texts, index, max_norm=None, keep_margin=0.8, learning_rate=1e-2, num_steps=300)
    assert stopped.stopped and stopped.steps < 300
    assert stopped.margin >= 0.8 * stopped.plain_margin > stopped.log[-1]["margin"]
    kept = prompt_margin(images, guided_text(texts, stopped.direction, 1.5), index)
    assert kept.item() == pytest.approx(stopped.margin)


def test_the_same_seed_finds_the_same_direction():
    images, texts, index = clip_like(n=40)
    one, same, other = (fit_direction(images, texts, index, num_steps=20, batch_size=8, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.direction, same.direction) and not torch.equal(one.direction, other.direction)


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"max_norm": 0.0}, "`max_norm` must be more than 0, or None, received 0.0"),
        ({"keep_margin": 1.5}, "`keep_margin` must be in"),
        ({"num_steps": 0}, "`num_steps`, `batch_size` and `check_every` must be 1 or more, received 0"),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        fit_direction(*clip_like(n=4), **settings)


def test_prompts_that_the_reward_does_not_tell_apart_are_refused():
    images, texts, index = clip_like(n=20)
    with pytest.raises(ValueError, match="does not tell the prompts apart"):
        fit_direction(-images, texts, index)
    with pytest.raises(ValueError, match="two different prompts or more, received 1"):
        fit_direction(images, texts[:1], torch.zeros(20, dtype=torch.long))
