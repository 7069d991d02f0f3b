# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The one place where a reward is called: what it is given, what it may return, and how errors name it."""

import functools
import math
import sys

import pytest
import torch

from alignext.logs import warn_once
from alignext.rewards import JudgeReward, WeightedReward, brightness
from alignext.rewards.by_name import function_of
from alignext.rewards.protocol import CheckedReward, RewardError, as_prompts, by_prompt

from .test_rewards import IMAGES, TEXTS, VIDEOS, clip  # noqa: F401 a fixture


def test_one_text_is_that_of_all_samples(clip):  # noqa: F811
    seen = []

    def watched(images, prompts):
        seen.append(prompts)
        return torch.zeros(len(images))

    for images in (IMAGES, VIDEOS):
        n = len(images)
        assert torch.equal(clip(images, "a fox"), clip(images, ["a fox"] * n))
        assert torch.equal(clip(images, ("a fox",) * n), clip(images, ["a fox"] * n))
        WeightedReward({"watched": watched})(images, "a fox")
        assert seen[-1] == ["a fox"] * n
    judge, drawings = JudgeReward("style"), torch.rand(2, 3, 64, 64)
    assert torch.equal(judge(drawings, "a fox, ink style"), judge(drawings, ["a fox, ink style"] * 2))
    by_class = WeightedReward({"a": brightness}, {}, {"fox": {"a": 1.0}}, prompt_class=lambda text: text.split()[-1])
    assert torch.equal(by_class(IMAGES, "a fox"), brightness(IMAGES))


@pytest.mark.parametrize("texts", [["a fox"], TEXTS[:2], [*TEXTS, "a cat"], [None] * 3])
def test_another_number_of_texts_is_refused(clip, texts):  # noqa: F811
    for reward in (clip, JudgeReward("style"), WeightedReward({"clip": clip})):
        with pytest.raises(ValueError, match=f"one for each of 3 samples, received {len(texts)}"):
            reward(IMAGES, texts)
    assert as_prompts(None, 3) is None


def test_an_exception_names_the_function_and_the_samples():
    def fragile(images, prompts):
        return [{"a fox": 1.0}[prompt] for prompt in prompts]

    for function in (fragile, functools.partial(fragile)):
        with pytest.raises(RewardError) as caught:
            CheckedReward(function)(IMAGES, TEXTS, first=4)
        text = str(caught.value)
        assert "`fragile` (test_protocol.py, line " in text and "raised KeyError for samples 4 to 6" in text
        assert "('a fox', 'a dog')" in text and isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(RewardError, match=r"raised KeyError for sample 0 \('a dog'\)"):
        CheckedReward(fragile)(IMAGES[:1], ["a dog"])


def test_an_error_is_named_once_however_deep_it_is():
    def fragile(images, prompts):
        raise ZeroDivisionError

    with pytest.raises(RewardError) as caught:
        CheckedReward(WeightedReward({"outer": WeightedReward({"inner": fragile})}))(IMAGES, TEXTS)
    assert str(caught.value).count("raised") == 1 and "`fragile`" in str(caught.value)


def test_memory_that_is_out_and_interrupts_stay_what_they_are():
    for error in (torch.OutOfMemoryError, KeyboardInterrupt):

        def failing(images, prompts, error=error):
            raise error

        with pytest.raises(error):
            CheckedReward(failing)(IMAGES, TEXTS)


@pytest.mark.parametrize(
    "returned, text",
    [
        (None, "returned None: it must return one number per sample"),
        ([1.0, None, 2.0], "returned None for sample 11"),
        ([1.0], r"must return 3 real numbers, one per sample, received shape \(1,\)"),
        (["a", "b", "c"], "must return numbers, received"),
        ([1.0, math.inf, 0.0], r"returned \+inf"),
        (torch.zeros(3, dtype=torch.complex64), "must return 3 real numbers"),
    ],
)
def test_what_is_no_reward_is_named(returned, text):
    def odd(images, prompts):
        return returned

    with pytest.raises(RewardError, match=rf"`odd` \(test_protocol.py, line \d+\) {text}"):
        CheckedReward(odd)(IMAGES, TEXTS, first=10)
    with pytest.raises(RewardError, match="`str` raised"):
        CheckedReward(str)(IMAGES, TEXTS)
    with pytest.raises(ValueError, match="`reward_fn` must be callable"):
        CheckedReward("brightness")


def test_nan_is_said_to_be_nan_and_ranks_last(monkeypatch):
    said = []
    monkeypatch.setattr("alignext.rewards.protocol.logger.warning", said.append)
    warn_once.cache_clear()
    reward = CheckedReward(lambda images: [1.0, math.nan, -math.inf])
    for _ in range(2):
        assert reward(IMAGES).tolist() == [1.0, -math.inf, -math.inf]
    assert len(said) == 1 and "returned NaN or -inf for some samples" in said[0]
    rewards = torch.tensor([1.0, -math.inf, -math.inf, -math.inf])
    with pytest.raises(RewardError, match=r"no finite number .* all are NaN or -inf for prompt 1 of 2"):
        by_prompt(rewards, 2)


def test_gradients_pass_and_a_checked_reward_is_not_checked_again():
    reward = CheckedReward(brightness)
    images = IMAGES.clone().requires_grad_()
    reward(images, TEXTS).sum().backward()
    assert images.grad is not None and CheckedReward.of(reward) is reward


def test_functions_get_the_arguments_that_they_take():
    def modest(images):
        return images.mean((1, 2, 3))

    def curious(images, prompts, latents=None, **kwargs):
        assert latents is IMAGES and kwargs == {"is_final": True}
        return [0.0] * len(images)

    told = {"latents": IMAGES, "is_final": True}
    assert torch.equal(CheckedReward(modest)(IMAGES, **told), brightness(IMAGES))
    CheckedReward(curious)(IMAGES, TEXTS, **told)
    with pytest.raises(RewardError, match=r"`modest` .* takes \(images\) and is called with 2 argument"):
        CheckedReward(modest)(IMAGES, TEXTS)


def test_members_get_the_columns_of_their_own_rows() -> None:
    seen = []

    def target(images, prompts, target, latents, names, scale):
        seen.append((prompts, target, latents.tolist(), names, scale))
        return torch.tensor([float(value) for value in target])

    reward = WeightedReward(
        {"bright": brightness, "target": target},
        {"bright": 0.0},
        {"two": {"target": 1.0}},
        prompt_class=lambda text: "two" if "two" in text else "other",
    )
    columns = {"target": [10, 20, 30, 40], "latents": torch.arange(4), "names": ("a", "b", "c", "d"), "scale": [1, 2]}
    found = reward(torch.zeros(4, 3, 4, 4), ["a fox", "two owls", "an owl", "two foxes"], **columns)
    assert found.tolist() == [0.0, 20.0, 0.0, 40.0]
    assert seen == [(["two owls", "two foxes"], [20, 40], [1, 3], ["b", "d"], [1, 2])]


def test_what_a_member_cannot_score_is_last_also_as_a_penalty() -> None:
    reward = WeightedReward({"bad": lambda images, prompts: torch.tensor([math.nan, 0.5])}, {"bad": -1.0})
    assert reward(torch.zeros(2, 3, 4, 4), ["a", "b"]).tolist() == [-math.inf, -0.5]


def test_files_of_rewards_load_as_python_would(tmp_path, monkeypatch) -> None:
    """With dataclasses, files beside them and names of installed modules."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_it.py").write_text("half = 0.5")
    (tmp_path / "torch.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport beside_it\n"
        "@dataclass\nclass C:\n    x: int\n"
        "def f(images, prompts):\n    return [beside_it.half * C(2).x] * len(images)\n"
    )
    loaded = dict(sys.modules)
    assert function_of(f"{tmp_path / 'torch.py'}:f", name="--reward")([0, 0], ["a", "b"]) == [1.0, 1.0]
    assert {name for name in sys.modules if name not in loaded} == {"beside_it"} and sys.modules["torch"] is torch
    del sys.modules["beside_it"]
