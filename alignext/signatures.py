# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Signatures of pipelines that are a mixin over a stock class, and arguments that are in none."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any


# Stock calls take these through their `**kwargs`.
_OLD_CALLBACKS = ("callback", "callback_steps")


def show_stock_arguments(cls: Any, mixin: Any, levers: Any = None) -> None:
    """
    Give `cls` the `__call__` of `mixin`, with the stock pipeline's arguments before the mixin's own in its signature:
    `inspect.signature` and `help` show both. A misspelt argument is refused, also where the stock class swallows it.

    Args:
        cls (`type`): A pipeline class, `mixin` before a stock class.
        mixin (`type`): Its `__call__` takes `*args`, its own arguments by keyword, and `**kwargs`.
        levers (`type`, *optional*): A dataclass whose fields are arguments of `mixin` as well, taken in `**kwargs`.
    """
    ours = inspect.signature(mixin.__call__).parameters.values()
    stock = inspect.signature(super(mixin, cls).__call__).parameters.values()
    shown = [p for p in stock if p.kind is not p.VAR_KEYWORD]
    shown += [*_keywords(levers), *(p for p in ours if p.kind is p.KEYWORD_ONLY)]
    known = [p.name for p in shown]

    @functools.wraps(mixin.__call__)
    def call(self, *args, **kwargs):
        check_names(kwargs, known, f"{type(self).__name__}.__call__")
        return mixin.__call__(self, *args, **kwargs)

    call.__signature__ = inspect.Signature(shown)  # ty: ignore[missing-attribute]
    call.__doc__ = _documented(mixin.__call__, levers)
    cls.__call__ = call


def takes_levers(levers: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Decorates a function with `**levers`: `inspect.signature` and `help` show the fields of the dataclass `levers` in
    their place, and a misspelt one is refused.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function).parameters.values()
        shown = [p for p in own if p.kind is not p.VAR_KEYWORD] + _keywords(levers)
        known, name = [p.name for p in shown], getattr(function, "__name__", "call")

        @functools.wraps(function)
        def call(*args, **kwargs):
            check_names(kwargs, known, name)
            return function(*args, **kwargs)

        call.__signature__ = inspect.Signature(shown)  # ty: ignore[missing-attribute]
        call.__doc__ = _documented(function, levers)
        return call

    return decorate


def check_names(names: Iterable[str], known: Iterable[str], function: str) -> None:
    """
    Refuse names that are no argument and look like one. Others are left to the function, which may take more.

    Args:
        names (`Iterable[str]`): As they were passed.
        known (`Iterable[str]`): The arguments that there are.
        function (`str`): Whose arguments they are, for the message.

    Raises:
        TypeError: With the nearest right names.
    """
    known = list(known)
    for name in names:
        if name not in known and name not in _OLD_CALLBACKS and (near := _nearest(name, known)):
            raise TypeError(f"`{function}` has no argument `{name}`. Use {' or '.join(f'`{x}`' for x in near)}.")


def nearest(word: str, known: Iterable[str]) -> str:
    """
    A hint for messages on a word that nothing knows.

    Args:
        word (`str`): As it was written; dashes and underscores are one.
        known (`Iterable[str]`): What there is.

    Returns:
        `str`: `. Did you mean ...?` where something known is like it, else nothing.
    """
    found = get_close_matches(word.replace("_", "-"), list(names := {k.replace("_", "-"): k for k in known}), 1)
    return f". Did you mean {names[found[0]]}?" if found else ""


def _nearest(name: str, known: list[str]) -> list[str]:
    """Names that are spelt almost like this one, or else contain its words."""
    words = set(name.split("_"))
    return get_close_matches(name, known, n=1, cutoff=0.8) or [x for x in known if words <= set(x.split("_"))][:3]


def _keywords(levers: Any) -> list[inspect.Parameter]:
    if levers is None:
        return []
    return [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in fields(levers)]


def _documented(function: Callable[..., Any], levers: Any) -> str | None:
    """The docstring of a function; what `levers` says of its fields stands where it told of `**kwargs`."""
    if levers is None:
        return function.__doc__
    *_, last = inspect.signature(function).parameters
    lines = inspect.cleandoc(function.__doc__ or "").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"    **{last}"))
    told = inspect.cleandoc(levers.__doc__).partition("Args:\n")[2].partition("\n\n")[0]
    return "\n".join([*lines[:at], told, *lines[at + 1 :]])
