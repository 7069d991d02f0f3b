# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The protocol of rewards of texts, which is TRL's: `reward(prompts=..., completions=..., **columns)`, one number per
completion, larger is better. Functions may be asynchronous; a sample that cannot be scored gets `None`.
"""

import functools
import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from alignext.rewards.process import Prompt, as_reward


logger = logging.get_logger(__name__)


def function_name(function: Any) -> str:
    """The name of a function, of the one inside a `functools.partial`, or of the class of a callable object."""
    function = _unwrapped(function)
    return getattr(function, "__name__", type(function).__name__)


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def checked_reward(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    The same reward function, whose mistakes are named: an exception, a wrong number of rewards or what is no number
    becomes a `ValueError` with the function, the row and its line; NaN, which counts as `None`, is reported once.

    Args:
        function (`Callable`): A reward function in the form of TRL, synchronous or asynchronous.

    Returns:
        `Callable`: Takes what `function` takes and returns `list[float | None]`.
    """
    reported: list[str] = []

    def checked(values: Any, columns: dict[str, Any]) -> list[float | None]:
        numbers = reward_numbers(function, values, len(columns["completions"]))
        wrong = [i for i, value in enumerate(numbers) if value is not None and math.isnan(value)]
        if wrong and not reported:
            reported.append("NaN")
            logger.warning(
                f"The reward function {function_name(function)!r} returned NaN for {_shown(columns, wrong[0])}: such "
                "samples are left out, as those with None are."
            )
        return numbers

    unwrapped = _unwrapped(function)
    if inspect.iscoroutinefunction(unwrapped) or inspect.iscoroutinefunction(type(unwrapped).__call__):

        async def reward(**columns: Any) -> list[float | None]:
            try:
                values = await function(**columns)
            except Exception as error:
                raise _failed(function, error, columns, None) from error
            return checked(values, columns)

    else:

        def reward(**columns: Any) -> list[float | None]:
            try:
                values = function(**columns)
            except Exception as error:
                raise _failed(function, error, columns, _culprit(function, error, columns)) from error
            return checked(values, columns)

    reward.__name__ = function_name(function)
    return reward


def reward_numbers(function: Any, values: Any, count: int) -> list[float | None]:
    """
    What a reward function returned for `count` completions, as numbers or `None`.

    Raises:
        ValueError: It is no list of `count` numbers.
    """
    name = f"The reward function {function_name(function)!r}"
    try:
        values = list(values)
    except TypeError:
        raise ValueError(
            f"{name} must return a list of {count} numbers, received {values!r} ({type(values).__name__})."
        ) from None
    if len(values) != count:
        raise ValueError(f"{name} must return {count} numbers, one per completion, received {len(values)}.")
    numbers: list[float | None] = []
    for i, value in enumerate(values):
        try:
            numbers.append(None if value is None else float(value))
        except (TypeError, ValueError):
            raise ValueError(f"{name} must return numbers or None, received {value!r} in row {i}.") from None
    return numbers


def _culprit(function: Callable[..., Any], error: Exception, columns: dict[str, Any]) -> int | None:
    """The first row that raises such an error by itself."""
    for i in range(len(columns["completions"])):
        try:
            function(**_row(columns, i))
        except type(error):
            return i
        except Exception:
            return None
    return None


def _row(columns: dict[str, Any], i: int) -> dict[str, Any]:
    """The columns of one row; what is no column is passed on as it is."""
    count = len(columns["completions"])
    return {
        name: [value[i]] if isinstance(value, list) and len(value) == count else value
        for name, value in columns.items()
    }


def _shown(columns: dict[str, Any], i: int) -> str:
    prompt, completion = columns["prompts"][i], columns["completions"][i]
    return f"row {i} (prompt {str(prompt)[:200]!r}, completion {str(completion)[:200]!r})"


def _failed(function: Callable[..., Any], error: Exception, columns: dict[str, Any], row: int | None) -> ValueError:
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without our own
    where = f" ({Path(frames[0].filename).name}, line {frames[0].lineno})" if frames else ""
    of = f"{len(columns['completions'])} rows" if row is None else _shown(columns, row)
    return ValueError(
        f"The reward function {function_name(function)!r}{where} raised {type(error).__name__}: {error}, for {of}. "
        "Mend it, or let it return None for what it cannot score."
    )


class TextRewards:
    """
    One reward of texts made of several: `sum_r v_r s_r`, of functions and reward models.

    Args:
        reward_fn (`Callable`, `PreTrainedModel`, `str` or a list of them):
            As [`guided_generate`] takes them. A function gets those of `prompts`, `completions`, `completion_ids` and
            further columns that it has arguments for, and returns `n` numbers or shape `(n, R)`.
        weights (sequence of `float`, *optional*): `v`; all 1 if not given.
        device (`torch.device`, *optional*): Of reward models that are loaded here.
        remember (`bool`, *optional*, defaults to `False`):
            Score equal rows once: the same prompt with the same tokens and columns. For rewards that are functions of
            them.

    Attributes:
        calls (`int`): Rows that were scored so far.
    """

    def __init__(self, reward_fn: Any, weights: Any = None, device: Any = None, *, remember: bool = False) -> None:
        given = reward_fn if isinstance(reward_fn, (list, tuple)) else [reward_fn]
        if not given:
            raise ValueError("`reward_fn` must have a reward, received an empty list.")
        self.functions = [as_reward(function, device) for function in given]
        self.weights, self.seen, self.calls = weights, {} if remember else None, 0

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[Any],
    ) -> torch.Tensor:
        """
        The scores of texts.

        Args:
            prompts (`Sequence` of `str` or `list[dict]`): Texts or conversations.
            completions (`Sequence[str]`): Texts; behind a conversation functions get them as the assistant's message.
            completion_ids (`Sequence[Sequence[int]]`): Their tokens.
            **columns: Further columns.

        Returns:
            `torch.Tensor` of shape `(n,)`, float64, on the CPU.

        Raises:
            ValueError: A function fails, or returns None, NaN or not a number for each text.
        """
        if self.seen is None:
            return self._scored(prompts, completions, completion_ids, columns)
        of_row = zip(*columns.values(), strict=True) if columns else [()] * len(prompts)
        keys = [
            (str(prompt), tuple(ids), str(more))
            for prompt, ids, more in zip(prompts, completion_ids, of_row, strict=True)
        ]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        new = [i for key, i in sorted(first.items(), key=lambda item: item[1]) if key not in self.seen]
        if new:
            picked = ([column[i] for i in new] for column in (prompts, completions, completion_ids))
            values = self._scored(*picked, {name: [value[i] for i in new] for name, value in columns.items()})
            self.seen |= dict(zip((keys[i] for i in new), values.tolist(), strict=True))
        return torch.tensor([self.seen[key] for key in keys], dtype=torch.float64)

    def _scored(self, prompts: Any, completions: Any, completion_ids: Any, columns: dict[str, Any]) -> torch.Tensor:
        self.calls += len(prompts)
        said: list[Any] = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        rows = {"prompts": list(prompts), "completions": said, "completion_ids": list(completion_ids)} | columns
        values = torch.cat([_column(function, rows) for function in self.functions], dim=1)
        weights = torch.ones(values.shape[1]) if self.weights is None else torch.as_tensor(self.weights)
        if weights.shape != values.shape[1:]:
            raise ValueError(
                f"`reward_weights` must have one number for each of {values.shape[1]} rewards, received the shape "
                f"{tuple(weights.shape)}."
            )
        return values @ weights.double().cpu()


def _column(function: Callable[..., Any], rows: dict[str, Any]) -> torch.Tensor:
    """The values of a reward, as float64 of shape `(n, R)` on the CPU."""
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        taken = {name: value for name, value in rows.items() if name in parameters}
    else:
        taken = rows
    try:
        values = function(**taken)
    except Exception as error:
        raise _failed(function, error, rows, None) from error
    count, name = len(rows["completions"]), f"The reward function {function_name(function)!r}"
    if isinstance(values, (list, tuple)) and any(value is None for value in values):
        raise ValueError(f"{name} must return a number, received None for {_shown(rows, list(values).index(None))}.")
    try:
        # A list of floats is float64; `as_tensor` alone would round it.
        dtype = torch.float64 if isinstance(values, (list, tuple)) else None
        column = torch.as_tensor(values, dtype=dtype).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must return {count} numbers, received {values!r}.") from error
    if column.ndim not in (1, 2) or len(column) != count:
        raise ValueError(
            f"{name} was given {count} texts and returned the shape {tuple(column.shape)}. Expected ({count},), "
            f"or ({count}, R) for R rewards."
        )
    column = column.reshape(count, -1)
    wrong = column.isnan().any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name} returned NaN for {_shown(rows, row)}, which can be compared with nothing. Return a number."
        )
    return column
