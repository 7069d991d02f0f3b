# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""The protocol of rewards of texts, which is TRL's: `reward(prompts=..., completions=..., **columns)`, one number per
completion, larger is better. Functions may be asynchronous; a sample that cannot be scored gets `None`.
"""

import functools
import inspect
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import logging


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
