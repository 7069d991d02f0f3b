# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""Checks of plain settings that all layers share."""

import inspect
from numbers import Integral, Real
from typing import Any


_KINDS = {bool: (bool, "True or False"), int: (Integral, "an integer"), float: (Real, "a number")}


def is_count(value: Any, least: int = 1) -> bool:
    """Whether it is an integer, of Python or of NumPy, that is not too small. `True` is no count."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def check_counts(least: int = 1, **counts: Any) -> None:
    """
    Check that settings are integers of at least `least`.

    Raises:
        ValueError: One of them is not; its name is that of the keyword.
    """
    for name, value in counts.items():
        if not is_count(value, least):
            raise ValueError(f"`{name}` must be an integer of at least {least}, received {value!r}.")


def check_kinds(config: Any) -> None:
    """
    Check that the fields which the config classes of this package declare as `bool`, `int` or `float` hold such
    values, and so does `beta`, which some inherit. A YAML file has text where its author meant a number: `1e-3` is
    one in Python and a word in YAML.

    Raises:
        ValueError: A field holds something else.
    """
    hints: dict[str, Any] = {"beta": float} if hasattr(config, "beta") else {}
    for cls in reversed(type(config).__mro__):
        if cls.__module__.split(".")[0] == __name__.split(".")[0]:
            hints |= inspect.get_annotations(cls)
    for name, hint in hints.items():
        wanted, optional = next(
            ((kind, hint != kind) for kind in _KINDS if hint in (kind, kind | None)), (None, False)
        )
        value = getattr(config, name, None)
        if wanted is None or (optional and value is None):
            continue
        kind, told = _KINDS[wanted]
        if not isinstance(value, kind) or (wanted is not bool and isinstance(value, bool)):
            raise ValueError(
                f"`{name}` must be {told}{' or None' if optional else ''}, received {value!r}, a "
                f"{type(value).__name__}."
                + (" In a YAML file write 1.0e-3, with a point and a sign." if isinstance(value, str) else "")
            )
