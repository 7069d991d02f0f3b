# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Rewards of texts: what a function returns, and how its mistakes are named."""

import asyncio
import functools

import pytest
import torch

from alignext.rewards.texts import TextRewards, checked_reward, function_name, reward_numbers


def length(completions: list, scale: float = 1.0, **columns: object) -> list[float]:
    return [scale * len(text) for text in completions]


class Judge:
    def __call__(self, completions: list, **columns: object) -> torch.Tensor:
        return torch.tensor([float(len(text)) for text in completions])


COLUMNS = {"prompts": ["a", "b", "c"], "completions": ["x", "", "xyz"], "level": [1, 2, 0]}


def test_right_functions_are_what_they_were() -> None:
    assert checked_reward(length)(**COLUMNS) == [1.0, 0.0, 3.0]
    assert checked_reward(Judge())(**COLUMNS) == [1.0, 0.0, 3.0]
    assert checked_reward(functools.partial(length, scale=2.0))(**COLUMNS) == [2.0, 0.0, 6.0]
    names = [checked_reward(f).__name__ for f in (length, Judge(), functools.partial(length, scale=2.0))]
    assert names == ["length", "Judge", "length"] == [function_name(f) for f in (length, Judge(), length)]

    async def later(completions: list, **columns: object) -> list[float | None]:
        return [None, *length(completions[1:])]

    assert asyncio.run(checked_reward(later)(**COLUMNS)) == [None, 0.0, 3.0]


def test_exceptions_name_function_line_and_row() -> None:
    def ratio(completions: list, level: list, **columns: object) -> list[float]:
        return [len(text) / number for text, number in zip(completions, level, strict=True)]

    with pytest.raises(
        ValueError, match=r"'ratio' \(test_texts.py, line \d+\) raised ZeroDivisionError: .*row 2.*'xyz'"
    ):
        checked_reward(ratio)(**COLUMNS)

    async def later(completions: list, level: list, **columns: object) -> list[float]:
        return [1 / number for number in level]

    with pytest.raises(ValueError, match=r"'later' .*ZeroDivisionError.* for 3 rows"):
        asyncio.run(checked_reward(later)(**COLUMNS))

    def together(completions: list, **columns: object) -> list[float]:
        return [1.0 / (3 - len(completions))]

    with pytest.raises(ValueError, match=r"'together' .* for 3 rows"):  # no row fails by itself
        checked_reward(together)(**COLUMNS)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (None, r"list of 3 numbers, received None"),
        (1.0, r"list of 3 numbers, received 1.0 \(float\)"),
        ([1.0, 2.0], "3 numbers, one per completion, received 2"),
        ([1.0, "good", 2.0], "received 'good' in row 1"),
        ([1.0, [2.0, 3.0], 2.0], r"received \[2.0, 3.0\] in row 1"),
    ],
)
def test_wrong_values_are_named(values: object, match: str) -> None:
    with pytest.raises(ValueError, match=f"'length' must return .*{match}"):
        reward_numbers(length, values, 3)


def test_equal_rows_are_scored_once_and_lists_of_floats_are_not_rounded() -> None:
    seen = []

    def reward(completions: list, level: list, **columns: object) -> list[float]:
        seen.append(len(completions))
        return [0.1 * len(text) + number for text, number in zip(completions, level, strict=True)]

    rewards = TextRewards(reward, remember=True)
    rows = ["p", "p", "p", "q"], ["ab", "ab", "ab", "ab"], [[1, 2], [1, 2], [1, 2], [1, 2]]
    found = rewards(*rows, level=[1, 1, 2, 1])
    assert found.tolist() == [0.2 + 1, 0.2 + 1, 0.2 + 2, 0.2 + 1] and found.dtype == torch.float64
    assert torch.equal(rewards(*rows, level=[1, 1, 2, 1]), found)
    assert seen == [3] and rewards.calls == 3  # another column or prompt is another row
