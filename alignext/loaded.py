# Copyright 2026 The alignext Authors. Licensed under the Apache License, Version 2.0.
"""What must be loaded already, and is often given by its name."""

import os
from typing import Any


def check_loaded(model: Any, name: str = "model", loader: str = "AutoModelForCausalLM") -> None:
    """
    Args:
        model (`Any`): What stands where a model should.
        name (`str`, *optional*, defaults to `"model"`): The argument.
        loader (`str`, *optional*, defaults to `"AutoModelForCausalLM"`): The class that loads one.

    Raises:
        ValueError: It is the name of a model, or a path to one.
    """
    if isinstance(model, str | os.PathLike):
        given = os.fspath(model)
        raise ValueError(
            f"`{name}` must be a model that is loaded, received the name {given!r}. Pass "
            f"`{loader}.from_pretrained({given!r})`."
        )
