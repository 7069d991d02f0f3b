# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Signatures of pipelines that are a mixin over a stock class."""

import functools
import inspect
from typing import Any


def show_stock_arguments(cls: Any, mixin: Any) -> None:
    """
    Give `cls` the `__call__` of `mixin`, with the stock pipeline's arguments before the mixin's own in its signature:
    `inspect.signature` and `help` show both.

    Args:
        cls (`type`): A pipeline class, `mixin` before a stock class.
        mixin (`type`): Its `__call__` takes `*args`, its own arguments by keyword, and `**kwargs`.
    """
    ours = inspect.signature(mixin.__call__).parameters.values()
    stock = inspect.signature(super(mixin, cls).__call__).parameters.values()

    @functools.wraps(mixin.__call__)
    def call(self, *args, **kwargs):
        return mixin.__call__(self, *args, **kwargs)

    shown = [p for p in stock if p.kind is not p.VAR_KEYWORD] + [p for p in ours if p.kind is p.KEYWORD_ONLY]
    call.__signature__ = inspect.Signature(shown)  # ty: ignore[missing-attribute]
    cls.__call__ = call
